"""The one kernel under every implanter: warp a patch into the bounding box of its quad, and touch no more.

A patch covers little of a photograph, so nothing here has the size of a frame but the copy of the scene that
becomes the image. Placements composite in index order, a later one over an earlier one, with premultiplied
alpha: `image = scene * (1 - alpha) + color`. Where a patch is magnified it is interpolated bilinearly; where
it is minified, a pixel shows the mean of the texels that it covers.

References:
    Porter and Duff (1984), Compositing digital images, the operator "over".
    Crow (1984), Summed-area tables for texture mapping.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.tree import constant, flatten_rows, is_concrete, is_traced
from fpatch.ops.color import luma
from fpatch.ops.geometry import adjugate, quad_bounds, quad_to_homography
from fpatch.ops.sampling import is_deterministic_gpu, sample_in_order

REGION_STEP_PX = 16
"""Sides of regions are multiples of it, so that few shapes are met in a run."""
OUTSIDE = -9.0
"""A place in `grid_sample`'s coordinates that no patch reaches."""
ROUNDING = 1e-7
"""Below what a mean, a difference of sums, is 0."""
LARGEST_GAIN = 4.0
"""By how much, and by one over how much, brightness matching may scale a patch."""


def implant_quads(
    scene: Float[Tensor, "b 3 h w"],
    patches: Mapping[str, Tensor],
    names: tuple[str, ...],
    quads: Float[Tensor, "b k 4 2"],
    quad_patch: Int64[Tensor, "b k"],
    opacity: Float[Tensor, "b k"],
    masks: Mapping[str, Tensor] | None = None,
    antialias: bool = True,
    match_brightness: bool = False,
) -> Float[Tensor, "b 3 h w"]:
    """Draw patches into quads.

    Args:
        scene: Clean photographs, 0..1.
        patches: Per name [3, h, w] or [b, 3, h, w], 0..1.
        names: What `quad_patch` counts.
        quads: Corners in pixels of `scene`; they may leave it.
        quad_patch: Which patch each placement shows.
        opacity: 0 takes a placement out bit for bit, whatever the patch holds.
        masks: Per name [1, h, w], 0..1, of any size; a patch without one is opaque.
        antialias: Average where a patch is minified; otherwise interpolate there too.
        match_brightness: Scale each placement to the mean luma that the scene has under its mask, by a gain
            within [1/4, 4] that has no gradient.

    Returns:
        Images, differentiable in the patches and the scene.

    Raises:
        ValueError: For a name or a mask of no patch, a patch without three channels, an index of no name, or
            a placement of opacity above 0 whose corners are not finite. Where values cannot be read, that
            placement is left out.
    """
    b, _, h, w = scene.shape
    _check_patches(patches, quad_patch, names)
    present = _find_present(quads, opacity)
    unit = constant([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], quads)
    quads = torch.where(present[..., None, None], quads, unit)
    atlas, sizes = _make_atlas(patches, names, masks or {}, b)
    bounds = quad_bounds(quads)
    region_h, region_w = _region_size(bounds, h, w)
    left = bounds[..., 0].floor().clamp(0, w - region_w)
    top = bounds[..., 1].floor().clamp(0, h - region_h)

    # Which point of its patch does every pixel of every region show?
    x = left[..., None, None] + torch.arange(region_w, device=scene.device) + 0.5
    y = top[..., None, None] + torch.arange(region_h, device=scene.device)[:, None] + 0.5
    m = adjugate(quad_to_homography(quads))[..., None, None]
    u, v, depth = (m[:, :, i, 0] * x + m[:, :, i, 1] * y + m[:, :, i, 2] for i in range(3))
    size = sizes[quad_patch][..., None, None, :]
    unit_point = torch.stack([u / depth, v / depth], dim=-1)
    point = unit_point * size
    # Up to its edges a patch is opaque, and beyond them it is not there: what is feathered into the pixels
    # around would be cut by a smaller region. The bounds are for quads that are not convex, which may reach
    # beyond them through infinity.
    x0, y0, x1, y1 = bounds[..., None, None].unbind(2)
    covered = ((point >= 0) & (point <= size)).all(-1) & (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    footprint = _footprint(m, unit_point, depth) * size if antialias else torch.zeros_like(point)
    seen = _show(atlas, sizes, quad_patch, point, footprint, covered)
    alpha = seen[:, :, 3:] if masks else covered[:, :, None].to(seen)
    color, alpha = (x * (opacity * present)[..., None, None, None] for x in (seen[:, :, :3], alpha.detach()))

    base = top.long() * w + left.long()  # in float32 it would be exact up to 2**24 pixels only
    offset = (torch.arange(region_h, device=scene.device)[:, None] * w) + torch.arange(
        region_w, device=scene.device
    )
    index = base[..., None] + offset.flatten()
    color, alpha = color.flatten(-2), alpha.flatten(-2)
    if match_brightness:
        below = luma(scene).flatten(-2).expand(b, index.shape[1], -1).gather(-1, index)
        color = _match_brightness(color, alpha, below[:, :, None])
    image: Any = _Over.apply(scene.flatten(-2), color, alpha, index)
    return image.unflatten(-1, (h, w))


def _check_patches(patches: Mapping[str, Tensor], quad_patch: Tensor, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in patches:
            raise ValueError(f"implant(names): no patch {name!r}; {nearest(name, patches)}")
    if is_concrete(quad_patch) and bool(((quad_patch < 0) | (quad_patch >= len(names))).any()):
        raise ValueError(
            f"implant: quad_patch must count the {len(names)} patches {list(names)} from 0, got "
            f"{sorted(set(quad_patch.flatten().tolist()))}"
        )


def _find_present(quads: Tensor, opacity: Tensor) -> Tensor:
    """Which placements are drawn."""
    finite, present = quads.isfinite().flatten(-2).all(-1), opacity > 0
    if is_concrete(quads) and is_concrete(opacity) and bool((present & ~finite).any()):
        rows = (present & ~finite).any(-1).nonzero()[:, 0].tolist()
        raise ValueError(
            f"implant: quads in rows {rows} of the batch have corners that are not finite, but are declared "
            "present; give their corners, or set quad_valid to False"
        )
    return present & finite


def _make_atlas(
    patches: Mapping[str, Tensor], names: tuple[str, ...], masks: Mapping[str, Tensor], b: int
) -> tuple[Tensor, Tensor]:
    """All patches, padded to one size; if there are masks, premultiplied, with alpha as fourth channel.

    Returns:
        [1 or b, n, 3 or 4, h, w], and their true sizes (w, h) [n, 2].
    """
    for name in masks:
        if name not in names:
            raise ValueError(
                f"implant: there is a mask for {name!r}, which is no patch; patches: {list(names)}"
            )
    height = max(patches[name].shape[-2] for name in names)
    width = max(patches[name].shape[-1] for name in names)
    rows = b if any(patches[name].ndim == 4 for name in names) else 1
    pages, sizes = [], []
    for name in names:
        patch = patches[name]
        if patch.shape[-3] != 3:
            raise ValueError(
                f"implant: patch {name!r} has shape {list(patch.shape)}; it needs 3 channels: "
                "put create.stack(3) before the implant"
            )
        size = patch.shape[-2:]
        page = patch if patch.ndim == 4 else patch[None]
        if masks:
            alpha = patch.new_ones(1, *size)
            if name in masks:
                mask = masks[name].to(patch, non_blocking=True)[None]
                alpha = F.interpolate(mask, size, mode="bilinear", antialias=True)[0].clamp(0.0, 1.0)
            page = torch.cat([page * alpha, alpha.expand(len(page), -1, -1, -1)], dim=1)
        pages.append(F.pad(page, (0, width - size[1], 0, height - size[0])).expand(rows, -1, -1, -1))
        sizes.append(size)
    atlas = torch.stack(pages, dim=1)
    return atlas, constant([[w, h] for h, w in sizes], atlas)


def _footprint(m: Tensor, unit_point: Tensor, depth: Tensor) -> Tensor:
    """Sides of the box that a pixel covers in the unit square: lengths of the rows of the Jacobian there."""
    slope = m[:, :, :2, :2] - unit_point.movedim(-1, 2)[:, :, :, None] * m[:, :, 2:, :2]
    return slope.square().sum(3).sqrt().movedim(2, -1) / depth.abs()[..., None]


def _show(
    atlas: Tensor, sizes: Tensor, quad_patch: Tensor, point: Tensor, footprint: Tensor, covered: Tensor
) -> Tensor:
    """What every point of the regions shows, [b, k, c, y, x], and 0 where no patch is."""
    minified = covered & (footprint > 1).any(-1)
    magnified, size = covered & ~minified, sizes[quad_patch][..., None, None, :]
    seen = atlas.new_zeros((*quad_patch.shape, atlas.shape[2], *covered.shape[2:]))
    if not is_concrete(magnified) or bool(magnified.any()):
        seen = seen + _interpolate(atlas, quad_patch, point, size, magnified)
    if not is_concrete(minified) or bool(minified.any()):
        seen = seen + _average(atlas, sizes, quad_patch, point, footprint, minified)
    return seen


def _interpolate(atlas: Tensor, quad_patch: Tensor, point: Tensor, size: Tensor, where: Tensor) -> Tensor:
    """Patches at points [b, k, y, x, 2], bilinearly, and 0 elsewhere; [b, k, c, y, x]."""
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
    """Means of patches over boxes about points, as far as they lie inside, and 0 elsewhere.

    Shapes: point and width [b, k, y, x, 2], where [b, k, y, x], result [b, k, c, y, x].

    A side is at least one texel, where the mean is what bilinear interpolation gives. It is a difference of
    four entries in a table of the sums of all texels above and to the left; the tables lie side by side, with
    a column between them, so that rounding does not reach the neighbor.
    """
    rows, num, _, h, w = atlas.shape
    tables = F.pad(_running_sums(atlas.double()), (2, 0, 1, 0)).permute(2, 3, 0, 1, 4).flatten(2)
    # where values cannot be read, all points are computed
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
    # each corner is an image of its own, because threads share images, not the pixels of one
    found = _sample(tables.expand(4, -1, -1, -1), corners[:, None], align_corners=True)
    above_left, above, before, whole = found[:, :, 0]
    mean = ((whole - above - before + above_left) / area).to(atlas)
    # what rounding leaves of nothing is nothing, with the gradient of the mean
    mean = mean - torch.where(mean < ROUNDING, mean, 0.0).detach()
    drawn = mean.new_zeros(len(mean), where.numel()).index_copy(1, index, mean)
    return drawn.unflatten(1, where.shape).movedim(0, 2)


def _sample(textures: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    """`F.grid_sample`, 0 outside; without atomics on a GPU where torch is asked to be deterministic."""
    if is_deterministic_gpu(textures):
        return sample_in_order(textures, grid, align_corners)
    return F.grid_sample(textures, grid, "bilinear", "zeros", align_corners=align_corners)


def _running_sums(x: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h w"]:
    """Sums of all above and to the left; by products where torch has no deterministic `cumsum` on a GPU."""
    if is_deterministic_gpu(x):
        return x.new_ones([x.shape[-2]] * 2).tril() @ x @ x.new_ones([x.shape[-1]] * 2).triu()
    return x.cumsum(-2).cumsum(-1)


def _match_brightness(color: Tensor, alpha: Tensor, below: Tensor) -> Tensor:
    """Premultiplied color [b, k, 3, n] with the mean luma of what lies below, as far as the gain allows."""
    shown = luma(color[..., None])[..., 0]
    wanted, found = (_sum_exactly(x) for x in (alpha * below, shown))
    gain = (wanted / found.clamp(min=2.0**-32)).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    scaled = color * gain.to(color)
    return torch.where(scaled > alpha, alpha, scaled)  # the minimum halves the gradient where they are equal


def _sum_exactly(x: Tensor) -> Tensor:
    """Sum over the last axis in steps of 2 ** -32, without a gradient.

    A sum of integers has the same bits however a region pads it.
    """
    return (x.double() * 2**32).round().long().sum(-1, keepdim=True).double() / 2**32


def _region_size(bounds: Tensor, h: int, w: int) -> tuple[int, int]:
    """Height and width of the region: what holds the batch's largest quad, or else the whole frame.

    Where the quads have no values (under vmap or while compiling) the region is the frame. On another device
    than the CPU the host waits for two numbers. A pixel's value does not depend on the size of the region
    that it is computed in.
    """
    if is_traced(bounds):
        return h, w
    extent_x, extent_y = (bounds[..., 2:] - bounds[..., :2].floor()).flatten(0, -2).amax(0).tolist()
    return _round_up(extent_y + 2, h), _round_up(extent_x + 2, w)


def _round_up(extent: float, limit: int) -> int:
    return min(limit, REGION_STEP_PX * math.ceil(min(extent, limit) / REGION_STEP_PX))


class _Over(torch.autograd.Function):
    """`scene` under k regions, in index order; the backward attenuates in the opposite order.

    Shapes: scene [b, 3, h*w], color [b, k, 3, n], alpha [b, k, 1, n], index [b, k, n] into h*w.
    """

    @staticmethod
    def forward(scene: Tensor, color: Tensor, alpha: Tensor, index: Tensor) -> Tensor:
        image = scene.clone()
        for j in range(index.shape[1]):
            where = index[:, j, None].expand(-1, 3, -1)
            below, a = image.gather(2, where), alpha[:, j]
            # a pixel that the patch does not touch keeps its bits, even under a patch of NaN
            image.scatter_(2, where, torch.where(a == 0, below, below * (1 - a) + color[:, j]))
        return image

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        below, color = _Under.apply(*grads, *ctx.saved_tensors)  # type: ignore[misc]
        return below if ctx.needs_input_grad[0] else None, color, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return flatten_rows(_Over.apply, info.batch_size, in_dims, *inputs), 0


class _Under(torch.autograd.Function):
    """The gradients of `_Over` in the scene and in the colors.

    Shapes: grad [b, 3, h*w], alpha [b, k, 1, n], index [b, k, n].
    """

    @staticmethod
    def forward(grad: Tensor, alpha: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        grad, colors = grad.clone(), []
        for j in reversed(range(index.shape[1])):
            where = index[:, j, None].expand(-1, 3, -1)
            above, a = grad.gather(2, where), alpha[:, j]
            colors.append(torch.where(a == 0, torch.zeros_like(above), above))
            grad.scatter_(2, where, torch.where(a == 0, above, above * (1 - a)))
        return grad, torch.stack(colors[::-1], dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("an implant has first derivatives only")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, tuple[int, int]]:
        return flatten_rows(_Under.apply, info.batch_size, in_dims, *inputs), (0, 0)
