"""The canvas of the renderer: polygons, lit faces, wheels and shadows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpatch.demo.world.paints import RUBBER
from fpatch.demo.world.solids import Camera, Face, Solid, at_height, bounds_of, cross, hull


class Sun(NamedTuple):
    """The direction of the sunlight, and the share of ambient light."""

    direction: NDArray  # unit vector towards it, [3]
    ambient: float

    def shade(self, normal: NDArray) -> float:
        """Return the brightness of a surface, 1 if it faces the sun."""
        return self.ambient + (1 - self.ambient) * max(0.0, float(normal @ self.direction))


class Canvas:
    """The image under construction; ``planes[3]`` is the visible share of the truck."""

    def __init__(self, camera: Camera, size_hw: tuple[int, int], sun: Sun):
        self.camera, self.sun = camera, sun
        self.planes = np.zeros((4, *size_hw), dtype=np.float32)
        self.x = np.arange(size_hw[1], dtype=np.float32) + np.float32(0.5)
        self.y = np.arange(size_hw[0], dtype=np.float32) + np.float32(0.5)

    def window(self, bounds: NDArray, reach: float) -> tuple[slice, slice]:
        """Return the rows and columns within `reach` pixels of an xyxy box."""
        x0, y0, x1, y1 = bounds
        rows = slice(max(0, math.floor(y0 - reach)), max(0, math.ceil(y1 + reach)))
        return rows, slice(max(0, math.floor(x0 - reach)), max(0, math.ceil(x1 + reach)))

    def cover(self, corners: NDArray, grow: float, soft: float) -> tuple[tuple[slice, slice], NDArray]:
        """Return the window of a convex clockwise polygon ``[n, 2]``, and its cover of each pixel."""
        window = rows, columns = self.window(bounds_of(corners), grow + soft)
        edges = np.concatenate([corners[1:], corners[:1]]) - corners
        normals = np.stack([-edges[:, 1], edges[:, 0]], 1) / (np.sqrt((edges * edges).sum(1)) + 1e-9)[:, None]
        offsets = (grow - (normals * corners).sum(1)).astype(np.float32)[:, None, None]
        across, down = normals.astype(np.float32).T[:, :, None, None]
        depth = (across * self.x[columns] + (down * self.y[rows, None] + offsets)).min(0)
        return window, np.clip(depth / np.float32(soft) + np.float32(0.5), 0, 1)

    def blend(self, window: tuple[slice, slice], cover: NDArray, color: NDArray, truck: bool = False) -> None:
        """Blend a color, ``[3]`` or ``[3, h, w]``, into a window with the weights `cover`."""
        planes = self.planes[:, *window]
        color = color.astype(np.float32).reshape(3, *(color.shape[1:] or (1, 1)))
        planes[:3] += cover * (color - planes[:3])
        planes[3] += cover * (np.float32(truck) - planes[3])

    def polygon(
        self, corners: NDArray, color: NDArray, grow: float = 0.5, soft: float = 1.0, truck: bool = False
    ) -> None:
        """Fill a convex polygon; half a pixel of growth lets neighboring faces meet without a seam."""
        self.blend(*self.cover(corners, grow, soft), color, truck)

    def face(
        self,
        face: Face,
        color: NDArray,
        picture: NDArray | None = None,
        grow: float = 0.5,
        truck: bool = False,
    ) -> NDArray | None:
        """Paint a face in the sun and return its quad, or None if it is turned away.

        A `picture` ``[h, w, 3]`` covers the whole face in place of the color.
        """
        quad = self.camera.project(face.corners())
        (ax, ay), (bx, by) = quad[2] - quad[0], quad[3] - quad[1]
        if ax * by - ay * bx <= 0:
            return None
        window, cover = self.cover(quad, grow, 1.0)
        if picture is not None:
            color = self._printed(face, picture, window)
        self.blend(window, cover, color * self.sun.shade(face.normal()), truck)
        return quad

    def solid(
        self, solid: Solid, color: NDArray, picture: NDArray | None = None, truck: bool = False
    ) -> None:
        """Paint a cuboid; a picture goes around its four walls."""
        for name, face in solid.faces().items():
            self.face(face, color, None if name == "top" else picture, truck=truck)

    def near_side(self, solid: Solid) -> str:
        """Return the long side that faces the camera, left or right."""
        sight = solid.center - self.camera.position[:2]
        return "left" if solid.heading[0] * sight[1] - solid.heading[1] * sight[0] < 0 else "right"

    def wheels(
        self,
        body: Solid,
        width: float,
        radius: float,
        hub: NDArray,
        places: Sequence[float],
        truck: bool = False,
    ) -> None:
        """Paint the wheels of the near side, `width` meters from the others.

        Args:
            body: The cuboid on the wheels.
            width: Distance between the wheels' outer faces in meters.
            radius: Radius of the wheels in meters.
            hub: Color inside the tire.
            places: Positions along the body, 0 at the rear and 1 at the front.
            truck: Whether the body belongs to the truck.
        """
        near = self.near_side(body)
        side = body.faces()[near]
        outward = side.normal()
        if outward[:2] @ (body.center + outward[:2] * width / 2 - self.camera.position[:2]) >= 0:
            return
        along, up = np.append(body.heading, 0), np.array([0.0, 0.0, 1.0])
        right = along if near == "right" else -along
        for place in places:
            center = (
                np.append(body.center, radius) + outward * width / 2 + along * (place - 0.5) * body.length
            )
            for size, color in ((radius, RUBBER), (0.5 * radius, hub)):
                face = Face(center + (up - right) * size, 2 * size * right, -2 * size * up)
                self.disc(face, color, truck)

    def disc(self, face: Face, color: NDArray, truck: bool = False) -> None:
        """Paint the circle inside a square face."""
        quad = self.camera.project(face.corners())
        window = self.window(bounds_of(quad), 1.0)
        u, v = self.inside(face, window)
        area = abs(float(cross(np.append(quad[1] - quad[0], 0), np.append(quad[3] - quad[0], 0))[2]))
        depth = (1 - 2 * np.hypot(u - 0.5, v - 0.5)) * np.float32(math.sqrt(area) / 2)
        self.blend(window, np.clip(depth + 0.5, 0, 1), color * self.sun.shade(face.normal()), truck)

    def shadow(self, solid: Solid) -> None:
        """Darken the ground where the solid hides the sun, and under it."""
        ground = at_height(solid.footprint(), 0.0)
        sun = self.sun.direction
        cast = ground - np.append(sun[:2] * (solid.high / sun[2]), 0)
        for corners, soft, strength in (
            (np.concatenate([ground, cast]), 2.0, 1.6 * (1 - self.sun.ambient)),
            (ground, 4.0, 0.45),
        ):
            window, cover = self.cover(hull(self.camera.project(corners)), 0.0, soft)
            self.planes[:3, *window] *= 1 - np.float32(strength) * cover

    def inside(self, face: Face, window: tuple[slice, slice]) -> tuple[NDArray, NDArray]:
        """Return the point of the face at each pixel of the window, as fractions of width and height."""
        camera = self.camera
        m = np.stack([face.across, face.down, face.corner - camera.position], 1)
        m = camera.axes @ m
        m[:2] = m[:2] * camera.focal_px + camera.center_px[:, None] * m[2]
        inverse = np.stack([cross(m[:, 1], m[:, 2]), cross(m[:, 2], m[:, 0]), cross(m[:, 0], m[:, 1])])
        rows, columns = window
        x, y = self.x[columns], self.y[rows, None]
        u, v, w = (
            (np.float32(a) * x + (np.float32(b) * y + np.float32(c)))
            for a, b, c in inverse / abs(inverse).max()
        )
        return u / w, v / w

    def _printed(self, face: Face, picture: NDArray, window: tuple[slice, slice]) -> NDArray:
        """Look up a picture on a face bilinearly, ``[3, h, w]``."""
        u, v = self.inside(face, window)
        height, width = picture.shape[:2]
        x = np.clip(u * width - np.float32(0.5), 0, width - 1)
        y = np.clip(v * height - np.float32(0.5), 0, height - 1)
        x0, y0 = np.minimum(x.astype(np.int32), width - 2), np.minimum(y.astype(np.int32), height - 2)
        fx, fy = x - x0, y - y0
        planes = picture.transpose(2, 0, 1).reshape(3, -1)
        at = y0 * width + x0
        top = planes[:, at] * (1 - fx) + planes[:, at + 1] * fx
        return top + fy * (planes[:, at + width] * (1 - fx) + planes[:, at + width + 1] * fx - top)
