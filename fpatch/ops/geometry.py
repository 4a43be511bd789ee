"""Quads, boxes and homographies.

Convention:
    Coordinates are continuous pixels: (0, 0) is the outer corner of the top-left pixel, and the center of the
    pixel in row i and column j is (j + 0.5, i + 0.5). Boxes are xyxy. The corners of a quad are those of the
    upright patch: top-left, top-right, bottom-right, bottom-left. Positive angles turn clockwise on screen.

All functions are elementwise arithmetic in a fixed order, so a row has the same bits in any batch. Boxes and
quads of less than float32, or of whole numbers, are computed in float32.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from fpatch.core.types import Values

LABELS = ("quads", "quad_valid", "boxes", "box_valid")
"""The values that a geometric stage must move with the pixels, if the batch holds them."""

SMALLEST_SHARE = 0.25
"""The smallest share of its area inside the frame with which a box stays valid."""


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def quad_to_homography(quads: Float[Tensor, "*batch 4 2"]) -> Float[Tensor, "*batch 3 3"]:
    """The homography that maps the unit square to a quad.

    References:
        Heckbert (1989), Fundamentals of Texture Mapping and Image Warping, section 2.2.3.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import quad_to_homography
        >>> quad_to_homography(torch.tensor([[2.0, 1.0], [6.0, 1.0], [6.0, 4.0], [2.0, 4.0]]))[:2]
        tensor([[4., 0., 2.],
                [0., 3., 1.]])
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (corner.unbind(-1) for corner in _full(quads).unbind(-2))
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    determinant = dx1 * dy2 - dx2 * dy1
    g = (sx * dy2 - dx2 * sy) / determinant
    h = (dx1 * sy - sx * dy1) / determinant
    rows = [x1 - x0 + g * x1, x3 - x0 + h * x3, x0, y1 - y0 + g * y1, y3 - y0 + h * y3, y0, g, h]
    return torch.stack([*rows, torch.ones_like(x0)], dim=-1).unflatten(-1, (3, 3))


def adjugate(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The inverse of a homography up to scale, which homogeneous coordinates ignore."""
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
    """Move points by a homography.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import project_points
        >>> shift = torch.tensor([[1.0, 0.0, 10.0], [0.0, 1.0, 20.0], [0.0, 0.0, 1.0]])
        >>> project_points(shift, torch.tensor([[1.0, 2.0]]))
        tensor([[11., 22.]])
    """
    x, y = points.unbind(-1)
    (a, b, c), (d, e, f), (g, h, i) = (row[..., None, :].unbind(-1) for row in matrix.unbind(-2))
    w = g * x + h * y + i
    return torch.stack([(a * x + b * y + c) / w, (d * x + e * y + f) / w], dim=-1)


def quad_bounds(quads: Float[Tensor, "*batch 4 2"]) -> Float[Tensor, "*batch 4"]:
    """The smallest box around a quad, xyxy.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import quad_bounds
        >>> quad_bounds(torch.tensor([[2.0, 0.0], [4.0, 2.0], [2.0, 4.0], [0.0, 2.0]]))
        tensor([0., 0., 4., 4.])
    """
    return torch.cat([quads.amin(-2), quads.amax(-2)], dim=-1)


def box_corners(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 2"]:
    """The corners of a box, as a quad.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import box_corners
        >>> box_corners(torch.tensor([0.0, 0.0, 3.0, 2.0]))[2]
        tensor([3., 2.])
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], dim=-1).unflatten(-1, (4, 2))


