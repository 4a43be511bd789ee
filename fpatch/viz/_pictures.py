"""Pictures of a batch, and their view with the patch and without."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from fpatch.core.types import Values
from fpatch.viz.conversions import to_picture
from fpatch.viz.side_by_side import Panel, side_by_side

PICTURE = "picture"
"""The name under which drawings write."""

_SMALLEST_PX = 160
"""The least width of a picture in a view, so that its caption can be read."""


def stack_pictures(stage: str, drawn: Sequence[Any]) -> UInt8[Tensor, "b 3 h w"]:
    """Stack the drawings of all rows.

    Raises:
        ValueError: If a drawing is no image, or two have unequal sizes; the message names the rows.

    Example:
        >>> from PIL import Image
        >>> from fpatch.viz._pictures import stack_pictures
        >>> stack_pictures("drawing", [Image.new("RGB", (6, 4))] * 2).shape
        torch.Size([2, 3, 4, 6])
    """
    pictures = [to_picture(made, f"{stage}: the picture of row {i}") for i, made in enumerate(drawn)]
    for i, picture in enumerate(pictures):
        if picture.shape != pictures[0].shape:
            first, size = (f"{p.shape[2]} x {p.shape[1]}" for p in (pictures[0], picture))
            raise ValueError(
                f"{stage}: the picture of row 0 is {first} pixels, and that of row {i} is {size}; draw all "
                "rows at one size, or call fpatch.viz.unpack and draw them in a loop"
            )
    return torch.stack(pictures) if pictures else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)


def view_pictures(config: Any, values: Values, control_values: Values) -> Values:
    """Show each picture without the patch and with it, side by side; once where the patch changes none."""
    patched, without = (part[PICTURE] for part in (values, control_values))
    panels = [[Panel(p / 255, "patch")] for p in patched]
    if not torch.equal(patched, without):
        panels = [[Panel(p / 255, "no patch"), *row] for p, row in zip(without, panels, strict=True)]
    else:
        panels = [[row[0]._replace(caption="")] for row in panels]
    width = max(patched.shape[-1], _SMALLEST_PX)
    return {"control and patched": side_by_side(panels, panel_px=width)} if panels else {}
