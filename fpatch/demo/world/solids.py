"""The geometry of a scene: a camera, flat faces and cuboids.

Convention: world axes are x right, y forward and z up, in meters, with the camera above the origin. Pixel
coordinates are continuous, (0, 0) is the outer top-left corner of the image. Quads run top-left, top-right,
bottom-right, bottom-left as seen upright from outside.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Camera(NamedTuple):
    """A pinhole camera."""

    position: NDArray  # [3]
    axes: NDArray  # [3, 3], rows: right, down and forward
    focal_px: float
    center_px: NDArray  # [2]

    def project(self, points: NDArray) -> NDArray:
        """Project world points ``[n, 3]`` to pixels ``[n, 2]``."""
        rays = (points - self.position) @ self.axes.T
        return rays[:, :2] * (self.focal_px / rays[:, 2:]) + self.center_px


class Face(NamedTuple):
    """A rectangle in the world; seen upright from outside, `across` points right and `down` points down."""

    corner: NDArray
    across: NDArray
    down: NDArray

    def part(self, left: float, top: float, right: float, bottom: float) -> "Face":
        """Return the part between these fractions of width and height."""
        corner = self.corner + left * self.across + top * self.down
        return Face(corner, (right - left) * self.across, (bottom - top) * self.down)

    def corners(self) -> NDArray:
        """Return the corners as a quad, ``[4, 3]``."""
        far = self.corner + self.across
        return np.array([self.corner, far, far + self.down, self.corner + self.down])

    def normal(self) -> NDArray:
        """Return the outward unit normal."""
        outward = cross(self.down, self.across)
        return outward / math.sqrt(outward @ outward)


class Solid(NamedTuple):
    """An upright cuboid; `heading` is the unit vector along its length."""

    center: NDArray  # [2]
    heading: NDArray  # [2]
    length: float
    width: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """Distance from the camera along the ground, in meters."""
        return math.hypot(*self.center)

    def footprint(self) -> NDArray:
        """Return the ground corners: front left, front right, rear right and rear left, ``[4, 2]``."""
        along = self.heading * (self.length / 2)
        left = np.array([-self.heading[1], self.heading[0]]) * (self.width / 2)
        return self.center + np.array([along + left, along - left, -along - left, left - along])

    def corners(self) -> NDArray:
        """Return the corners, ``[8, 3]``."""
        return np.concatenate([at_height(self.footprint(), z) for z in (self.low, self.high)])

    def faces(self) -> dict[str, Face]:
        """Return the faces by name, without the bottom."""
        front_left, front_right, rear_right, rear_left = at_height(self.footprint(), self.high)
        down = np.array([0.0, 0.0, self.low - self.high])
        return {
            "top": Face(rear_left, front_left - rear_left, rear_right - rear_left),
            "front": Face(front_right, front_left - front_right, down),
            "rear": Face(rear_left, rear_right - rear_left, down),
            "left": Face(front_left, rear_left - front_left, down),
            "right": Face(rear_right, front_right - rear_right, down),
        }


def at_height(ground: NDArray, z: float) -> NDArray:
    """Lift points ``[n, 2]`` of the ground to a height, ``[n, 3]``."""
    return np.concatenate([ground, np.full((len(ground), 1), z)], axis=1)


def cross(a: NDArray, b: NDArray) -> NDArray:
    """Return the cross product of two vectors, in a tenth of the time of `numpy.cross`."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def direction(angle: float) -> NDArray:
    """Return the unit vector on the ground at an angle clockwise from straight ahead."""
    return np.array([math.sin(angle), math.cos(angle)])


def bounds_of(points: NDArray) -> NDArray:
    """Return the xyxy box around points ``[n, 2]``."""
    return np.concatenate([points.min(0), points.max(0)])


def overlap(a: NDArray, b: NDArray) -> bool:
    """Return whether two xyxy boxes overlap."""
    return bool((a[:2] < b[2:]).all() and (b[:2] < a[2:]).all())


def hull(points: NDArray) -> NDArray:
    """Return the convex hull of ``[n, 2]``, clockwise on the screen (Andrew's monotone chain)."""

    def chain(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in points:
            while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1]) <= (
                kept[-1][1] - kept[-2][1]
            ) * (x - kept[-2][0]):
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    ordered = sorted((x, y) for x, y in points.tolist())
    return np.array(chain(ordered) + chain(ordered[::-1]))
