"""The contracts of the standard names: what a batch must hold under each, checked before a sample is drawn.

Levels of 0..255, channels last, or boxes given by width and height raise no error later: they make wrong
numbers. `CONTRACTS` is the one table of the names, and `check_batch` holds a batch against it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpatch.core.tree import is_concrete, is_traced
from fpatch.core.types import Batch
from fpatch.graph.declarations import ALL

OVERSHOOT = 0.02
"""Values of an image may leave 0..1 by this much, as those of a bicubic filter do."""

Find = Callable[[Tensor, Mapping[str, Tensor]], str | None]
"""`(value, readable values by their own names) -> what was got instead and the way out, or None`."""


class Contract(NamedTuple):
    """The contents that a batch must hold under a name.

    Attributes:
        shape: The axes: numbers, and letters, of which "b", "k" and "m" are the same in all names.
        dtype: The type.
        promise: The promise on the values, in words.
        find: Finds values that break it.
        beside: The name that the reader must read too; None: the contract holds for every reader.
    """

    shape: tuple[str | int, ...]
    dtype: torch.dtype
    promise: str
    find: Find
    beside: str | None = None


class Use(NamedTuple):
    """A value of the batch that a node reads.

    Attributes:
        own: The node's own name of the value, which has a contract.
        name: Its name in the batch.
        reader: The node.
    """

    own: str
    name: str
    reader: str


def _find_levels(image: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """Find values outside of 0..1; reading all of them takes no longer than every fourth along each axis."""
    low, high = (float(x) for x in image.aminmax())
    if -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
        return None
    if not math.isfinite(high - low):
        row = int((~torch.isfinite(image)).flatten(1).any(1).nonzero()[0])
        return f"values that are not finite in row {row}; correct the file or the step that made them"
    found = f"values from {low:.6g} to {high:.6g}"
    if low < -OVERSHOOT:
        return f"{found}; undo a normalization, which belongs to the victim's adapter"
    return f"{found}; divide by {255 if high <= 255 else 65535 if high <= 65535 else 'the largest level'}"


def _find_negative(counts: Tensor, others: Mapping[str, Tensor]) -> str | None:
    bad = (counts < 0).nonzero()
    if not len(bad):
        return None
    return f"{int(counts[tuple(bad[0])])} in row {int(bad[0, 0])}; count from 0"


def _find_labels(labels: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """Find negative labels of valid objects."""
    valid = others.get("box_valid", torch.ones_like(labels, dtype=torch.bool))
    found = _find_negative(torch.where(valid, labels, 0), {})
    return found and f"{found}, and mark what has no class as not valid"


def _find_patches(index: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """Find negative indices of valid placements."""
    valid = others.get("quad_valid", torch.ones_like(index, dtype=torch.bool))
    return _find_negative(torch.where(valid, index, 0), {})


def _find_corners(quads: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """Find corners of valid placements that are not finite."""
    bad = ~torch.isfinite(quads).flatten(2).all(-1) & others.get("quad_valid", torch.tensor(True))
    if not bool(bad.any()):
        return None
    row, place = bad.nonzero()[0].tolist()
    corners = [[round(x, 2) for x in corner] for corner in quads[row, place].tolist()]
    return f"{corners} in row {row}, placement {place}; set quad_valid to False where there is none"


def _find_sides(boxes: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """Find valid boxes that are not finite or whose sides are in no order."""
    ordered = (boxes[..., :2] <= boxes[..., 2:]).all(-1) & torch.isfinite(boxes).all(-1)
    bad = ~ordered & others.get("box_valid", torch.tensor(True))
    if not bool(bad.any()):
        return None
    row, place = bad.nonzero()[0].tolist()
    box = [round(x, 2) for x in boxes[row, place].tolist()]
    return (
        f"{box} in row {row}, object {place}; add left and top to a width and height, or set box_valid to "
        "False where there is none"
    )


def _find_nothing(value: Tensor, others: Mapping[str, Tensor]) -> str | None:
    return None


_IMAGE = Contract(("b", 3, "h", "w"), torch.float32, "in 0..1", _find_levels)

CONTRACTS: dict[str, Contract] = {
    "image_id": Contract(("b",), torch.int64, "numbers of images", _find_nothing),
    "draw": Contract(("b",), torch.int64, "counts from 0", _find_negative),
    "scene": _IMAGE,
    "image": _IMAGE,
    "quads": Contract(("b", "k", 4, 2), torch.float32, "corners x, y in pixels", _find_corners),
    "quad_patch": Contract(("b", "k"), torch.int64, "numbers of patches", _find_patches),
    "quad_valid": Contract(("b", "k"), torch.bool, "", _find_nothing),
    "boxes": Contract(("b", "m", 4), torch.float32, "left, top, right, bottom in pixels", _find_sides),
    "labels": Contract(("b", "m"), torch.int64, "numbers of classes", _find_labels),
    "box_valid": Contract(("b", "m"), torch.bool, "", _find_nothing),
    "target": Contract(("b",), torch.int64, "numbers of classes", _find_negative, beside="logits"),
}
"""The contracts by the standard name."""


def find_uses(nodes: Mapping[str, Any]) -> tuple[Use, ...]:
    """Find the first reader of each value that nodes read from the batch and that has a contract."""
    uses = {own: Use(own, own, "every sample") for own in ("image_id", "draw")}
    written: set[str] = set()
    for path, n in nodes.items():
        reads = n.reads if ALL not in n.reads else {name: name for name in CONTRACTS}
        for own, name in reads.items():
            contract = CONTRACTS.get(own)
            if contract is None or name in written or (contract.beside or own) not in reads:
                continue
            if contract.beside is None or ALL not in n.reads:
                uses.setdefault(name, Use(own, name, f"node {path!r}"))
        written |= set(n.writes.values())
    return tuple(uses.values())


def uses_of(reader: str, names: Sequence[str]) -> tuple[Use, ...]:
    """Find the values with a contract among the names that one stage reads."""
    found = ((name, CONTRACTS[name].beside or name) for name in names if name in CONTRACTS)
    return tuple(Use(name, name, reader) for name, beside in found if beside in names)


def check_batch(uses: Sequence[Use], batch: Batch, seen: set[tuple[Any, ...]] | None = None) -> None:
    """Check that a batch keeps the contracts of the names that are read.

    Only shapes and types are checked of values that cannot be read without waiting, such as those on a GPU.

    Args:
        uses: The values that are read.
        batch: Named tensors [b, ...].
        seen: The names and shapes of images whose levels were checked; it is updated. Later images of one
            shape are of one source, so that their levels cost nothing. None: all are checked.

    Raises:
        ValueError: With the name, its reader, what was expected, what was got, and the way out.

    Example:
        >>> import torch
        >>> from fpatch.graph.contracts import Use, check_batch
        >>> check_batch([Use("quad_valid", "seen", "node 'sign'")], {"seen": torch.ones(3)})
        Traceback (most recent call last):
        ValueError: batch['seen'], which node 'sign' reads, must be bool [b, k], got float32 [3]; give 2 axes
    """
    known: dict[str, int] = {}
    readable: dict[str, Tensor] = {}
    for use in uses:
        value = batch.get(use.name)
        if value is None or (isinstance(value, Tensor) and is_traced(value)):
            continue
        if found := _find_form(use, value, known):
            raise ValueError(_sentence(use, known, found))
        if is_concrete(plain := value.detach()):  # made by an operator, as torch's modes may intervene there
            readable[use.name] = plain
    for use in uses:
        value = readable.get(use.name)
        others = {other.own: readable[other.name] for other in uses if other.name in readable}
        is_image = CONTRACTS[use.own] is _IMAGE
        if value is None or (is_image and seen is not None and (use.name, *value.shape) in seen):
            continue
        if found := CONTRACTS[use.own].find(value, others):
            raise ValueError(_sentence(use, known, found))
        if is_image and seen is not None:
            seen.add((use.name, *value.shape))


def copy_readable(batch: Batch) -> Batch:
    """Copy what lies on a GPU to the host, so that `check_batch` can read it; this waits for the GPU."""
    return {
        n: v.cpu() if isinstance(v, Tensor) and v.is_cuda and not is_traced(v) else v
        for n, v in batch.items()
    }


def _sentence(use: Use, known: Mapping[str, int], found: str) -> str:
    shape, dtype, promise, _, _ = CONTRACTS[use.own]
    axes = ", ".join(f"{axis} = {known[axis]}" if axis in known else str(axis) for axis in map(str, shape))
    expected = f"{str(dtype).removeprefix('torch.')} [{axes}] {promise}".strip()
    return f"batch[{use.name!r}], which {use.reader} reads, must be {expected}, got {found}"


def _find_form(use: Use, value: object, known: dict[str, int]) -> str | None:
    """Find a type or a shape that breaks a contract, and remember the lengths of its axes."""
    contract = CONTRACTS[use.own]
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}; give a tensor, as torch.from_numpy or torch.tensor makes"
    got = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if way := _find_layout(contract, value):
        return f"{got}; {way}"
    if value.ndim != len(contract.shape):
        return f"{got}; give {len(contract.shape)} axes"
    for axis, length in zip(contract.shape, value.shape, strict=True):
        if axis in ("b", "k", "m") and known.setdefault(str(axis), length) != length:
            rows = "rows" if axis == "b" else "placements" if axis == "k" else "objects"
            return f"{got}; give as many {rows} as the other names of the batch have"
        if isinstance(axis, int) and length != axis:
            return f"{got}; give {axis} in the axis of length {length}"
    if value.dtype != contract.dtype:
        return f"{got}; {_convert(contract.dtype, value)}"
    return None


def _find_layout(contract: Contract, value: Tensor) -> str | None:
    """Name the way out for a common layout of images or boxes that is not ours."""
    shape = tuple(value.shape)
    if contract.shape == _IMAGE.shape:
        if len(shape) == 4 and shape[1] != 3 and shape[3] in (1, 3, 4):
            return "channels come first: permute(0, 3, 1, 2)"
        if len(shape) == 4 and shape[1] == 1:
            return "repeat gray in three channels: expand(-1, 3, -1, -1)"
        if len(shape) == 4 and shape[1] == 4:
            return "leave out the transparency: [:, :3]"
        if len(shape) == 3:
            return "add the axis of rows: [None]"
        if len(shape) == 5:
            return "the frames of a video are rows of a batch: flatten(0, 1)"
    if contract.shape[2:] == (4, 2) and len(shape) == 3 and shape[-1] == 8:
        return "cut the eight numbers into corners: unflatten(-1, (4, 2))"
    return None


def _convert(dtype: torch.dtype, value: Tensor) -> str:
    """Name the conversion to a type."""
    if dtype == torch.bool:
        return "convert it with .bool()"
    if dtype == torch.int64:
        return "convert it with .long()" if not value.is_floating_point() else "numbers are whole: .long()"
    if value.dtype == torch.uint8:
        return "convert it with .float() / 255"
    return "convert it with .float()"
