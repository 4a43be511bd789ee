"""Hits of a classifier per row: the answer is the true class."""

from dataclasses import dataclass

from fpatch.core.tree import widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class ClassHit:
    """Settings of `metrics.class_hit`: none.

    The stage writes `found` [b] bool, whether the answer is the true class. It also writes `confidence` [b],
    the probability of the true class, and `answer` [b] int64.

    Example:
        >>> import torch
        >>> from fpatch import metrics
        >>> values = {"logits": torch.tensor([[2.0, 0.0], [0.0, 2.0]]), "target": torch.tensor([0, 0])}
        >>> written = metrics.class_hit().apply({}, {}, values)
        >>> written["found"], written["answer"]
        (tensor([ True, False]), tensor([0, 1]))
    """


def apply(config: ClassHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits, target = widen(values["logits"]), values["target"]
    answer = logits.argmax(-1)
    confidence = logits.softmax(-1).gather(1, target[:, None])[:, 0]
    return {"found": answer == target, "confidence": confidence, "answer": answer}


class_hit = define(
    "class_hit",
    ClassHit,
    deterministic,
    apply,
    reads=("logits", "target"),
    writes=("found", "confidence", "answer"),
    role="metric",
)
