"""COCO's mean average precision over all rows, and recall at a fixed score threshold.

The metric gathers the detections and objects of every row, and torchmetrics scores them at the end. As in
COCO, one detection answers at most one object.

References:
    Lin et al. (2014), Microsoft COCO: common objects in context; https://cocodataset.org/#detection-eval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import torch

from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import Summary, define, deterministic
from fpatch.metrics._matching import answered_scores, are_finite, coco_precision, split_rows
from fpatch.ops.detections import read_final

_FOUND, _TRUTH = ("boxes", "scores", "labels"), ("boxes", "labels")


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Settings of `metrics.mean_average_precision`: the thresholds of recall; AP has none.

    The stage writes no value per row. Its summary holds:

    - `map`: the mean over classes and the IoU thresholds 0.5 to 0.95; `map_50` and `map_75` at one IoU;
    - `recall`: the share of the objects that a detection of at least `score` answers;
    - `map/<label>` and `recall/<label>`: the same for each class that has objects; an evaluation writes the
      class's name for its label;
    - `map/left_out`: the number of detections that AP does not count, if any. COCO counts the best 100 of an
      image and class.

    Numbers are NaN without objects, and where a box or a score of a detection is not finite.

    Attributes:
        score: The threshold on the score of a final detection, for recall.
        iou: The overlap that counts as a match, for recall.

    Example:
        >>> import torch
        >>> from fpatch import metrics
        >>> box, label, yes = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), torch.tensor([[True]])
        >>> final = {"boxes": box, "scores": torch.tensor([[0.4]]), "labels": label, "valid": yes}
        >>> values = {"detections": {"final": final}, "boxes": box, "labels": label, "box_valid": yes}
        >>> stage = metrics.mean_average_precision(score=0.5)
        >>> config, summary = stage.config, stage.definition.summary
        >>> numbers = summary.compute(config, summary.update(config, summary.init(config), values))
        >>> numbers["map"], numbers["recall"]
        (1.0, 0.0)

    Raises:
        ValueError: If a threshold is outside 0..1.
        ImportError: If the extra `metrics` is not installed, when the numbers are computed.
    """

    score: float = 0.5
    iou: float = 0.5

    def __post_init__(self) -> None:
        check_number("mean_average_precision(score)", self.score, 0.0, 1.0)
        check_number("mean_average_precision(iou)", self.iou, 0.0, 1.0)


def apply(config: MeanAveragePrecision, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Write nothing per row."""
    return {}


def init(config: MeanAveragePrecision) -> dict[str, Any]:
    """Return the state without rows: an empty list for each name, which gets an entry per row."""
    return {f"found/{n}": [] for n in _FOUND} | {f"truth/{n}": [] for n in _TRUTH}


def update(config: MeanAveragePrecision, state: Mapping[str, Any], values: Values) -> dict[str, Any]:
    final = read_final(values["detections"])
    found, truth = split_rows(final, values["boxes"], values["labels"], values["box_valid"])
    more = {f"found/{n}": [f[n].cpu() for f in found] for n in _FOUND}
    return merge(config, state, more | {f"truth/{n}": [t[n].cpu() for t in truth] for n in _TRUTH})


def merge(config: MeanAveragePrecision, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {name: [*a[name], *b[name]] for name in a}


def compute(config: MeanAveragePrecision, state: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the summary, by name."""
    found, truth = (
        [
            dict(zip(names, row, strict=True))
            for row in zip(*(state[f"{kind}/{n}"] for n in names), strict=True)
        ]
        for kind, names in (("found", _FOUND), ("truth", _TRUTH))
    )
    if not found:
        return dict.fromkeys(("map", "map_50", "map_75", "recall"), float("nan"))
    precision = coco_precision(found, truth)
    classes, left_out = precision.pop("classes"), precision.pop("left_out")
    pairs = zip(found, truth, strict=True)
    answered = torch.cat([answered_scores(f, t, config.iou) for f, t in pairs]) >= config.score
    labels = torch.cat(state["truth/labels"])
    classes = {c: value for c, value in classes.items() if bool((labels == c).any())}
    recall = {f"recall/{c}": float(answered[labels == c].float().mean()) for c in classes}
    recall |= {"recall": float(answered.float().mean())}
    if not are_finite(found):
        recall = dict.fromkeys(recall, nan)
    by_class = {f"map/{c}": value for c, value in classes.items()}
    precision |= {"map/left_out": float(left_out)} if left_out else {}
    return precision | {"recall": recall.pop("recall")} | by_class | recall


mean_average_precision = define(
    "mean_average_precision",
    MeanAveragePrecision,
    deterministic,
    apply,
    reads=("detections", "boxes", "labels", "box_valid"),
    writes=(),
    role="metric",
    needs=("detections/final",),
    summary=Summary(init, update, merge, compute),
    vmap=False,
)
