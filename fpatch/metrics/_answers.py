"""The answers of a detector to its objects, and to the goal of a targeted attack."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fpatch.core.checks import check_label
from fpatch.core.types import Values


def best_label(
    final: Mapping[str, Tensor], hits: Bool[Tensor, "b m n"], score: float
) -> Int64[Tensor, "b m"]:
    """Return the label of the best detection that hits each object, -1 if none reaches the score.

    Args:
        final: Final detections {"scores", "labels", "valid" [b, n]}.
        hits: The detections that overlap each object.
        score: The threshold on the score.
    """
    counts = hits & (final["valid"] & (final["scores"] >= score))[:, None]
    best, index = torch.where(counts, final["scores"][:, None], -1.0).max(-1)
    return torch.where(best < 0, -1, final["labels"].gather(1, index))


def goal_of(field: str, goal: int | str | None, values: Values) -> int:
    """Return the number of the goal, and refuse one that the victim lacks, as far as its dense answer says.

    Raises:
        ValueError: With the field and the value.
    """
    dense = values["detections"].get("dense")
    num_classes = 2**31 if dense is None else dense["logits"].shape[-1]
    return check_label(field, goal, num_classes)


def goal_answers(
    final: Mapping[str, Tensor], hits: Bool[Tensor, "b m n"], goal: int, score: float
) -> tuple[Bool[Tensor, "b m"], Float[Tensor, "b m"]]:
    """Return whether a detection of the goal hits each object at the score, and the best such score, or 0."""
    of_goal = hits & (final["valid"] & (final["labels"] == goal))[:, None]
    scores = final["scores"][:, None]
    return (of_goal & (scores >= score)).any(-1), torch.where(of_goal, scores, 0.0).amax(-1)
