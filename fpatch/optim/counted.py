"""The rows that count in the mean of each loss term.

A term such as `losses.vanish` speaks of objects. A row without an object has the value 0, which is no
success, and must not enter the mean. With the weights of a whole batch, the mean over all rows is that over
the counted ones. Micro-batches and shards take the weights of their rows along, and so their sums are exact.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch.core.types import Batch, Params, Sample
from fpatch.graph.pipeline import Pipeline

ROW_WEIGHTS = "*row_weights"
"""The key of the weights in a batch, which no node can read."""


class Source(NamedTuple):
    """The place of a value that tells which rows count.

    Attributes:
        name: The pipeline's name of the value, bool [b] or [b, k].
        writer: The path of the last node that writes it before the loss; None: the batch holds it.
    """

    name: str
    writer: str | None


def find_sources(pipeline: Pipeline) -> dict[str, frozenset[Source]]:
    """Find by which values each term counts its rows; a term that counts every row is absent.

    A loss made of other terms alone, such as `losses.ensemble`, counts a row if one of them does.
    """
    found: dict[str, frozenset[Source]] = {}
    seen: set[str] = set()
    writers: dict[str, str] = {}
    for path, n in pipeline.items():
        own, reads = n.stage.definition.counted, set(n.reads.values())
        sources: frozenset[Source] = frozenset()
        if n.terms and own is not None:
            sources = frozenset({Source(n.reads[own], writers.get(n.reads[own]))})
        elif n.terms and reads and reads <= set(found) & seen:
            sources = frozenset().union(*(found[name] for name in reads))
        for term in n.terms:
            seen.add(term)
            found.pop(term, None)
            if sources:
                found[term] = sources
        writers.update(dict.fromkeys(n.writes.values(), path))
    return found


def count_rows(
    pipeline: Pipeline,
    sources: Mapping[str, frozenset[Source]],
    patch_params: Params,
    sample: Sample,
    batch: Batch,
) -> dict[str, Bool[Tensor, " b"]]:
    """Mark the rows that count in each term of `sources`.

    Where nodes change a value, as a crop changes `box_valid`, they run for that value alone.
    """
    rows: dict[Source, Tensor] = {}
    for source in sorted({s for group in sources.values() for s in group}, key=str):
        values: Mapping[str, Tensor] = batch
        if source.writer is not None:
            until = pipeline.upto(source.writer)
            if source.name not in batch and source.name in until.required():
                continue  # the run itself names what is missing
            with torch.no_grad():
                values = until.apply(patch_params, sample, batch, want=(source.name,))
        if source.name in values:
            rows[source] = _any(values[source.name])
    counted = {term: [rows[s] for s in group if s in rows] for term, group in sources.items()}
    return {term: torch.stack(masks).any(0) for term, masks in counted.items() if masks}


def seen_at_the_end(pipeline: Pipeline, sources: Mapping[str, frozenset[Source]]) -> bool:
    """Return whether the values of the sources are those after the last node, which one run gives too."""
    last = {name: path for path, n in pipeline.items() for name in n.writes.values()}
    return all(last.get(s.name) == s.writer for group in sources.values() for s in group)


def rows_in(
    sources: Mapping[str, frozenset[Source]], values: Mapping[str, Tensor]
) -> dict[str, Bool[Tensor, " b"]]:
    """Mark the rows that count in each term of `sources`, from the values after the last node."""
    return {
        term: torch.stack([_any(values[s.name]) for s in sorted(group, key=str)]).any(0)
        for term, group in sources.items()
    }


def _any(valid: Tensor) -> Bool[Tensor, " b"]:
    return valid if valid.ndim == 1 else valid.flatten(1).any(-1)


def to_weights(
    counted: Mapping[str, Bool[Tensor, " b"]],
    whole: Mapping[str, Bool[Tensor, " n"]] | None = None,
    members: int = 1,
) -> dict[str, Float[Tensor, " b"]]:
    """Make weights with which the mean of all rows is the mean of the counted ones.

    The weight is exactly 1 where all rows count, and 0 where none does.

    Args:
        counted: The counted rows of this process.
        whole: The counted rows of all processes; None: those of `counted`.
        members: The members of a population, whose rows follow one another and are weighted apart.

    Example:
        >>> import torch
        >>> from fpatch.optim.counted import to_weights
        >>> to_weights({"vanish": torch.tensor([True, False, True, True])})["vanish"]
        tensor([1.3333, 0.0000, 1.3333, 1.3333])
    """
    made = {}
    for term, mask in counted.items():
        rows = mask.unflatten(0, (members, -1)).float()
        every = rows if whole is None else whole[term].unflatten(0, (members, -1)).float()
        num = every.sum(-1, keepdim=True).clamp(min=1.0)
        made[term] = (rows * (every.shape[-1] / num)).flatten()
    return made


def counted_mean(term: Float[Tensor, " b"], counted: Bool[Tensor, " b"] | None) -> float:
    """Return the mean of a term over its counted rows (None: all); NaN if none counts."""
    if counted is None or bool(counted.all()):
        return float(term.mean())
    return float(term[counted].mean())


def uncounted(counted: Mapping[str, Bool[Tensor, " b"]]) -> Iterator[tuple[str, int, int]]:
    """Yield the terms in which some rows do not count, with the counted rows and all."""
    for term, mask in counted.items():
        num = int(mask.sum())
        if num < len(mask):
            yield term, num, len(mask)
