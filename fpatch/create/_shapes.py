"""What the stages of this family share: shapes by name, rows, and how a patch is shown."""

from collections.abc import Mapping

from torch import Tensor

from fpatch import random
from fpatch.core.types import Range, Values

Shapes = Mapping[str, tuple[int, int, int]]
"""`{name: (channels, height, width)}`."""


def check_shapes(stage: str, shapes: Shapes) -> None:
    """Refuse shapes that no patch can have.

    Raises:
        ValueError: Naming the stage and the patch.
    """
    for name, shape in shapes.items():
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(
                f"{stage}(shapes): {name!r} must be (channels, height, width), got {tuple(shape)}"
            )


def check_names(field: str, names: Mapping[str, object], example: str) -> None:
    """Refuse a parameterization of no patch.

    Raises:
        ValueError: Naming the setting.
    """
    if not names:
        raise ValueError(f"{field} must name at least one patch, got none; e.g. {example}")


def draw_uniform(key: Tensor, shapes: Shapes, start: Range) -> dict[str, Tensor]:
    """Pixels of every patch, uniform in a range, each patch from `fold_in(key, name)`."""
    return {
        name: random.uniform(random.fold_in(key, name), tuple(shape), *start)
        for name, shape in shapes.items()
    }


def view_patches(patches: Mapping[str, Tensor]) -> Values:
    """Every patch as an image, of the first row where rows differ, and the distribution of its values."""
    images = {name: patch if patch.ndim == 3 else patch[0] for name, patch in patches.items()}
    return images | {f"{name} values": patch.flatten() for name, patch in patches.items()}


def describe_shapes(shapes: Shapes) -> str:
    """Names and sizes on one line."""
    return ", ".join(f"{name} {h} x {w} x {c}" for name, (c, h, w) in shapes.items())


def to_rows(patch: Tensor, num_rows: int) -> Tensor:
    """A patch [c, h, w] or [b, c, h, w] as [b, c, h, w]."""
    return patch if patch.ndim == 4 else patch.expand(num_rows, *patch.shape)
