"""Checks, draws and views that the create stages share."""

from collections.abc import Mapping

from torch import Tensor

from fpatch import random
from fpatch.core.names import check_distinct, check_name
from fpatch.core.types import Range, Values

Shapes = Mapping[str, tuple[int, int, int]]
"""`{name: (channels, height, width)}`."""


MOST_SIDE = 16_384
"""The longest side of a patch, in pixels."""


def check_shapes(stage: str, shapes: Shapes) -> None:
    """Check that every shape is (channels, height, width), at least 1 each.

    Raises:
        ValueError: Naming the stage and the patch.
    """
    for name, shape in shapes.items():
        if len(shape) != 3 or min(shape) < 1 or max(shape) > MOST_SIDE:
            raise ValueError(
                f"{stage}(shapes): {name!r} must be (channels, height, width), from 1 to {MOST_SIDE} each, "
                f"got {tuple(shape)}"
            )


def check_names(field: str, names: Mapping[str, object], example: str) -> None:
    """Check that a parameterization names at least one patch, and that each name can be that of a file.

    Raises:
        ValueError: Naming the setting.
    """
    if not names:
        raise ValueError(f"{field} must name at least one patch, got none; e.g. {example}")
    for name in names:
        check_name(field, name)
    check_distinct(field, names)


def draw_uniform(key: Tensor, shapes: Shapes, start: Range) -> dict[str, Tensor]:
    """Draw the pixels of each patch uniformly from a range, with the key `fold_in(key, name)`."""
    return {
        name: random.uniform(random.fold_in(key, name), tuple(shape), *start)
        for name, shape in shapes.items()
    }


def view_patches(patches: Mapping[str, Tensor]) -> Values:
    """Return each patch as an image (of the first row, if rows differ) and the values for a histogram."""
    images = {name: patch if patch.ndim == 3 else patch[0] for name, patch in patches.items()}
    return images | {f"{name} values": patch.flatten() for name, patch in patches.items()}


def describe_shapes(shapes: Shapes) -> str:
    """Return names and sizes on one line."""
    return ", ".join(f"{name} {h} x {w} x {c}" for name, (c, h, w) in shapes.items())


def to_rows(patch: Tensor, num_rows: int) -> Tensor:
    """Return a patch [c, h, w] or [b, c, h, w] as [b, c, h, w]."""
    return patch if patch.ndim == 4 else patch.expand(num_rows, *patch.shape)
