"""Rows whose numbers rest on finite values: followed from the image to all that is computed from it.

NaN in a victim's answer does not stay NaN: a comparison makes False of it, a suppression drops it, a JPEG
stage makes black of it. So every node is looked at, and a row that was not finite once stays marked.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpatch.core.types import Values
from fpatch.graph.node import Node
from fpatch.graph.stage import ALL

_IMAGE = "image"
_VALID = {"quads": "quad_valid", "boxes": "box_valid"}
"""Names with entries that may be absent, which hold NaN, and the name that says which are there."""


class FiniteRows(NamedTuple):
    """Masks [b] of the rows that rest on finite values alone.

    Attributes:
        names: The masks of the values computed from the image, by name.
        summaries: The masks of the inputs of metrics that gather rows, by path.
    """

    names: dict[str, Tensor]
    summaries: dict[str, Tensor]


def follow_finite(
    known: Mapping[str, Tensor], n: Node, values: Values, written: Values, rows: int
) -> dict[str, Tensor]:
    """Return the masks of what a node wrote, from the masks of what it read.

    A value that does not come from the image has no mask. The numbers of a metric that writes booleans too
    count for all that it writes. A metric of numbers alone shows its own NaN.

    Args:
        known: The masks so far, by the pipeline's names.
        n: The node.
        values: The values before the node, by the pipeline's names.
        written: The values that it wrote.
        rows: The number of rows.

    Example:
        >>> import torch
        >>> from fpatch import metrics, node
        >>> from fpatch.graph.finite import follow_finite
        >>> known = {"logits": torch.tensor([True, False])}
        >>> values = {"logits": torch.zeros(2, 3), "target": torch.zeros(2, dtype=torch.int64)}
        >>> hit = node(metrics.class_hit())
        >>> follow_finite(known, hit, values, {"found": torch.tensor([True, False])}, rows=2)
        {'found': tensor([ True, False])}
    """
    read = [name for name in _names_read(n, values) if name in known or name == _IMAGE]
    if not read and _IMAGE not in (*n.writes, *n.writes.values()):
        return {}
    made = {own: written[name] for own, name in n.writes.items() if name in written}
    beside = n.inputs(values) | made
    masks = {own: _finite_part(own, value, beside, rows) for own, value in made.items()}
    if n.stage.definition.role in ("loss", "metric"):
        hits = any(isinstance(v, Tensor) and v.dtype == torch.bool for v in made.values())
        masks = dict.fromkeys(made, _all(masks.values() if hits else (), rows))
    before = [known[name] for name in read if name in known]
    return {n.writes[own]: _all([mask, *before], rows) for own, mask in masks.items()}


def finite_inputs(known: Mapping[str, Tensor], n: Node, values: Values, rows: int) -> Tensor:
    """Return the mask of the rows for which all that a node reads is finite."""
    return _all([known[name] for name in _names_read(n, values) if name in known], rows)


def finite_rows(value: Any, rows: int, valid: Tensor | None = None) -> Tensor:
    """Return the mask of the rows of a tree of tensors [b, ...] whose numbers are all finite.

    Args:
        value: A tensor, or mappings and sequences of tensors. In a mapping with an entry `valid` [b, m], such
            as final detections, entries that are not valid do not count.
        rows: b. A tensor without rows counts for all of them.
        valid: Bool [b, m]: the entries [b, m, ...] that count; None: all.

    Example:
        >>> import torch
        >>> from fpatch.graph.finite import finite_rows
        >>> scores = torch.tensor([[0.5, torch.nan], [torch.inf, 0.0]])
        >>> valid = torch.tensor([[True, False], [True, False]])
        >>> finite_rows({"scores": scores, "valid": valid}, rows=2), finite_rows(scores, rows=2)
        (tensor([ True, False]), tensor([False, False]))
    """
    if isinstance(value, Mapping):
        own = value.get("valid", valid)
        return _all([finite_rows(v, rows, own) for v in value.values()], rows)
    if isinstance(value, (list, tuple)):
        return _all([finite_rows(v, rows, valid) for v in value], rows)
    if not isinstance(value, Tensor):
        return torch.ones(rows, dtype=torch.bool)
    if not (value.is_floating_point() or value.is_complex()):
        return torch.ones(rows, dtype=torch.bool, device=value.device)
    finite = value.isfinite()
    if valid is not None and valid.dtype == torch.bool and value.shape[: valid.ndim] == valid.shape:
        finite = finite | ~valid.reshape(*valid.shape, *[1] * (value.ndim - valid.ndim))
    if value.ndim == 0 or len(value) != rows:
        return finite.all().expand(rows)
    return finite.flatten(1).all(1) if value.ndim > 1 else finite


def _finite_part(own: str, value: Any, beside: Mapping[str, Any], rows: int) -> Tensor:
    """Return the mask of one value of a node; absent corners and boxes do not count."""
    if own in _VALID:
        valid = beside.get(_VALID[own])
        return finite_rows(value, rows, valid) if valid is not None else finite_rows((), rows)
    return finite_rows(value, rows, beside.get("object_valid") if own.startswith("object_") else None)


def _names_read(n: Node, values: Values) -> Iterable[str]:
    return values if n.stage.definition.reads == (ALL,) else n.reads.values()


def _all(masks: Iterable[Tensor], rows: int) -> Tensor:
    """Return the conjunction of masks [b], on the device of the first that is not on the host."""
    found = list(masks)
    where = next((m.device for m in found if m.device.type != "cpu"), torch.device("cpu"))
    every = torch.ones(rows, dtype=torch.bool, device=where)
    return functools.reduce(torch.logical_and, [m.to(where) for m in found], every)
