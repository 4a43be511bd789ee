"""The textures of patches, and their values at points: interpolated where magnified, averaged where minified.

References:
    Crow (1984), Summed-area tables for texture mapping.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fpatch.core.tree import constant, is_concrete
from fpatch.ops.sampling import is_deterministic_gpu, sample_in_order

OUTSIDE = -9.0
"""A coordinate of `grid_sample` outside every patch."""
ROUNDING = 1e-7
"""Means below it, which are differences of sums, are 0."""


def make_atlas(
    patches: Mapping[str, Tensor], names: tuple[str, ...], masks: Mapping[str, Tensor], b: int
) -> tuple[Tensor, Tensor]:
    """Pad all patches to one size; with masks, premultiply them and add alpha as a fourth channel.

    Returns:
        The atlas [1 or b, n, 3 or 4, h, w], and the sizes (w, h) of the patches, [n, 2].

    Raises:
        ValueError: For a mask of no patch, or a patch without three channels.
    """
    for name in masks:
        if name not in names:
            raise ValueError(f"implant: the mask {name!r} belongs to no patch; patches: {list(names)}")
    height = max(patches[name].shape[-2] for name in names)
    width = max(patches[name].shape[-1] for name in names)
    rows = b if any(patches[name].ndim == 4 for name in names) else 1
    pages, sizes = [], []
    for name in names:
        patch = patches[name]
        if patch.shape[-3] != 3:
            raise ValueError(
                f"implant: patch {name!r} must have 3 channels, got shape {list(patch.shape)}; put "
                "create.stack(3) before the implant"
            )
        size = patch.shape[-2:]
        page = patch if patch.ndim == 4 else patch[None]
        if masks:
            alpha = patch.new_ones(1, *size)
            if name in masks:
                if masks[name].ndim != 3 or len(masks[name]) != 1:
                    raise ValueError(
                        f"implant: the mask {name!r} must be [1, height, width], got shape "
                        f"{list(masks[name].shape)}; give one channel, such as mask[:1], for all colors"
                    )
                mask = masks[name].to(patch, non_blocking=True)[None]
                alpha = F.interpolate(mask, size, mode="bilinear", antialias=True)[0].clamp(0.0, 1.0)
            page = torch.cat([page * alpha, alpha.expand(len(page), -1, -1, -1)], dim=1)
        pages.append(F.pad(page, (0, width - size[1], 0, height - size[0])).expand(rows, -1, -1, -1))
        sizes.append(size)
    atlas = torch.stack(pages, dim=1)
    return atlas, constant([[w, h] for h, w in sizes], atlas)


def show_textures(
    atlas: Tensor, sizes: Tensor, quad_patch: Tensor, point: Tensor, footprint: Tensor, covered: Tensor
) -> Tensor:
    """The values of patches at the points of the regions, [b, k, c, y, x]; 0 outside the patches."""
    minified = covered & (footprint > 1).any(-1)
    magnified, size = covered & ~minified, sizes[quad_patch][..., None, None, :]
    seen = atlas.new_zeros((*quad_patch.shape, atlas.shape[2], *covered.shape[2:]))
    if not is_concrete(magnified) or bool(magnified.any()):
        seen = seen + _interpolate(atlas, quad_patch, point, size, magnified)
    if not is_concrete(minified) or bool(minified.any()):
        seen = seen + _average(atlas, sizes, quad_patch, point, footprint, minified)
    return seen


def _interpolate(atlas: Tensor, quad_patch: Tensor, point: Tensor, size: Tensor, where: Tensor) -> Tensor:
    """Interpolate patches bilinearly at points [b, k, y, x, 2], and 0 elsewhere; [b, k, c, y, x]."""
    b, num = len(quad_patch), atlas.shape[1]
    chosen = torch.arange(b, device=atlas.device)[:, None] * num + quad_patch
    textures = atlas.expand(b, -1, -1, -1, -1).flatten(0, 1).index_select(0, chosen.flatten())
    point = point.clamp(min=0.5).minimum(size - 0.5)
    grid = 2 * point / constant([atlas.shape[-1], atlas.shape[-2]], point) - 1
    grid = torch.where(where[..., None], grid, torch.full_like(grid, OUTSIDE))
    seen = _sample(textures, grid.flatten(0, 1), align_corners=False)
    return seen.unflatten(0, quad_patch.shape)


def _average(
    atlas: Tensor, sizes: Tensor, quad_patch: Tensor, point: Tensor, width: Tensor, where: Tensor
) -> Tensor:
    """Average patches over boxes about points, clipped to the patch, and 0 elsewhere.

    Shapes: point and width [b, k, y, x, 2], where [b, k, y, x], result [b, k, c, y, x].

    A side is at least one texel, for which the mean equals bilinear interpolation. The mean is a difference
    of four entries of a summed-area table. The tables lie side by side, with a column between them, so that
    rounding does not reach the neighbor.
    """
    rows, num, _, h, w = atlas.shape
    tables = F.pad(_running_sums(atlas.double()), (2, 0, 1, 0)).permute(2, 3, 0, 1, 4).flatten(2)
    # under vmap and while compiling, all points are computed
    asked = where.flatten()
    index = asked.nonzero()[:, 0] if is_concrete(where) else torch.arange(len(asked), device=asked.device)
    asked, point, width = (x.flatten(0, -2).index_select(0, index) for x in (asked[:, None], point, width))
    row = index // where[0].numel()
    patch = quad_patch.flatten().index_select(0, index // where[0, 0].numel())
    column = (row % rows * num + patch) * (w + 2) + 1
    point, width = (torch.where(asked, x, 0.0) for x in (point, width))
    low, high = (point - width.clamp(min=1) / 2).clamp(min=0), point + width.clamp(min=1) / 2
    ends = torch.stack([low, high.minimum(sizes.index_select(0, patch))], dim=1).double()
    area = torch.where(asked[:, 0], (ends[:, 1] - ends[:, 0]).prod(-1), 1.0)
    x = 2 * (ends[..., 0] + column[:, None]) / (tables.shape[-1] - 1) - 1
    y = torch.where(asked, 2 * ends[..., 1] / h - 1, OUTSIDE)
    (left, right), (top, bottom) = x.unbind(1), y.unbind(1)
    corners = torch.stack(
        [torch.stack([left, right, left, right]), torch.stack([top, top, bottom, bottom])], -1
    )
    # each corner is an image of its own: threads share out images, not the pixels of one
    found = _sample(tables.expand(4, -1, -1, -1), corners[:, None], align_corners=True)
    above_left, above, before, whole = found[:, :, 0]
    mean = ((whole - above - before + above_left) / area).to(atlas)
    # rounding leaves less than ROUNDING of 0; it becomes 0, with the gradient of the mean
    mean = mean - torch.where(mean < ROUNDING, mean, 0.0).detach()
    drawn = mean.new_zeros(len(mean), where.numel()).index_copy(1, index, mean)
    return drawn.unflatten(1, where.shape).movedim(0, 2)


def _sample(textures: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    """`F.grid_sample`, 0 outside; without atomics on a GPU in torch's deterministic mode."""
    if is_deterministic_gpu(textures):
        return sample_in_order(textures, grid, align_corners)
    return F.grid_sample(textures, grid, "bilinear", "zeros", align_corners=align_corners)


def _running_sums(x: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h w"]:
    """The summed-area table; by products on a GPU in deterministic mode, which lacks `cumsum`."""
    if is_deterministic_gpu(x):
        return x.new_ones([x.shape[-2]] * 2).tril() @ x @ x.new_ones([x.shape[-1]] * 2).triu()
    return x.cumsum(-2).cumsum(-1)
