"""Move every row's patch by its own offset; what the two edges do is the caller's."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.create._shapes import to_rows

Fold = Callable[[Tensor, int], Tensor]
"""From places anywhere on a line, and its length n, to places in [0, n)."""


def shift_rows(
    patch: Tensor, x_frac: Float[Tensor, " b"], y_frac: Float[Tensor, " b"], fold: Fold
) -> Float[Tensor, "b c h w"]:
    """Shift by whole pixels.

    Args:
        patch: [c, h, w] or [b, c, h, w].
        x_frac: To the right, as a fraction of the patch's width.
        y_frac: Down, as a fraction of its height.
        fold: Where a place outside the patch takes its pixel from.
    """
    rows = to_rows(patch, len(x_frac))
    rows = torch.take_along_dim(rows, _source(x_frac, rows.shape[-1], fold)[:, None, None, :], dim=-1)
    return torch.take_along_dim(rows, _source(y_frac, rows.shape[-2], fold)[:, None, :, None], dim=-2)


def _source(frac: Tensor, size: int, fold: Fold) -> Int64[Tensor, "b n"]:
    offset = (frac * size).round().long()
    return fold(torch.arange(size, device=frac.device) - offset[:, None], size)
