"""A study that trains in a tenth of a second: drawn scenes, a victim of one rule, and one patch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpatch.data import write_image
from fpatch.study.config import load_study
from fpatch.study.study import Study

_SPLITS = ("train", "train", "validation", "validation", "test", "test", "test", "test")
_STUDY = """
name = "lamp"
[data]
placements = "placements.csv"
objects = "objects.csv"
size = [24, 32]
classes = ["lamp", "nothing"]
[pipeline]
pixels = {stage = "create.pixels", shapes = {tag = [3, 6, 6]}}
implant = {stage = "implant.warp"}
exposure = {stage = "compose.exposure", stops = [-0.05, 0.05]}
victim = {stage = "infer.classifier", model = {loader = "demo.brightness"}}
misclassify = {stage = "losses.misclassify", phases = ["train"]}
hit = {stage = "metrics.class_hit", phases = ["eval"]}
[objective]
weights = {misclassify = 1.0}
[optimizer]
learning_rate = 0.2
[train]
num_steps = 4
batch_size = 2
[log]
tensorboard = false
mlflow = false
"""


class Brightness(nn.Module):
    """A classifier that answers class 0, a lamp, where the mean of an image exceeds a threshold."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [b, 2] of images [b, 3, h, w] in 0..1."""
        excess = images.mean((1, 2, 3)) - 0.245
        return 100.0 * torch.stack([excess, -excess], dim=1)


def load_brightness() -> nn.Module:
    """Make the victim of the tiny study, in evaluation mode."""
    return Brightness().eval()


def tiny_study(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Write eight scenes of a lamp with a place for the patch "tag", and a study of them.

    Args:
        folder: Where scenes, tables and `study.toml` are written, and where runs will be.
        overrides: Values by dotted name, as `fpatch.load_study` takes them.

    Example:
        >>> import tempfile
        >>> from fpatch import train
        >>> from fpatch.demo.tiny import tiny_study
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> run.checkpoint_steps()
        [0, 4]
    """
    folder = Path(folder)
    placements, objects = ["image,patch,split,xmin,ymin,xmax,ymax"], ["image,label,split,xmin,ymin,xmax,ymax"]
    for i, split in enumerate(_SPLITS):
        x, y = 2 + i, 1 + i
        scene = torch.full((3, 24, 32), 0.2)
        scene[:, y : y + 12, x : x + 16] = 0.8
        write_image(folder / f"{i}.png", scene)
        placements.append(f"{i}.png,tag,{split},{x + 2},{y},{x + 14},{y + 12}")
        objects.append(f"{i}.png,lamp,{split},{x},{y},{x + 16},{y + 12}")
    (folder / "placements.csv").write_text("\n".join(placements), "utf-8")
    (folder / "objects.csv").write_text("\n".join(objects), "utf-8")
    (folder / "study.toml").write_text(_STUDY, "utf-8")
    return load_study(folder / "study.toml", {"log.runs": str(folder), **(overrides or {})})
