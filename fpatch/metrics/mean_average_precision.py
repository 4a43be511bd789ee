"""COCO's mean average precision over all rows, and recall at a score fixed beforehand.

A metric that gathers rows: it holds detections and objects of every photograph, and torchmetrics counts at
the end. Objects are answered as in COCO, one detection each.

References:
    Lin et al. (2014), Microsoft COCO: common objects in context; https://cocodataset.org/#detection-eval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import Summary, define, deterministic
from fpatch.metrics._matching import answered_scores, coco_precision, split_rows

FOUND, TRUTH = ("boxes", "scores", "labels"), ("boxes", "labels")


@dataclass(frozen=True)
class MeanAveragePrecision:
    """What recall is counted at; AP has no settings.

    Attributes:
        score: The threshold on the score of a final detection, for recall.
        iou: The overlap that counts as a match, for recall.
    """

    score: float = 0.5
    iou: float = 0.5

    def __post_init__(self) -> None:
        check_number("mean_average_precision(score)", self.score, 0.0, 1.0)
        check_number("mean_average_precision(iou)", self.iou, 0.0, 1.0)


def apply(config: MeanAveragePrecision, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Nothing per row."""
    return {}


def init(config: MeanAveragePrecision) -> dict[str, Any]:
    """No photograph yet: a list with an entry per photograph for each name."""
    return {f"found/{n}": [] for n in FOUND} | {f"truth/{n}": [] for n in TRUTH}


def update(config: MeanAveragePrecision, state: Mapping[str, Any], values: Values) -> dict[str, Any]:
    final = values["detections"]["final"]
    found, truth = split_rows(final, values["boxes"], values["labels"], values["box_valid"])
    more = {f"found/{n}": [f[n].cpu() for f in found] for n in FOUND}
    return merge(config, state, more | {f"truth/{n}": [t[n].cpu() for t in truth] for n in TRUTH})


def merge(config: MeanAveragePrecision, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {name: [*a[name], *b[name]] for name in a}


def compute(config: MeanAveragePrecision, state: Mapping[str, Any]) -> dict[str, float]:
    """The numbers.

    Returns:
        `map` (mean over IoU 0.5 to 0.95 and classes), `map_50`, `map_75`, `recall` (share of the objects that
        a detection of at least `score` answers); and `map/<label>`, `recall/<label>`. NaN without objects.
    """
    found, truth = (
        [
            dict(zip(names, row, strict=True))
            for row in zip(*(state[f"{kind}/{n}"] for n in names), strict=True)
        ]
        for kind, names in (("found", FOUND), ("truth", TRUTH))
    )
    if not found:
        return dict.fromkeys(("map", "map_50", "map_75", "recall"), float("nan"))
    precision = coco_precision(found, truth)
    classes = precision.pop("classes")
    pairs = zip(found, truth, strict=True)
    answered = torch.cat([answered_scores(f, t, config.iou) for f, t in pairs]) >= config.score
    labels = torch.cat(state["truth/labels"])
    recall = {f"recall/{c}": float(answered[labels == c].float().mean()) for c in classes}
    by_class = {f"map/{c}": value for c, value in classes.items()}
    return precision | {"recall": float(answered.float().mean())} | by_class | recall


mean_average_precision = define(
    "mean_average_precision",
    MeanAveragePrecision,
    deterministic,
    apply,
    reads=("detections", "boxes", "labels", "box_valid"),
    writes=(),
    role="metric",
    summary=Summary(init, update, merge, compute),
    vmap=False,
)
