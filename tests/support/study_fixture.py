"""A study in a folder: twelve photographs of two sizes, two patches (one at times absent), a detector.

The detector answers bright rectangles, so that a patch can learn to hide one within a few steps.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fpatch import random
from fpatch.core.resource import define_loader
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.log.sealed import seal
from fpatch.runs.folder import Run

SPLITS = ("train",) * 5 + ("validation",) * 3 + ("test",) * 4
STEPS = 6

STUDY = """
name = "tiny"
seed = 3

[data]
placements = "placements.csv"
objects = "objects.csv"
size = [48, 64]
patches = ["side", "rear"]
validation = "validation"

[pipeline.pixels]
stage = "create.pixels"
shapes = {side = [3, 10, 14], rear = [3, 6, 5]}
[pipeline.smooth]
stage = "losses.total_variation"
[pipeline.affine]
stage = "compose.affine"
angle_deg = [-3.0, 3.0]
[pipeline.implant]
stage = "implant.warp"
jitter_frac = 0.03
[pipeline.camera.exposure]
stage = "compose.exposure"
stops = [-0.2, 0.2]
[pipeline.camera.noise]
stage = "compose.read_noise"
[pipeline.victim]
stage = "infer.detector"
model = {loader = "study_fixture:tiny", weights = "tiny.safetensors"}
[pipeline.vanish]
stage = "losses.vanish"
[pipeline.suppress]
stage = "infer.suppress"
phases = ["eval"]
[pipeline.hit]
stage = "metrics.detection_hit"
phases = ["eval"]

[objective]
weights = {vanish = 1.0, total_variation = 0.05}
[optimizer]
learning_rate = 0.1
[train]
num_steps = 6
batch_size = 4
checkpoint_every = 2
[evaluate]
every = 3
block = 3
num_draws = 2
[log]
runs = "runs"
tensorboard = false
mlflow = false
profile_steps = 0
"""

OBJECT_METRICS = """
[pipeline.objects]
stage = "metrics.object_hit"
phases = ["eval"]
[pipeline.precision]
stage = "metrics.mean_average_precision"
phases = ["eval"]
"""
"""Sections of a study: a metric of every object, and one that gathers all rows."""


class Tiny(nn.Module):
    """At every fourth pixel a box of 18 x 25 that is as likely as it is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = nn.Conv2d(3, 1, (15, 21), stride=4, padding=(7, 10))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.norm(self.brightness(images))
        rows, columns = logits.shape[-2:]
        y, x = (4.0 * torch.arange(count, device=images.device) + 0.5 for count in (rows, columns))
        y, x = torch.meshgrid(y, x, indexing="ij")
        boxes = torch.stack([x - 12.5, y - 9.0, x + 12.5, y + 9.0], dim=-1).flatten(0, 1)
        return {"boxes": boxes.expand(len(images), -1, 4), "logits": logits.flatten(2).transpose(1, 2)}


def load_tiny(weights: str) -> nn.Module:
    model = Tiny()
    model.load_state_dict(load_file(weights))
    return model.eval()


tiny = define_loader("tiny", load_tiny)


@dataclass(frozen=True)
class Fragile:
    """The photograph in whose rows the loss becomes the logarithm of a negative number."""

    image_id: int = 2


def apply_fragile(config: Fragile, patch_params: Params, sample: Sample, values: Values) -> Values:
    darkness = (patch_params["side"].mean() - 0.4).log()
    return {"fragile": torch.where(values["image_id"] == config.image_id, darkness, 0.0)}


fragile = define(
    "fragile", Fragile, deterministic, apply_fragile, reads=("image_id",), writes=("fragile",), role="loss"
)


def make_study(folder: Path, **settings: Any) -> Path:
    """Write photographs, placements, weights and `study.toml`, and return the path of the latter.

    Args:
        folder: Where to.
        **settings: Values that replace those of `STUDY`, wherever they stand in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    placements, objects = [], []
    for i, split in enumerate(SPLITS):
        height, width = (48, 64) if i % 3 else (64, 48)
        image = rng.uniform(0, 90, (height, width, 3))
        left, top = rng.integers(2, width - 32), rng.integers(2, height - 26)
        image[top : top + 22, left : left + 30] = rng.uniform(200, 255, (22, 30, 3))
        name = f"photograph-{i:02d}.png"
        Image.fromarray(image.astype(np.uint8)).save(folder / name)
        objects.append([name, "vehicle", split, left, top, left + 30, top + 22])
        for patch, (x, y, w, h) in {"side": (2, 3, 18, 14), "rear": (21, 4, 8, 9)}.items():
            if patch == "side" or i % 4:
                x, y = left + x, top + y
                corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
                moved = corners + rng.uniform(-1, 1, (4, 2))
                placements.append([name, patch, split, *moved.ravel().round(3)])
    corner_columns = ["ulx", "uly", "urx", "ury", "lrx", "lry", "llx", "lly"]
    write_csv(folder / "placements.csv", [["image", "patch", "split", *corner_columns], *placements])
    write_csv(folder / "objects.csv", [["image", "label", "split", "xmin", "ymin", "xmax", "ymax"], *objects])

    model = Tiny()
    noise = random.normal(random.key(5), tuple(model.brightness.weight.shape))
    model.brightness.weight.data = (1 + 0.1 * noise) / noise.numel()
    model.brightness.bias.data.zero_()
    model.norm.running_mean.fill_(0.58)
    model.norm.running_var.fill_(1 / 400)
    save_file(model.state_dict(), folder / "tiny.safetensors")

    path = folder / "study.toml"
    path.write_text(STUDY)
    change(path, **{"runs": str(folder / "runs")} | settings)
    return path


def write_csv(path: Path, lines: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def change(path: Path, **settings: Any) -> None:
    """Replace the lines of a study file that give these names a value."""
    text = path.read_text()
    for name, value in settings.items():
        text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {json.dumps(value)}", text)
        assert count == 1, name
    path.write_text(text)


def copy_run(run: Run, folder: Path) -> Run:
    """A copy of the study and the run, as if it was made there; it may be damaged."""
    study = run.folder.parent.parent
    shutil.copytree(study, folder, dirs_exist_ok=True)
    copy = Run(folder / run.folder.relative_to(study))
    config = (copy.folder / "config.json").read_text().replace(str(study), str(folder))
    copy.write_config(json.loads(config))
    facts = copy.read_json("environment.json") | {"folder": str(copy.folder.resolve())}
    (copy.folder / "environment.json").write_bytes(seal(facts))
    return copy


def run_fpatch(*arguments: Any, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`fpatch` in a new process."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, **options
    )


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "fpatch", *map(str, arguments)]


def environment(*folders: Path, **more: str) -> dict[str, str]:
    """As the user's, with the modules of this folder and others, and as many threads as the tests use."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, [*folders, here, here.parents[1]]))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | more


def parameters(run: Run, checkpoint: str = "last") -> dict[str, bytes]:
    """The bits of the patches in a checkpoint."""
    with torch.device("cpu"):  # older safetensors follow the default device
        tensors = load_file(run.folder / f"checkpoints/{checkpoint}.safetensors")
    return {name: t.numpy().tobytes() for name, t in tensors.items() if name.startswith("params/")}


def read_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def logged_steps(folder: Path, name: str = "train/loss") -> list[int]:
    """Steps at which a scalar stands in the log."""
    records = read_records(folder)
    return [r["step"] for r in records if r["kind"] == "scalars" and name in r["values"]]
