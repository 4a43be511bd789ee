"""The objective: loss terms of a pipeline weighted into one number.

Terms are unreduced, one number per row. Only this module averages rows and weights terms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.tree import widen
from fpatch.core.types import Batch, Params, Sample
from fpatch.graph.pipeline import Pipeline


class Loss(NamedTuple):
    """The weighted sum of the mean terms, and every term unweighted, [b]."""

    value: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """The weighted sum of the mean loss terms of a pipeline.

    Attributes:
        pipeline: The pipeline of the training phase; its loss nodes write the terms.
        weights: Weights by term. A term without a weight, or of weight 0, is logged but does not count.

    Raises:
        ValueError: If the pipeline has no loss, a weight has an unknown term or is not finite, or no term
            counts.

    Example:
        >>> import torch, fpatch
        >>> tv = fpatch.losses.total_variation()
        >>> p = fpatch.pipeline({"patch": fpatch.create.pixels({"a": (3, 4, 4)}), "tv": tv})
        >>> objective = fpatch.Objective(p, {"total_variation": 0.5})
        >>> objective.weigh({"total_variation": torch.tensor([1.0, 3.0])})
        Loss(value=tensor(1.), terms={'total_variation': tensor([1., 3.])})
    """

    pipeline: Pipeline
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        terms = self.pipeline.terms
        if not terms:
            raise ValueError("objective: the pipeline has no loss; add one, e.g. losses.vanish()")
        for name, weight in self.weights.items():
            if name not in terms:
                raise ValueError(f"objective(weights): no loss term {name!r}; {nearest(name, terms)}")
            if not math.isfinite(weight):
                raise ValueError(f"objective(weights): the weight of {name!r} must be finite, got {weight}")
        if not any(self.weights.values()):
            raise ValueError(
                "objective(weights): at least one weight must differ from 0; terms: " + ", ".join(terms)
            )

    def __call__(self, patch_params: Params, sample: Sample, batch: Batch) -> Loss:
        """The loss of a batch on a given sample."""
        return self.weigh(self.pipeline.apply(patch_params, sample, batch, want=self.pipeline.terms))

    def weigh(self, terms: Mapping[str, Any]) -> Loss:
        """The loss of computed terms, [b] each.

        Raises:
            ValueError: If a term is no tensor [b].
        """
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.ndim != 1:
                raise ValueError(_not_per_row(name, term))
        value = sum(weight * widen(terms[name]).mean() for name, weight in self.weights.items() if weight)
        return Loss(value, dict(terms))  # type: ignore[arg-type]


def check_terms(terms: Mapping[str, Any], num_rows: int) -> None:
    """Check that every term is one finite number per row, on a test batch before training.

    Raises:
        ValueError: Naming the term.
    """
    for name, term in terms.items():
        if not isinstance(term, Tensor) or tuple(term.shape) != (num_rows,):
            raise ValueError(_not_per_row(name, term, num_rows))
        if not term.is_floating_point():
            raise ValueError(f"loss term {name!r} must be floating point, got {term.dtype}")
        if not bool(torch.isfinite(term).all()):
            row = int((~torch.isfinite(term)).nonzero()[0])
            raise ValueError(f"loss term {name!r} is {float(term[row])} in row {row} of the test batch")


def _not_per_row(name: str, term: Any, num_rows: int | str = "b") -> str:
    got = f"shape {list(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
    return (
        f"loss term {name!r} must be a tensor, unreduced, one number per row [{num_rows}], got {got}; leave "
        "the mean to the objective"
    )
