"""The implant kernel: warp each patch into the bounding box of its quad, its region, and no further.

A patch covers a small part of an image, so only the copy of the scene that becomes the image has its size.
Placements composite in index order, a later one over an earlier one, with premultiplied alpha:
`image = scene * (1 - alpha) + color`. A magnified patch is interpolated bilinearly. In a minified patch, a
pixel shows the mean of the texels that it covers.

References:
    Porter and Duff (1984), Compositing digital images, the operator "over".
    Crow (1984), Summed-area tables for texture mapping.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.tree import constant, is_concrete, is_traced
from fpatch.ops.color import luma
from fpatch.ops.geometry import adjugate, quad_bounds, quad_to_homography
from fpatch.ops.over import composite
from fpatch.ops.textures import make_atlas, show_textures

REGION_STEP_PX = 16
"""Sides of regions are multiples of it, so that a run has few shapes."""
LARGEST_GAIN = 4.0
"""The largest gain of brightness matching; the smallest is one over it."""


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
    """Draw patches into quads of an image.

    Convention: continuous pixel coordinates, (0, 0) the outer corner of the top-left pixel, whose center is
    (0.5, 0.5). Corners are those of the upright patch: top-left, top-right, bottom-right, bottom-left.

    Args:
        scene: Clean images, 0..1.
        patches: By name [3, h, w] or [b, 3, h, w], 0..1.
        names: The patches that `quad_patch` indexes.
        quads: Corners in pixels of `scene`; they may lie outside.
        quad_patch: The index of the patch that each placement shows.
        opacity: 0..1; 0 removes a placement bit for bit, whatever the patch holds.
        masks: By name [1, h, w], 0..1, of any size; a patch without a mask is opaque.
        antialias: Average where a patch is minified; otherwise interpolate there too.
        match_brightness: Scale each placement to the mean luma of the scene under its mask, by a gain within
            [1/4, 4] that has no gradient.

    Returns:
        Images, differentiable in the patches and the scene.

    Raises:
        ValueError: For a name or a mask of no patch, a patch without three channels, an index of no name, or
            a placement of opacity above 0 whose corners are not finite. Under vmap and while compiling, where
            values cannot be read, such a placement is left out.

    References:
        Heckbert (1989), Fundamentals of Texture Mapping and Image Warping, section 2.2.3.

    Example:
        >>> import torch
        >>> from fpatch.ops.region import implant_quads
        >>> quads = torch.tensor([[[[1.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 1.0]]]])
        >>> patch, index = torch.ones(3, 2, 2), torch.zeros(1, 1, dtype=torch.int64)
        >>> implant_quads(torch.zeros(1, 3, 2, 4), {"a": patch}, ("a",), quads, index, torch.ones(1, 1))[0, 0]
        tensor([[0., 1., 1., 0.],
                [0., 0., 0., 0.]])
    """
    b, _, h, w = scene.shape
    _check_patches(patches, quad_patch, names)
    present = _find_present(quads, opacity)
    unit = constant([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], quads)
    quads = torch.where(present[..., None, None], quads, unit)
    atlas, sizes = make_atlas(patches, names, masks or {}, b)
    bounds = quad_bounds(quads)
    region_h, region_w = _region_size(bounds, h, w)
    left = bounds[..., 0].floor().clamp(0, w - region_w)
    top = bounds[..., 1].floor().clamp(0, h - region_h)
    columns, rows = (torch.arange(n, device=scene.device) for n in (region_w, region_h))
    x = left[..., None, None] + columns + 0.5
    y = top[..., None, None] + rows[:, None] + 0.5
    point, footprint, covered = _locate(quads, bounds, sizes[quad_patch], x, y, antialias)
    seen = show_textures(atlas, sizes, quad_patch, point, footprint, covered)
    alpha = seen[:, :, 3:] if masks else covered[:, :, None].to(seen)
    color, alpha = (x * (opacity * present)[..., None, None, None] for x in (seen[:, :, :3], alpha.detach()))
    color, alpha = color.flatten(-2), alpha.flatten(-2)
    base = top.long() * w + left.long()  # float32 would be exact only up to 2**24 pixels
    index = base[..., None] + (rows[:, None] * w + columns).flatten()
    if match_brightness:
        below = luma(scene).flatten(-2).expand(b, index.shape[1], -1).gather(-1, index)
        color = _match_brightness(color, alpha, below[:, :, None])
    return composite(scene.flatten(-2), color, alpha, index).unflatten(-1, (h, w))


def _locate(
    quads: Tensor, bounds: Tensor, sizes: Tensor, x: Tensor, y: Tensor, antialias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The point of its patch that every pixel (x, y) of a region shows.

    Returns:
        The point and the sides of the pixel's footprint about it, in texels, [b, k, y, x, 2], with sides 0
        unless antialiased; and whether the point lies in the patch, [b, k, y, x].
    """
    m = adjugate(quad_to_homography(quads))[..., None, None]
    u, v, depth = (m[:, :, i, 0] * x + m[:, :, i, 1] * y + m[:, :, i, 2] for i in range(3))
    size = sizes[..., None, None, :]
    unit_point = torch.stack([u / depth, v / depth], dim=-1)
    point = unit_point * size
    # A patch is opaque up to its edges: feathering beyond them would be cut by a smaller region. The bounds
    # are for quads that are not convex, whose inside may reach beyond them through infinity.
    x0, y0, x1, y1 = bounds[..., None, None].unbind(2)
    covered = ((point >= 0) & (point <= size)).all(-1) & (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    footprint = _footprint(m, unit_point, depth) * size if antialias else torch.zeros_like(point)
    return point, footprint, covered


def _check_patches(patches: Mapping[str, Tensor], quad_patch: Tensor, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in patches:
            raise ValueError(f"implant(names): no patch {name!r}; {nearest(name, patches)}")
    if is_concrete(quad_patch) and bool(((quad_patch < 0) | (quad_patch >= len(names))).any()):
        raise ValueError(
            f"implant: quad_patch must index the {len(names)} patches {list(names)} from 0, got "
            f"{sorted(set(quad_patch.flatten().tolist()))}"
        )


def _find_present(quads: Tensor, opacity: Tensor) -> Tensor:
    """The placements that are drawn: of opacity above 0, with finite corners."""
    finite, present = quads.isfinite().flatten(-2).all(-1), opacity > 0
    if is_concrete(quads) and is_concrete(opacity) and bool((present & ~finite).any()):
        rows = (present & ~finite).any(-1).nonzero()[:, 0].tolist()
        raise ValueError(
            f"implant: quads in rows {rows} of the batch have corners that are not finite, but an opacity "
            "above 0; give their corners, or set quad_valid to False"
        )
    return present & finite


def _footprint(m: Tensor, unit_point: Tensor, depth: Tensor) -> Tensor:
    """The sides of a pixel's box in the unit square: lengths of the rows of the Jacobian."""
    slope = m[:, :, :2, :2] - unit_point.movedim(-1, 2)[:, :, :, None] * m[:, :, 2:, :2]
    return slope.square().sum(3).sqrt().movedim(2, -1) / depth.abs()[..., None]


def _match_brightness(color: Tensor, alpha: Tensor, below: Tensor) -> Tensor:
    """Scale premultiplied color [b, k, 3, n] to the mean luma below it, within `LARGEST_GAIN`."""
    shown = luma(color[..., None])[..., 0]
    wanted, found = (_sum_exactly(x) for x in (alpha * below, shown))
    gain = (wanted / found.clamp(min=2.0**-32)).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    scaled = color * gain.to(color)
    return torch.where(scaled > alpha, alpha, scaled)  # minimum would halve the gradient of equal values


def _sum_exactly(x: Tensor) -> Tensor:
    """Sum over the last axis in steps of 2 ** -32, without a gradient.

    A sum of integers has the same bits whatever the padding of the region.
    """
    return (x.double() * 2**32).round().long().sum(-1, keepdim=True).double() / 2**32


def _region_size(bounds: Tensor, h: int, w: int) -> tuple[int, int]:
    """The height and width of the regions: room for the largest quad of the batch, at most the whole image.

    Under vmap and while compiling, where quads have no values, the region is the whole image. On a GPU the
    host waits for two numbers. The value of a pixel does not depend on the size of the region.
    """
    if is_traced(bounds):
        return h, w
    extent_x, extent_y = (bounds[..., 2:] - bounds[..., :2].floor()).flatten(0, -2).amax(0).tolist()
    return _round_up(extent_y + 2, h), _round_up(extent_x + 2, w)


def _round_up(extent: float, limit: int) -> int:
    return min(limit, REGION_STEP_PX * math.ceil(min(extent, limit) / REGION_STEP_PX))
