"""Hits of a classifier per row: the answer is the true class, or the goal of a targeted attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fpatch.core.checks import check_class, check_label
from fpatch.core.tree import check_labels, widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class ClassHit:
    """Settings of `metrics.class_hit`: the goal of the attack.

    The stage writes `found` [b] bool, whether the answer is the true class. It also writes `confidence` [b],
    the probability of the true class, and `answer` and `label` [b] int64, the class that the victim answers
    and the true one. With a goal it writes three more:

    - `reached` [b] bool: the answer is the goal;
    - `goal_score` [b]: the probability of the goal;
    - `has_object` [b] bool: the true class is not the goal. In other rows `found` and `reached` are False,
      since nothing has to change there.

    Attributes:
        goal: The class that the attack wants answered, by its name or number. None: any but the true one.

    Example:
        >>> import torch
        >>> from fpatch import metrics
        >>> values = {"logits": torch.tensor([[2.0, 0.0], [0.0, 2.0]]), "target": torch.tensor([0, 0])}
        >>> written = metrics.class_hit().apply({}, {}, values)
        >>> written["found"], written["answer"]
        (tensor([ True, False]), tensor([0, 1]))
        >>> metrics.class_hit(goal=1).apply({}, {}, values)["reached"]
        tensor([False,  True])

    Raises:
        ValueError: If the goal is no class.
    """

    goal: int | str | None = None

    def __post_init__(self) -> None:
        if self.goal is not None:
            check_class("class_hit(goal)", self.goal)


def apply(config: ClassHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits, target = widen(values["logits"]), values["target"]
    check_labels("class_hit: a target", target, logits.shape[-1])
    answer = logits.argmax(-1)
    probability = logits.softmax(-1)
    confidence = probability.gather(1, target[:, None])[:, 0]
    written = {"found": answer == target, "confidence": confidence, "answer": answer, "label": target}
    if config.goal is None:
        return written
    goal = check_label("class_hit(goal)", config.goal, logits.shape[-1])
    asked = target != goal
    return written | {
        "found": written["found"] & asked,
        "has_object": asked,
        "reached": (answer == goal) & asked,
        "goal_score": probability[:, goal],
    }


def declare(config: ClassHit) -> Mapping[str, Any]:
    """Write what the goal asks for if there is one."""
    return {} if config.goal is None else {"writes": (*_WRITES, "has_object", "reached", "goal_score")}


_WRITES = ("found", "confidence", "answer", "label")

class_hit = define(
    "class_hit",
    ClassHit,
    deterministic,
    apply,
    reads=("logits", "target"),
    writes=_WRITES,
    role="metric",
    declare=declare,
    classes=("goal",),
)
