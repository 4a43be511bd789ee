"""Quads, boxes and homographies.

Convention: continuous pixel coordinates. (0, 0) is the outer top-left corner of the top-left pixel, and the
center of the pixel in row i and column j is (j + 0.5, i + 0.5). Boxes are xyxy. The corners of a quad are
those of the upright patch: top-left, top-right, bottom-right, bottom-left.

Everything here is elementwise arithmetic in a fixed order, so that a row has the same bits in any batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch.core.types import Values

LABELS = ("quads", "quad_valid", "boxes", "box_valid")
"""What a stage that moves the pixels must move with them, where it is there."""

SMALLEST_SHARE = 0.25
"""A box that keeps less of its area inside the frame is no longer valid."""


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


def scale_matrix(
    scale: Float[Tensor, "b 2"], origin: Float[Tensor, "b 2"], target: Float[Tensor, "b 2"]
) -> Float[Tensor, "b 3 3"]:
    """Scale along x and y so that `origin` comes to lie on `target`."""
    (a, d), (c, f) = scale.unbind(-1), (target - scale * origin).unbind(-1)
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, zero, c, zero, d, f, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def tilt_matrix(
    about_x_deg: Float[Tensor, " b"],
    about_y_deg: Float[Tensor, " b"],
    focal_px: float,
    center: tuple[float, float],
) -> Float[Tensor, "b 3 3"]:
    """The view of a plane turned about x, then about y, through its point on the optical axis.

    The plane is seen unturned as it is. Positive angles move its top and its right side away.

    Args:
        about_x_deg: First rotation.
        about_y_deg: Second rotation.
        focal_px: Distance of the camera from the plane's center, in pixels of the unturned view.
        center: Where the optical axis meets the frame.

    References:
        Hartley and Zisserman (2004), Multiple View Geometry, section 8.1.1: H = K [r1 r2 t].
    """
    # double: float32 sin and cos have other last bits in the vectorized part of a tensor than in its tail
    x, y = (torch.deg2rad(angle.double()) for angle in (about_x_deg, about_y_deg))
    (cos_x, sin_x), (cos_y, sin_y), (cx, cy) = (x.cos(), x.sin()), (y.cos(), y.sin()), center
    g, h = sin_y / focal_px, -sin_x * cos_y / focal_px
    top, middle = (cos_y + cx * g, sin_x * sin_y + cx * h), (cy * g, cos_x + cy * h)
    rows = [
        *top, cx - top[0] * cx - top[1] * cy,
        *middle, cy - middle[0] * cx - middle[1] * cy,
        g, h, 1 - g * cx - h * cy,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).float().unflatten(-1, (3, 3))


def warp_image(image: Float[Tensor, "b c h w"], matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b c h w"]:
    """An image moved within its frame by a homography in pixels: bilinear, edges repeated."""
    h, w = image.shape[-2:]
    inverse = adjugate(matrix)
    m = inverse / inverse[:, 2:, 2:]
    # from pixels to the coordinates of grid_sample, -1 to 1; terms of x and of y are small until they meet
    m = torch.stack([m[:, 0] * (2 / w) - m[:, 2], m[:, 1] * (2 / h) - m[:, 2], m[:, 2]], dim=1)
    m = m[..., None, None]
    x = torch.arange(w, device=image.device) + 0.5
    y = (torch.arange(h, device=image.device) + 0.5)[:, None]
    from_x, from_y, depth = (m[:, i, 0] * x + (m[:, i, 1] * y + m[:, i, 2]) for i in range(3))
    grid = torch.stack([from_x / depth, from_y / depth], dim=-1)
    return F.grid_sample(image, grid, "bilinear", "border", align_corners=False)


def move_labels(
    values: Values,
    matrix: Float[Tensor, "b 3 3"],
    size: tuple[int, int],
    on: Bool[Tensor, " b"] | None = None,
) -> Values:
    """Quads and boxes moved by the homography that moved the pixels.

    A corner keeps its place in its quad, mirrored or not. A box becomes the part inside the frame of the box
    around its moved corners. What reaches behind the camera is no longer valid, nor is a box of which less
    than `SMALLEST_SHARE` is left.

    Args:
        values: May hold any of `LABELS`.
        matrix: In pixels, positive in its last entry.
        size: Height and width of the frame that they are moved into.
        on: Which rows are moved; None: all.

    Returns:
        Those of `LABELS` that are in `values`.
    """
    h, w = size
    moved = {name: values[name] for name in LABELS if name in values}
    if "quads" in values:
        moved["quads"] = _project_quads(matrix, values["quads"])
        if "quad_valid" in values:
            moved["quad_valid"] = values["quad_valid"] & _in_front(matrix, values["quads"])
    if "boxes" in values:
        corners = box_corners(values["boxes"])
        bounds = quad_bounds(_project_quads(matrix, corners))
        moved["boxes"] = torch.stack([bounds[..., i].clamp(0, s) for i, s in enumerate((w, h, w, h))], dim=-1)
        if "box_valid" in values:
            kept = box_area(moved["boxes"]) >= SMALLEST_SHARE * box_area(bounds)
            moved["box_valid"] = values["box_valid"] & kept & _in_front(matrix, corners)
    if on is None:
        return moved
    return {
        name: torch.where(on.view(-1, *(1,) * (value.ndim - 1)), value, values[name])
        for name, value in moved.items()
    }


def move_view(values: Values, matrix: Float[Tensor, "b 3 3"], on: Bool[Tensor, " b"] | None = None) -> Values:
    """The scene moved within its frame by a homography, and its quads and boxes with it."""
    scene = values["scene"]
    moved = warp_image(scene, matrix)
    if on is not None:
        moved = torch.where(on[:, None, None, None], moved, scene)
    return {"scene": moved, **move_labels(values, matrix, (scene.shape[-2], scene.shape[-1]), on)}


def _project_quads(
    matrix: Float[Tensor, "b 3 3"], quads: Float[Tensor, "b k 4 2"]
) -> Float[Tensor, "b k 4 2"]:
    return project_points(matrix, quads.flatten(1, 2)).unflatten(1, (-1, 4))


def _in_front(matrix: Float[Tensor, "b 3 3"], quads: Float[Tensor, "b k 4 2"]) -> Bool[Tensor, "b k"]:
    """Whether all corners stay on the visible side of the plane; an absent quad does not."""
    (x, y), (g, h, i) = quads.unbind(-1), matrix[:, 2, :, None, None].unbind(1)
    return (g * x + h * y + i > 0).all(-1)