def box_area(boxes: Num[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """The area of a box in square pixels; 0 for an empty or inverted box.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import box_area
        >>> box_area(torch.tensor([[0.0, 0.0, 3.0, 2.0], [3.0, 0.0, 0.0, 2.0]]))
        tensor([6., 0.])
    """
    boxes = _full(boxes)
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def quad_area(quads: Float[Tensor, "*batch 4 2"]) -> Float[Tensor, "*batch"]:
    """The area of a quad in square pixels, positive for corners clockwise on the screen (shoelace formula).

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import quad_area
        >>> quad_area(torch.tensor([[2.0, 0.0], [4.0, 2.0], [2.0, 4.0], [0.0, 2.0]]))
        tensor(8.)
    """
    x, y = _full(quads).unbind(-1)
    return 0.5 * (x * y.roll(-1, -1) - x.roll(-1, -1) * y).sum(-1)


def pairwise_iou(a: Num[Tensor, "*batch n 4"], b: Num[Tensor, "*batch m 4"]) -> Float[Tensor, "*batch n m"]:
    """The intersection over union of every box of `a` with every box of `b`; 0 where both are empty.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import pairwise_iou
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0]])
        >>> pairwise_iou(boxes[:1], boxes)
        tensor([[1.0000, 0.5000]])
    """
    a, b = _full(a)[..., :, None, :], _full(b)[..., None, :, :]
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
    """The homography that scales, shears along x and rotates about `center`, then shifts.

    Args:
        angle_deg: Clockwise on the screen.
        shear_deg: Angle of the shear along x.
        scale: Factor of both axes.
        shift: (x, y) in pixels.
        center: The fixed point (x, y) of scale, shear and rotation, in pixels.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import affine_matrix, project_points
        >>> angle, zero, one = torch.tensor([90.0]), torch.zeros(1), torch.ones(1)
        >>> turn = affine_matrix(angle, zero, one, torch.zeros(1, 2), (0.0, 0.0))
        >>> project_points(turn, torch.tensor([[[1.0, 0.0]]])).round()
        tensor([[[0., 1.]]])
    """
    # double: the last bits of float32 sin and cos differ between the vectorized part of a tensor and its tail
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
    """The homography that scales along x and y and moves `origin` to `target`.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import project_points, scale_matrix
        >>> matrix = scale_matrix(torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2))
        >>> project_points(matrix, torch.tensor([[[1.0, 1.0], [2.0, 2.0]]]))
        tensor([[[0., 0.],
                 [2., 3.]]])
    """
    (a, d), (c, f) = scale.unbind(-1), (target - scale * origin).unbind(-1)
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, zero, c, zero, d, f, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def from_whole_centers(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Convert a homography from coordinates with whole pixel centers, as kornia's, to ours with halves."""
    top, middle, bottom = matrix.unbind(-2)
    rows = top + 0.5 * bottom, middle + 0.5 * bottom, bottom
    a, b, c = torch.stack(rows, dim=-2).unbind(-1)
    return torch.stack([a, b, -0.5 * a - 0.5 * b + c], dim=-1)


def tilt_matrix(
    about_x_deg: Float[Tensor, " b"],
    about_y_deg: Float[Tensor, " b"],
    focal_px: float,
    center: tuple[float, float],
) -> Float[Tensor, "b 3 3"]:
    """The view of a plane turned about x, then about y, through its point on the optical axis.

    At angles 0 the view is unchanged. Positive angles move the top and the right side of the plane away.

    Args:
        about_x_deg: The first rotation.
        about_y_deg: The second rotation.
        focal_px: The distance of the camera from the center of the plane, in pixels of the unturned view.
        center: The point (x, y) of the frame on the optical axis, in pixels.

    References:
        Hartley and Zisserman (2004), Multiple View Geometry, section 8.1.1: H = K [r1 r2 t].

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import project_points, tilt_matrix
        >>> back = tilt_matrix(torch.zeros(1), torch.tensor([60.0]), 100.0, (50.0, 50.0))
        >>> project_points(back, torch.tensor([[[50.0, 0.0], [100.0, 0.0]]])).round()
        tensor([[[50.,  0.],
                 [67., 15.]]])
    """
    # double: the last bits of float32 sin and cos differ between the vectorized part of a tensor and its tail
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
    """Warp an image within its frame by a homography in pixels: bilinear, with repeated edges.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import warp_image
        >>> shift = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> warp_image(torch.tensor([[[[1.0, 2.0, 3.0]]]]), shift)
        tensor([[[[1., 1., 2.]]]])
    """
    h, w = image.shape[-2:]
    inverse = adjugate(matrix)
    m = inverse / inverse[:, 2:, 2:]
    # from pixels to the coordinates of grid_sample, -1 to 1; the terms of x and y stay small until their sum
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
    """Move quads and boxes by the homography of the pixels.

    A corner keeps its index in its quad, mirrored or not. A box becomes the box around its moved corners,
    clipped to the frame. A quad or box that reaches behind the camera becomes invalid, and so does a box with
    less than `SMALLEST_SHARE` of its area in the frame.

    Args:
        values: Values with any of `LABELS`.
        matrix: The homography in pixels, with a positive last entry.
        size: Height and width of the target frame.
        on: The rows to move; None for all.

    Returns:
        Those of `LABELS` that are in `values`.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import move_labels
        >>> shift = torch.tensor([[[1.0, 0.0, 6.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> values = {"boxes": torch.tensor([[[0.0, 0.0, 5.0, 4.0]]]), "box_valid": torch.tensor([[True]])}
        >>> move_labels(values, shift, (8, 8))
        {'boxes': tensor([[[6., 0., 8., 4.]]]), 'box_valid': tensor([[True]])}
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
    """Warp the scene within its frame by a homography, and move its quads and boxes with it.

    Example:
        >>> import torch
        >>> from fpatch.ops.geometry import move_view
        >>> shift = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> values = {"scene": torch.ones(1, 3, 4, 4), "quads": torch.zeros(1, 1, 4, 2)}
        >>> move_view(values, shift)["quads"][0, 0, 0]
        tensor([1., 0.])
    """
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
    """Return whether all corners are in front of the camera; False for an absent quad."""
    (x, y), (g, h, i) = quads.unbind(-1), matrix[:, 2, :, None, None].unbind(1)
    return (g * x + h * y + i > 0).all(-1)
