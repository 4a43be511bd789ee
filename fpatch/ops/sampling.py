"""Bilinear interpolation with a deterministic gradient, on a GPU too.

The backward of `F.grid_sample` on a GPU adds by atomics, in any order. The backward of indexing sorts first
in torch's deterministic mode.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def is_deterministic_gpu(tensor: Tensor) -> bool:
    """Return whether a tensor is off the CPU and torch is in deterministic mode.

    Example:
        >>> import torch
        >>> from fpatch.ops.sampling import is_deterministic_gpu
        >>> is_deterministic_gpu(torch.zeros(1))
        False
    """
    return tensor.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


def sample_in_order(
    textures: Float[Tensor, "n c h w"], grid: Float[Tensor, "n y x 2"], align_corners: bool
) -> Float[Tensor, "n c y x"]:
    """Compute `F.grid_sample(textures, grid, "bilinear", "zeros", align_corners)`, to rounding, by indexing.

    It needs four times the memory of the result, and its backward sorts as many indices.

    Example:
        >>> import torch
        >>> from fpatch.ops.sampling import sample_in_order
        >>> texture = torch.tensor([[[[1.0, 3.0]]]])
        >>> sample_in_order(texture, torch.zeros(1, 1, 1, 2), align_corners=True)
        tensor([[[[2.]]]])
    """
    n, _, h, w = textures.shape
    x, y = (
        (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
        for g, size in zip(grid.unbind(-1), (w, h), strict=True)
    )
    texels = textures.movedim(1, -1).flatten(0, 2)
    first = torch.arange(n, device=grid.device)[:, None, None] * h
    total = torch.zeros_like(texels[:1])
    for dy in range(2):
        for dx in range(2):
            column, row = x.detach().floor() + dx, y.detach().floor() + dy
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            index = (first + row.clamp(0, h - 1).long()) * w + column.clamp(0, w - 1).long()
            # no product: a texel outside may be NaN
            total = total + torch.where(inside[..., None], weight[..., None] * texels[index], 0.0)
    return total.movedim(-1, 1)
