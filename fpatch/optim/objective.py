"""The objective: loss terms of a pipeline weighted into one number.

Terms are unreduced, one number per row. Only this module averages rows and weights terms.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_kind, nearest
from fpatch.core.tree import widen
from fpatch.core.types import Batch, Params, Sample
from fpatch.graph.mistakes import check_mapping
from fpatch.graph.parameters import names_of_buffers, next_buffers
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.counted import (
    ROW_WEIGHTS,
    Source,
    count_rows,
    find_sources,
    rows_in,
    seen_at_the_end,
    to_weights,
)
from fpatch.optim.networks import check_networks


class Loss(NamedTuple):
    """The weighted sum of the mean terms, every term unweighted, [b], and the rows that count in it, [b].

    `counted` lacks the terms that count every row, and all terms if the rows were counted before. `buffers`
    are those that networks wrote, under the names of the parameters.
    """

    value: Tensor
    terms: dict[str, Tensor]
    counted: dict[str, Tensor] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)
    buffers: dict[str, Tensor] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Objective:
    """The weighted sum of the mean loss terms of a pipeline.

    The mean of a term is over the rows that it counts: those with an object, for a loss on objects.

    Attributes:
        pipeline: The pipeline of the training phase; its loss nodes write the terms.
        weights: Weights by term. A term without a weight, or of weight 0, is logged but does not count.
        batch: A few rows for a test of the terms, with fresh parameters; None: they are not tested.
        wrt: The patches, and the nodes or groups with networks, that it trains; None: all that can be.

    Raises:
        ValueError: If the pipeline has no loss, a weight has an unknown term or is not finite, no term
            counts, `wrt` names nothing that is trained, no term depends on a network of `wrt`, or a term of
            the test batch is reduced or not finite.

    Example:
        >>> import torch, fpatch
        >>> tv = fpatch.losses.total_variation()
        >>> p = fpatch.pipeline({"patch": fpatch.create.pixels({"a": (3, 4, 4)}), "tv": tv})
        >>> objective = fpatch.Objective(p, {"total_variation": 0.5})
        >>> objective.weigh({"total_variation": torch.tensor([1.0, 3.0])})
        Loss(value=tensor(1.), terms={'total_variation': tensor([1., 3.])}, counted={}, buffers={})
    """

    pipeline: Pipeline
    weights: Mapping[str, float] = field(default_factory=dict)
    batch: InitVar[Batch | None] = None
    wrt: tuple[str, ...] | None = None

    def __post_init__(self, batch: Batch | None) -> None:
        check_kind("objective(pipeline)", self.pipeline, Pipeline, "make it by fpatch.pipeline({...})")
        check_mapping("objective(weights)", self.weights, "give {term: weight}")
        terms = self.pipeline.terms
        if not terms:
            raise ValueError("objective: the pipeline has no loss; add one, e.g. losses.vanish()")
        for name, weight in self.weights.items():
            if name not in terms:
                raise ValueError(f"objective(weights): no loss term {name!r}; {nearest(name, terms)}")
            if not isinstance(weight, Real):
                raise ValueError(
                    f"objective(weights): the weight of {name!r} must be a number, got {weight!r}"
                )
            if not math.isfinite(weight):
                raise ValueError(f"objective(weights): the weight of {name!r} must be finite, got {weight}")
        if not any(self.weights.values()):
            raise ValueError(
                "objective(weights): at least one weight must differ from 0; terms: " + ", ".join(terms)
            )
        check_networks(self.pipeline, self.weights, self.trained)
        if batch is not None:
            key = random.key(0)
            with torch.no_grad():
                values, _ = self.pipeline(self.pipeline.init(key), key, batch, want=terms)
            check_terms(values, len(batch["image_id"]))

    def __call__(self, patch_params: Params, sample: Sample, batch: Batch) -> Loss:
        """The loss of a batch on a given sample.

        A batch with `ROW_WEIGHTS` may be a part of the rows that were counted; any other is taken as whole.
        """
        batch, weights = self.split_weights(patch_params, sample, batch)
        names = self.tellers if weights is None else ()
        values = self.pipeline.apply(patch_params, sample, batch, want=(*self.wanted, *names))
        return self.weigh_values(values, weights)

    def split_weights(
        self, patch_params: Params, sample: Sample, batch: Batch
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Split a batch into what the nodes read and the weights of its rows.

        The weights are None where the run itself tells which rows count.
        """
        values = dict(batch)
        weights = values.pop(ROW_WEIGHTS, None)
        if weights is None and self.sources and not self.tellers:
            weights = to_weights(self.counted(patch_params, sample, values))
        return values, weights

    def weigh_values(self, values: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> Loss:
        """The loss of values after the last node: all terms, and `tellers` if there are no weights."""
        terms = {name: values[name] for name in self.pipeline.terms}
        buffers = next_buffers(self.pipeline, values)
        if weights is not None:
            return self.weigh(terms, weights)._replace(buffers=buffers)
        counted = rows_in(self.sources, values)
        return self.weigh(terms, to_weights(counted))._replace(counted=counted, buffers=buffers)

    def weigh(self, terms: Mapping[str, Any], row_weights: Mapping[str, Tensor] | None = None) -> Loss:
        """The loss of computed terms, [b] each.

        Args:
            terms: The terms, unweighted.
            row_weights: Weights [b] of the rows by term; a term without them counts all rows.

        Raises:
            ValueError: If a term is no tensor [b].
        """
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.ndim != 1:
                raise ValueError(_not_per_row(name, term))
        wide = {n: widen(t) for n, t in terms.items()}
        rows = {n: t * row_weights[n] if row_weights and n in row_weights else t for n, t in wide.items()}
        value = sum(weight * rows[name].mean() for name, weight in self.weights.items() if weight)
        return Loss(value, dict(terms))  # type: ignore[arg-type]

    def counted(self, patch_params: Params, sample: Sample, batch: Batch) -> dict[str, Tensor]:
        """Mark the rows [b] that count in each term; a term that counts every row is absent."""
        return count_rows(self.pipeline, self.sources, patch_params, sample, batch) if self.sources else {}

    def void_uncounted(self, loss: Loss, counted: Mapping[str, Tensor]) -> Loss:
        """Report no number, NaN, for a batch in which no row counts for a term that has a weight."""
        masks = [mask.any() for term, mask in counted.items() if self.weights.get(term)]
        if not masks:
            return loss
        return loss._replace(value=torch.where(torch.stack(masks).all(), loss.value, torch.nan))

    @functools.cached_property
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that it trains."""
        return self.pipeline.trainable(self.wrt)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The values that it needs: all terms, and the buffers that networks write."""
        return (*self.pipeline.terms, *names_of_buffers(self.pipeline))

    @functools.cached_property
    def tellers(self) -> tuple[str, ...]:
        """The values that tell after the last node which rows count; none if a node changes one later."""
        names = {s.name for group in self.sources.values() for s in group}
        return tuple(sorted(names)) if seen_at_the_end(self.pipeline, self.sources) else ()

    @functools.cached_property
    def sources(self) -> dict[str, frozenset[Source]]:
        """The values by which terms count their rows; a term that counts every row is absent."""
        return find_sources(self.pipeline)


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


def check_lengths(terms: Mapping[str, Any], num_rows: int) -> None:
    """Check that every term has a number per row: micro-batches weigh means by their rows.

    Raises:
        ValueError: Naming the term.

    Example:
        >>> import torch
        >>> from fpatch.optim.objective import check_lengths
        >>> check_lengths({"vanish": torch.zeros(1)}, 4)
        Traceback (most recent call last):
        ValueError: loss term 'vanish' must be a tensor, unreduced, one number per row [4], got shape [1]; ...
    """
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim != 1 or len(term) != num_rows:
            raise ValueError(_not_per_row(name, term, num_rows))


def _not_per_row(name: str, term: Any, num_rows: int | str = "b") -> str:
    got = f"shape {list(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
    return (
        f"loss term {name!r} must be a tensor, unreduced, one number per row [{num_rows}], got {got}; leave "
        "the mean to the objective"
    )
