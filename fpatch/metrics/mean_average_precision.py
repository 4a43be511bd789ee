"""COCO's mean average precision over all rows, and recall at a fixed score threshold.

The metric gathers the detections and objects of every row, and torchmetrics scores them at the end. As in
COCO, one detection answers at most one object.

References:
    Lin et al. (2014), Microsoft COCO: common objects in context; https://cocodataset.org/#detection-eval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import Summary, define, deterministic
from fpatch.metrics._matching import answered_scores, are_finite, coco_precision, split_rows
from fpatch.ops.detections import read_final

_KINDS = {"found": ("boxes", "scores", "labels"), "truth": ("boxes", "labels")}
"""The entries of detections and of objects."""


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
    """Return the state without rows: by name, tensors that hold the entries of all rows in order."""
    return {f"{kind}/{n}": [] for kind, names in _KINDS.items() for n in (*names, "count")}


def update(config: MeanAveragePrecision, state: Mapping[str, Any], values: Values) -> dict[str, Any]:
    final = read_final(values["detections"])
    rows = split_rows(final, values["boxes"], values["labels"], values["box_valid"])
    if not rows[0]:
        return dict(state)
    more: dict[str, Any] = {}
    for (kind, names), entries in zip(_KINDS.items(), rows, strict=True):
        more |= {f"{kind}/{n}": [torch.cat([entry[n] for entry in entries]).cpu()] for n in names}
        more[f"{kind}/count"] = [torch.tensor([len(entry["labels"]) for entry in entries])]
    return merge(config, state, more)


def merge(config: MeanAveragePrecision, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _join([*a[name], *b[name]]) for name in a}


def _join(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Join pieces until each is more than twice as long as the next, so that few are left.

    Many small tensors would lie between the images of later rows, whose room could not be used again.
    """
    joined: list[Tensor] = []
    for piece in pieces:
        longer = piece
        while joined and len(joined[-1]) <= 2 * len(longer):
            longer = torch.cat([joined.pop(), longer])
        joined.append(longer)
    return joined


def _rows(state: Mapping[str, Any], kind: str) -> list[dict[str, Tensor]]:
    """Return the entries of each row, by name."""
    if not state[f"{kind}/count"]:
        return []
    counts = torch.cat(state[f"{kind}/count"]).tolist()
    names = _KINDS[kind]
    columns = (torch.cat(state[f"{kind}/{n}"]).split(counts) for n in names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def compute(config: MeanAveragePrecision, state: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the summary, by name."""
    found, truth = (_rows(state, kind) for kind in _KINDS)
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
