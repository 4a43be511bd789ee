"""Does a classifier still answer the true class?"""

from dataclasses import dataclass

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class ClassHit:
    """No settings."""


def apply(config: ClassHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Per row.

    Returns:
        `found` [b] bool, the answer is the true class; `confidence` [b], its probability; `answer` [b] int64.
    """
    logits, target = values["logits"], values["target"]
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
