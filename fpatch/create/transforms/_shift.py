"""Shift the patch of each row by its own offset, with the caller's rule for the edges."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.create._shapes import to_rows

Fold = Callable[[Tensor, int], Tensor]
"""A map from any positions on a line of length n, `(positions, n)`, to positions in [0, n)."""


def shift_rows(
    patch: Tensor, x_frac: Float[Tensor, " b"], y_frac: Float[Tensor, " b"], fold: Fold
) -> Float[Tensor, "b c h w"]:
    """Shift patches by whole pixels.

    Args:
        patch: [c, h, w] or [b, c, h, w].
        x_frac: To the right, as a fraction of the patch's width.
        y_frac: Down, as a fraction of its height.
        fold: Maps a position outside the patch to the pixel that fills it.
    """
    rows = to_rows(patch, len(x_frac))
    rows = torch.take_along_dim(rows, _source(x_frac, rows.shape[-1], fold)[:, None, None, :], dim=-1)
    return torch.take_along_dim(rows, _source(y_frac, rows.shape[-2], fold)[:, None, :, None], dim=-2)


def _source(frac: Tensor, size: int, fold: Fold) -> Int64[Tensor, "b n"]:
    offset = (frac * size).round().long()
    return fold(torch.arange(size, device=frac.device) - offset[:, None], size)
