"""Quads, boxes and homographies.

Convention: continuous pixel coordinates. (0, 0) is the outer top-left corner of the top-left pixel, and the
center of the pixel in row i and column j is (j + 0.5, i + 0.5). Boxes are xyxy. The corners of a quad are
those of the upright patch: top-left, top-right, bottom-right, bottom-left.

Everything here is elementwise arithmetic in a fixed order, so that a row has the same bits in any batch.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def quad_to_homography(quads: Float[Tensor, "*batch 4 2"]) -> Float[Tensor, "*batch 3 3"]:
    """The homography that takes the unit square to a quad.

    References:
        Heckbert (1989), Fundamentals of Texture Mapping and Image Warping, section 2.2.3.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (corner.unbind(-1) for corner in quads.unbind(-2))
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    determinant = dx1 * dy2 - dx2 * dy1
    g = (sx * dy2 - dx2 * sy) / determinant
    h = (dx1 * sy - sx * dy1) / determinant
    rows = [x1 - x0 + g * x1, x3 - x0 + h * x3, x0, y1 - y0 + g * y1, y3 - y0 + h * y3, y0, g, h]
    return torch.stack([*rows, torch.ones_like(x0)], dim=-1).unflatten(-1, (3, 3))


def adjugate(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The inverse of a homography, up to scale, which homogeneous coordinates do not see."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    rows = [
        e * i - f * h, c * h - b * i, b * f - c * e,
        f * g - d * i, a * i - c * g, c * d - a * f,
        d * h - e * g, b * g - a * h, a * e - b * d,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def project_points(
    matrix: Float[Tensor, "*batch 3 3"], points: Float[Tensor, "*batch n 2"]
) -> Float[Tensor, "*batch n 2"]:
    """Points moved by a homography."""
    x, y = points.unbind(-1)
    (a, b, c), (d, e, f), (g, h, i) = (row[..., None, :].unbind(-1) for row in matrix.unbind(-2))
    w = g * x + h * y + i
    return torch.stack([(a * x + b * y + c) / w, (d * x + e * y + f) / w], dim=-1)


def quad_bounds(quads: Float[Tensor, "*batch 4 2"]) -> Float[Tensor, "*batch 4"]:
    """The smallest box around a quad, xyxy."""
    return torch.cat([quads.amin(-2), quads.amax(-2)], dim=-1)


def box_corners(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 2"]:
    """A box as a quad."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], dim=-1).unflatten(-1, (4, 2))


def box_area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Area in square pixels; 0 for an empty or inverted box."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def quad_area(quads: Float[Tensor, "*batch 4 2"]) -> Float[Tensor, "*batch"]:
    """Area in square pixels by the shoelace formula, positive for corners clockwise on the screen."""
    x, y = quads.unbind(-1)
    return 0.5 * (x * y.roll(-1, -1) - x.roll(-1, -1) * y).sum(-1)


def pairwise_iou(
    a: Float[Tensor, "*batch n 4"], b: Float[Tensor, "*batch m 4"]
) -> Float[Tensor, "*batch n m"]:
    """Intersection over union of every box of `a` with every box of `b`; 0 where both are empty."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    return overlap / (box_area(a) + box_area(b) - overlap).clamp(min=1e-9)


def affine_matrix(
    angle_deg: Float[Tensor, " b"],
    shear_deg: Float[Tensor, " b"],
    scale: Float[Tensor, " b"],
    shift: Float[Tensor, "b 2"],
    center: tuple[float, float],
) -> Float[Tensor, "b 3 3"]:
    """Scale, shear along x and rotate clockwise on the screen about `center`, then shift; in pixels."""
    # double: float32 sin and cos have other last bits in the vectorized part of a tensor than in its tail
    cos, sin = (f(torch.deg2rad(angle_deg.double())) for f in (torch.cos, torch.sin))
    tan = torch.tan(torch.deg2rad(shear_deg.double()))
    a, b, c, d = (m * scale.double() for m in (cos, cos * tan - sin, sin, sin * tan + cos))
    (cx, cy), (dx, dy) = center, shift.double().unbind(-1)
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    rows = [a, b, cx + dx - a * cx - b * cy, c, d, cy + dy - c * cx - d * cy, zero, zero, one]
    return torch.stack(rows, dim=-1).float().unflatten(-1, (3, 3))
