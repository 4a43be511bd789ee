"""A batch as one dict per image, in the types that a drawing function takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fpatch.core.checks import check_choice, nearest
from fpatch.core.tree import is_traced
from fpatch.graph.mistakes import check_mapping
from fpatch.log.values import to_array
from fpatch.viz.conversions import to_pil

Kind = Literal["numpy", "pil", "tensor"]
KINDS = ("numpy", "pil", "tensor")
Conversion = Kind | Callable[[Any], Any]

_SHARED = ("patch", "masks")
"""Values that all rows share while their entries are [c, h, w]."""


def unpack(
    values: Mapping[str, Any],
    by_type: Mapping[Any, Conversion] | None = None,
    by_name: Mapping[str, Conversion] | None = None,
    whole: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Unpack a batch into a dict per image, with every value converted by its name, or else by its type.

    Of tensors and arrays [b, ...] and of lists, the i-th image gets the i-th entry, in nested dicts too.
    Numbers, strings, tensors without axes and patches [c, h, w] have no rows: every image gets them whole,
    converted likewise.

    Args:
        values: A batch, or the values of a pipeline. Nested names are paths: "detections/final/boxes".
        by_type: Conversions by the type of a value, or by the `dtype` of a tensor, which comes first. Of
            several classes the nearest counts. Tensors become "numpy" unless this says otherwise.
        by_name: Conversions by path, or by the path of a group, of which the longest counts. A name beats a
            type. A conversion is "numpy", "pil" (see `fpatch.viz.conversions`), "tensor", or a function.
        whole: Further paths whose values every image gets whole, such as a list of class names.

    Returns:
        A dict per row, nested as the batch is.

    Raises:
        ValueError: If two values have unequal numbers of rows; the message names both. If nothing has rows, a
            path names nothing, or a value is no image and "pil" is asked for.

    Example:
        >>> import torch
        >>> from fpatch import viz
        >>> batch = {"image": torch.rand(2, 3, 4, 6), "found": {"scores": torch.tensor([[0.5], [1.0]])}}
        >>> first, _ = viz.unpack(batch | {"title": "night"}, by_name={"image": "pil"})
        >>> first["image"].size, first["found"], first["title"]
        ((6, 4), {'scores': array([0.5], dtype=float32)}, 'night')
    """
    check_mapping("unpack(values)", values, "give a batch, {name: [b, ...]}")
    leaves = dict(_leaves(values))
    conversions: dict[str, Conversion] = dict(by_name or {})
    for path in (*conversions, *whole):
        if not any(
            _inside(leaf, path) or (_is_list(v) and _inside(path, leaf)) for leaf, v in leaves.items()
        ):
            raise ValueError(f"unpack: there is no value {path!r}; {nearest(path, {*leaves, *values})}")
    kinds: dict[Any, Conversion] = {Tensor: "numpy", **(by_type or {})}
    for conversion in (*conversions.values(), *kinds.values()):
        if not callable(conversion):
            check_choice("unpack: a conversion, if no function,", conversion, KINDS)
    rows = _count_rows({path: leaf for path, leaf in leaves.items() if _has_rows(path, leaf, whole)})
    return [{n: _take(n, value, i, kinds, conversions, whole) for n, value in values.items()} for i in rows]


def _leaves(values: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{group}{name}/")
        else:
            yield f"{group}{name}", value


def _inside(path: str, group: str) -> bool:
    return path == group or path.startswith(f"{group}/")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and not hasattr(value, "_fields")


def _has_rows(path: str, value: Any, whole: Sequence[str]) -> bool:
    """Return whether a value has an axis of rows."""
    if any(_inside(path, name) for name in whole):
        return False
    if isinstance(value, Tensor | np.ndarray):
        is_shared = path.partition("/")[0] in _SHARED and value.ndim < 4
        return value.ndim > 0 and not is_shared
    return _is_list(value)


def _count_rows(batched: Mapping[str, Any]) -> range:
    """Return the rows that all values have."""
    if not batched:
        raise ValueError("unpack: no value has rows; give a tensor [b, ...] or a list")
    first = next(iter(batched))
    for path, value in batched.items():
        if len(value) != len(batched[first]):
            raise ValueError(
                f"unpack: {first!r} has {len(batched[first])} rows, and {path!r} has {len(value)}; give one "
                f"per image, or pass what is no row whole: whole=({path!r},)"
            )
    return range(len(batched[first]))


def _take(
    path: str,
    value: Any,
    row: int,
    kinds: Mapping[Any, Conversion],
    conversions: Mapping[str, Conversion],
    whole: Sequence[str],
) -> Any:
    """Return the part of a value that belongs to a row, converted."""
    if isinstance(value, Mapping):
        return {n: _take(f"{path}/{n}", v, row, kinds, conversions, whole) for n, v in value.items()}
    return _convert(path, value[row] if _has_rows(path, value, whole) else value, kinds, conversions)


def _convert(
    path: str, value: Any, kinds: Mapping[Any, Conversion], conversions: Mapping[str, Conversion]
) -> Any:
    """Convert one value by its path, or else by its type; what has neither stays."""
    if isinstance(value, Mapping):  # an entry of a list
        return {n: _convert(f"{path}/{n}", v, kinds, conversions) for n, v in value.items()}
    if isinstance(value, Tensor):
        if is_traced(value) or torch.func.debug_unwrap(value) is not value:
            raise ValueError(
                f"unpack: {path!r} has no values while torch.func or torch.compile traces; ask for the other "
                "names: pipeline.apply(..., want=[...])"
            )
        value = value.detach()
    named = max((group for group in conversions if _inside(path, group)), key=len, default=None)
    if named is not None:
        return _apply(conversions[named], value, path)
    types = (getattr(value, "dtype", None), *type(value).__mro__)
    kind: Conversion | None = next((kinds[t] for t in types if t in kinds), None)
    return value if kind is None else _apply(kind, value, path)


def _apply(conversion: Conversion, value: Any, path: str) -> Any:
    if callable(conversion):
        return conversion(value)
    if conversion == "pil":
        return to_pil(value, f"unpack: {path!r}")
    if conversion == "numpy":
        return np.array(to_array(value))  # a copy: what is drawn on it must not reach the batch
    return value.cpu().clone() if isinstance(value, Tensor) else value
