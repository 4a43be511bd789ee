"""Victims that break, and metrics of a user, for `test_not_finite.py` and `test_two_processes.py`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from study_fixture import Tiny, load_tiny
from torch import Tensor, nn

from fpatch.core.resource import define_loader
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


class Breaking(nn.Module):
    """The fixture's detector, which answers NaN, or infinity, for every image with a red place."""

    def __init__(self, model: Tiny, what: str, answer: float) -> None:
        super().__init__()
        self.model, self.what, self.answer = model, what, answer

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.model(images)
        redness = F.avg_pool2d(images[:, :1] - images[:, 1:].amax(1, keepdim=True), 3, 1)
        broken = redness.flatten(1).amax(1) > 0.5
        value = found[self.what]
        return found | {self.what: torch.where(broken[:, None, None], self.answer, value)}


def load_breaking(weights: str, what: str = "logits", answer: str = "nan") -> nn.Module:
    return Breaking(load_tiny(weights), what, float(answer)).eval()


breaking = define_loader("breaking", load_breaking)


@dataclass(frozen=True)
class OwnHit:
    """A user's metric, which knows nothing of NaN: a comparison makes False of it."""


def apply_own_hit(config: OwnHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    best = values["detections"]["dense"]["logits"].amax((1, 2))
    return {"own/found": best > 0}


own_hit = define(
    "own_hit",
    OwnHit,
    deterministic,
    apply_own_hit,
    reads=("detections",),
    writes=("own/found",),
    role="metric",
)


@dataclass(frozen=True)
class Halves:
    """A classifier of two classes: the left half of the image is brighter than the right."""


def apply_halves(config: Halves, patch_params: Params, sample: Sample, values: Values) -> Values:
    left, right = (half.mean((1, 2, 3)) for half in values["image"].tensor_split(2, dim=-1))
    return {"logits": 20 * torch.stack([left, right], dim=1), "target": values["image_id"] % 2}


halves = define(
    "halves",
    Halves,
    deterministic,
    apply_halves,
    reads=("image", "image_id"),
    writes=("logits", "target"),
)
