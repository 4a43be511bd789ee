"""Procedural photographs of a box truck, drawn with numpy alone.

A pinhole camera looks at a street: sky, ground, a road, buildings, trees, other boxes that cast the same
kind of shadow, and one truck. The sides and the rear of its cargo box carry flat panels. What is printed on
a panel is lit, hidden behind poles, blurred and made noisy like everything else, so that one scene can be
photographed again with another print and nothing else changed.

Convention: world axes are x right, y forward and z up, in meters, with the camera above the origin. Pixel
    coordinates
are continuous, (0, 0) is the outer top-left corner of the image. Quads run top-left, top-right, bottom-right,
bottom-left as seen upright from outside. Colors are display values in 0..1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PANELS = ("side", "rear")
LABEL = "truck"
MIN_SIDE_PX = 48

MIN_FACING = (
    0.12  # cosine between a panel's normal and the line of sight below which the panel is turned away
)
MARGIN_PX = 2.0  # free border around the truck
INSET_FRAC = {
    "side": (0.03, 0.05),
    "rear": (0.06, 0.05),
}  # frame around a panel: of its face's width and height
PRINT_SIZE = {"side": (20, 36), "rear": (20, 20)}  # of the prints that the renderer makes up itself

PAINTS = np.array(
    [
        *((0.87, 0.87, 0.85), (0.70, 0.71, 0.72), (0.20, 0.21, 0.23), (0.72, 0.13, 0.12), (0.13, 0.28, 0.58)),
        *((0.15, 0.44, 0.30), (0.90, 0.66, 0.14), (0.84, 0.40, 0.12), (0.45, 0.30, 0.20), (0.36, 0.54, 0.66)),
        *((0.52, 0.22, 0.42), (0.78, 0.72, 0.56)),
    ]
)
GROUNDS = np.array(
    [(0.33, 0.41, 0.20), (0.50, 0.43, 0.31), (0.46, 0.46, 0.45), (0.66, 0.62, 0.53), (0.36, 0.37, 0.34)]
)
SKIES = np.array([(0.36, 0.56, 0.82), (0.50, 0.64, 0.80), (0.66, 0.69, 0.72), (0.78, 0.68, 0.60)])
WALLS = np.array(
    [(0.62, 0.50, 0.42), (0.55, 0.54, 0.52), (0.72, 0.68, 0.60), (0.48, 0.33, 0.28), (0.40, 0.44, 0.48)]
)
RUBBER = np.array((0.07, 0.07, 0.08))
STEEL = np.array((0.15, 0.15, 0.16))
POLES = np.array([(0.55, 0.56, 0.57), (0.25, 0.26, 0.27), (0.42, 0.32, 0.22), (0.72, 0.72, 0.70)])
LAMP = np.array((0.95, 0.93, 0.80))
TAIL_LAMP = np.array((0.70, 0.08, 0.06))
GLASS = np.array((0.20, 0.27, 0.33))


@dataclass(frozen=True)
class Scene:
    """One photograph and what is known about it.

    Attributes:
        image: uint8 ``[h, w, 3]``.
        box: float64 ``[4]``, xyxy, the bounds of the truck's visible silhouette.
        label: the truck's class name.
        panels: name to quad, float64 ``[4, 2]``, of the panels that face the camera.
    """

    image: NDArray[np.uint8]
    box: NDArray[np.float64]
    label: str
    panels: dict[str, NDArray[np.float64]]


def scene_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of scene `index` under `seed`: Philox, keyed by the pair."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def render(
    rng: np.random.Generator, size_hw: tuple[int, int], textures: Mapping[str, NDArray] | None = None
) -> Scene:
    """Photograph one random scene.

    Args:
        rng: The only source of randomness; generators in the same state give the same scene, bit for bit.
        size_hw: Height and width of the image in pixels, each at least 48.
        textures: Panel name to the print it shows, ``[h, w, 3]``, uint8 or float in 0..1, upright as seen
            from outside. Replaces the print that was drawn for the panel; every draw stays the same.

    Raises:
        ValueError: If the image is too small, a texture is not an image in range, or it names no panel.
    """
    if min(size_hw) < MIN_SIDE_PX:
        raise ValueError(
            f"size_hw must be at least {MIN_SIDE_PX} pixels each way, got {tuple(size_hw)}; enlarge it"
        )
    camera, truck = _draw_pose(rng, size_hw)
    canvas = _Canvas(camera, size_hw, _draw_sun(rng))
    _paint_surroundings(rng, canvas, truck)
    things = _draw_things(rng, camera, truck)
    prints = {name: _draw_print(rng, *PRINT_SIZE[name]) for name in PANELS}
    prints |= {name: _as_print(name, texture) for name, texture in (textures or {}).items()}

    for solid in (truck.cargo, truck.cab, *(thing.solid for thing in things)):
        canvas.shadow(solid)
    behind = sum(thing.solid.distance > truck.cargo.distance for thing in things)
    for thing in things[:behind]:
        thing.paint(canvas)
    panels = _paint_truck(rng, canvas, truck, prints)
    for thing in things[behind:]:
        thing.paint(canvas)
    _paint_poles(rng, canvas, truck)

    visible = canvas.planes[3] > 0.5
    columns, rows = np.flatnonzero(visible.any(0)), np.flatnonzero(visible.any(1))
    bounds = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    return Scene(_develop(rng, canvas.planes[:3]), bounds, LABEL, panels)


# Geometry


class _Camera(NamedTuple):
    position: NDArray  # [3]
    axes: NDArray  # [3, 3], rows: right, down and forward
    focal_px: float
    center_px: NDArray  # [2]

    def project(self, points: NDArray) -> NDArray:
        """World points ``[n, 3]`` to pixels ``[n, 2]``."""
        rays = (points - self.position) @ self.axes.T
        return rays[:, :2] * (self.focal_px / rays[:, 2:]) + self.center_px


class _Face(NamedTuple):
    """A rectangle in the world; seen upright from outside, `across` points right and `down` points down."""

    corner: NDArray
    across: NDArray
    down: NDArray

    def part(self, left: float, top: float, right: float, bottom: float) -> "_Face":
        """The rectangle between these fractions of width and height."""
        corner = self.corner + left * self.across + top * self.down
        return _Face(corner, (right - left) * self.across, (bottom - top) * self.down)

    def corners(self) -> NDArray:
        far = self.corner + self.across
        return np.array([self.corner, far, far + self.down, self.corner + self.down])

    def normal(self) -> NDArray:
        outward = _cross(self.down, self.across)
        return outward / math.sqrt(outward @ outward)


class _Solid(NamedTuple):
    """An upright cuboid; `heading` is the unit vector along its length."""

    center: NDArray  # [2]
    heading: NDArray  # [2]
    length: float
    width: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        return math.hypot(*self.center)

    def footprint(self) -> NDArray:
        """Front left, front right, rear right and rear left, ``[4, 2]``."""
        along = self.heading * (self.length / 2)
        left = np.array([-self.heading[1], self.heading[0]]) * (self.width / 2)
        return self.center + np.array([along + left, along - left, -along - left, left - along])

    def corners(self) -> NDArray:
        return np.concatenate([_raise(self.footprint(), z) for z in (self.low, self.high)])

    def faces(self) -> dict[str, _Face]:
        front_left, front_right, rear_right, rear_left = _raise(self.footprint(), self.high)
        down = np.array([0.0, 0.0, self.low - self.high])
        return {
            "top": _Face(rear_left, front_left - rear_left, rear_right - rear_left),
            "front": _Face(front_right, front_left - front_right, down),
            "rear": _Face(rear_left, rear_right - rear_left, down),
            "left": _Face(front_left, rear_left - front_left, down),
            "right": _Face(rear_right, front_right - rear_right, down),
        }


class _Thing(NamedTuple):
    """Something that stands about: what casts its shadow, and how to paint it."""

    solid: _Solid
    paint: "Callable[[_Canvas], None]"


class _Truck(NamedTuple):
    cargo: _Solid
    cab: _Solid
    chassis: _Solid
    wheel_m: float

    def corners(self) -> NDArray:
        return np.concatenate(
            [self.cargo.corners(), self.cab.corners(), _raise(self.chassis.footprint(), 0.0)]
        )


class _Sun(NamedTuple):
    direction: NDArray  # unit vector towards it, [3]
    ambient: float

    def shade(self, normal: NDArray) -> float:
        """Brightness of a surface, 1 if it faces the sun."""
        return self.ambient + (1 - self.ambient) * max(0.0, float(normal @ self.direction))


def _raise(ground: NDArray, z: float) -> NDArray:
    return np.concatenate([ground, np.full((len(ground), 1), z)], axis=1)


def _cross(a: NDArray, b: NDArray) -> NDArray:
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _direction(angle: float) -> NDArray:
    return np.array([math.sin(angle), math.cos(angle)])


def _bounds(points: NDArray) -> NDArray:
    return np.concatenate([points.min(0), points.max(0)])


def _overlap(a: NDArray, b: NDArray) -> bool:
    return bool((a[:2] < b[2:]).all() and (b[:2] < a[2:]).all())


def _hull(points: NDArray) -> NDArray:
    """Convex hull of ``[n, 2]``, clockwise on the screen (Andrew's monotone chain)."""

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


# Paint


def _make_grain(side: int = 512) -> NDArray[np.float32]:
    """Smooth tileable noise, uniform in 0..1, ``[side, side]``, with side a power of two."""
    rng = scene_rng(0, 0)
    total = np.zeros((side, side))
    for cell in (4, 8, 16, 32, 64):
        octave = rng.standard_normal((side // cell, side // cell)).repeat(cell, 0).repeat(cell, 1)
        for _ in range(2):
            for axis in (0, 1):
                sums = np.concatenate([octave, octave.take(range(cell), axis)], axis).cumsum(axis)
                octave = (sums.take(range(cell, side + cell), axis) - sums.take(range(side), axis)) / cell
        total += octave * math.sqrt(cell)
    ranks = np.empty(side * side, dtype=np.float32)
    ranks[total.ravel().argsort()] = np.linspace(0, 1, side * side, dtype=np.float32)
    return ranks.reshape(side, side)


GRAIN = _make_grain()


def _grain(x: NDArray, y: NDArray) -> NDArray:
    """Noise at these coordinates, in cells of the table."""
    wrap = np.int32(len(GRAIN) - 1)
    return GRAIN[y.astype(np.int32) & wrap, x.astype(np.int32) & wrap]


class _Canvas:
    """The picture while it is painted; ``planes[3]`` is how much of the truck is seen."""

    def __init__(self, camera: _Camera, size_hw: tuple[int, int], sun: _Sun):
        self.camera, self.sun = camera, sun
        self.planes = np.zeros((4, *size_hw), dtype=np.float32)
        self.x = np.arange(size_hw[1], dtype=np.float32) + np.float32(0.5)
        self.y = np.arange(size_hw[0], dtype=np.float32) + np.float32(0.5)

    def window(self, bounds: NDArray, reach: float) -> tuple[slice, slice]:
        """Rows and columns within `reach` pixels of an xyxy box."""
        x0, y0, x1, y1 = bounds
        rows = slice(max(0, math.floor(y0 - reach)), max(0, math.ceil(y1 + reach)))
        return rows, slice(max(0, math.floor(x0 - reach)), max(0, math.ceil(x1 + reach)))

    def cover(self, corners: NDArray, grow: float, soft: float) -> tuple[tuple[slice, slice], NDArray]:
        """The window around a convex clockwise polygon ``[n, 2]``, and how much of each pixel it covers."""
        window = rows, columns = self.window(_bounds(corners), grow + soft)
        edges = np.concatenate([corners[1:], corners[:1]]) - corners
        normals = np.stack([-edges[:, 1], edges[:, 0]], 1) / (np.sqrt((edges * edges).sum(1)) + 1e-9)[:, None]
        offsets = (grow - (normals * corners).sum(1)).astype(np.float32)[:, None, None]
        across, down = normals.astype(np.float32).T[:, :, None, None]
        depth = (across * self.x[columns] + (down * self.y[rows, None] + offsets)).min(0)
        return window, np.clip(depth / np.float32(soft) + np.float32(0.5), 0, 1)

    def blend(self, window: tuple[slice, slice], cover: NDArray, color: NDArray, truck: bool = False) -> None:
        """Lay color, ``[3]`` or ``[3, h, w]``, over a window where `cover` says so."""
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
        face: _Face,
        color: NDArray,
        picture: NDArray | None = None,
        grow: float = 0.5,
        truck: bool = False,
    ) -> NDArray | None:
        """Paint a face in the sun and return its quad, or None where it is turned away.

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
        self, solid: _Solid, color: NDArray, picture: NDArray | None = None, truck: bool = False
    ) -> None:
        """Paint a cuboid; a picture goes around its four walls."""
        for name, face in solid.faces().items():
            self.face(face, color, None if name == "top" else picture, truck=truck)

    def near_side(self, solid: _Solid) -> str:
        """The long side that faces the camera, left or right."""
        sight = solid.center - self.camera.position[:2]
        return "left" if solid.heading[0] * sight[1] - solid.heading[1] * sight[0] < 0 else "right"

    def wheels(
        self,
        body: _Solid,
        width: float,
        radius: float,
        hub: NDArray,
        places: Sequence[float],
        truck: bool = False,
    ) -> None:
        """Paint the wheels of the near side, `width` meters from the others.

        Args:
            body: What they carry.
            width: Distance between the wheels' outer faces in meters.
            radius: In meters.
            hub: Color inside the tire.
            places: Where along the body, 0 at the rear and 1 at the front.
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
                face = _Face(center + (up - right) * size, 2 * size * right, -2 * size * up)
                self.disc(face, color, truck)

    def disc(self, face: _Face, color: NDArray, truck: bool = False) -> None:
        """Paint the circle inside a square face."""
        quad = self.camera.project(face.corners())
        window = self.window(_bounds(quad), 1.0)
        u, v = self.inside(face, window)
        area = abs(float(_cross(np.append(quad[1] - quad[0], 0), np.append(quad[3] - quad[0], 0))[2]))
        depth = (1 - 2 * np.hypot(u - 0.5, v - 0.5)) * np.float32(math.sqrt(area) / 2)
        self.blend(window, np.clip(depth + 0.5, 0, 1), color * self.sun.shade(face.normal()), truck)

    def shadow(self, solid: _Solid) -> None:
        """Darken the ground where the solid hides the sun, and under it."""
        ground = _raise(solid.footprint(), 0.0)
        sun = self.sun.direction
        cast = ground - np.append(sun[:2] * (solid.high / sun[2]), 0)
        for corners, soft, strength in (
            (np.concatenate([ground, cast]), 2.0, 1.6 * (1 - self.sun.ambient)),
            (ground, 4.0, 0.45),
        ):
            window, cover = self.cover(_hull(self.camera.project(corners)), 0.0, soft)
            self.planes[:3, *window] *= 1 - np.float32(strength) * cover

    def inside(self, face: _Face, window: tuple[slice, slice]) -> tuple[NDArray, NDArray]:
        """Where each pixel of the window meets the face, in fractions of its width and of its height."""
        camera = self.camera
        m = np.stack([face.across, face.down, face.corner - camera.position], 1)
        m = camera.axes @ m
        m[:2] = m[:2] * camera.focal_px + camera.center_px[:, None] * m[2]
        inverse = np.stack([_cross(m[:, 1], m[:, 2]), _cross(m[:, 2], m[:, 0]), _cross(m[:, 0], m[:, 1])])
        rows, columns = window
        x, y = self.x[columns], self.y[rows, None]
        u, v, w = (
            (np.float32(a) * x + (np.float32(b) * y + np.float32(c)))
            for a, b, c in inverse / abs(inverse).max()
        )
        return u / w, v / w

    def _printed(self, face: _Face, picture: NDArray, window: tuple[slice, slice]) -> NDArray:
        """Bilinear lookup of a picture on a face, ``[3, h, w]``."""
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


# The scene: what is drawn at random


def _draw_paint(rng: np.random.Generator, paints: NDArray = PAINTS) -> NDArray:
    return np.clip(paints[rng.integers(len(paints))] + rng.uniform(-0.07, 0.07, 3), 0.03, 0.97)


def _draw_pose(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[_Camera, _Truck]:
    """A camera and a truck that lies within the picture, seen from behind or from a side."""
    height, width = size_hw
    camera_height, focal_px = rng.uniform(1.4, 4.2), rng.uniform(1.0, 1.3) * math.sqrt(height * width)
    roll = rng.normal(0, 0.015)
    length, depth, tall = rng.uniform((3.9, 2.1, 2.1), (4.5, 2.3, 2.5))
    floor, cab_length, cab_height = rng.uniform((0.65, 1.3, 1.5), (0.85, 1.7, 2.0))
    heading_angle = rng.uniform(-2.0, 2.0)
    distance, wheel_m = rng.uniform(8.0, 15.0), rng.uniform(0.40, 0.50)
    while True:
        pitch = math.atan2(camera_height - 1.6, distance) + rng.uniform(-0.12, 0.12)
        bearing = rng.uniform(-0.35, 0.35)
        right = np.array([math.cos(roll), 0, 0]) + math.sin(roll) * np.array(
            [0, -math.sin(pitch), -math.cos(pitch)]
        )
        forward = np.array([0, math.cos(pitch), -math.sin(pitch)])
        axes = np.stack([right, _cross(forward, right), forward])
        camera = _Camera(np.array([0, 0, camera_height]), axes, focal_px, np.array([width / 2, height / 2]))
        center, heading = distance * _direction(bearing), _direction(bearing + heading_angle)
        ahead = center + heading * (length + cab_length + 0.15) / 2
        truck = _Truck(
            _Solid(center, heading, length, depth, floor, floor + tall),
            _Solid(ahead, heading, cab_length, depth * 0.94, 0.45, 0.45 + cab_height),
            _Solid(
                center + heading * cab_length / 2, heading, length + cab_length, depth * 0.85, 0.35, floor
            ),
            wheel_m,
        )
        x0, y0, x1, y1 = _bounds(camera.project(truck.corners()))
        if min(x0, y0, width - x1, height - y1) >= MARGIN_PX:
            return camera, truck
        distance *= 1.03


def _draw_sun(rng: np.random.Generator) -> _Sun:
    azimuth, elevation, ambient = rng.uniform((0, 0.6, 0.68), (2 * math.pi, 1.2, 0.95))
    ground = _direction(azimuth) * math.cos(elevation)
    return _Sun(np.append(ground, math.sin(elevation)), ambient)


def _draw_print(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A wall's print, ``[h, w, 3]``: plain, bands, letters, spray or a mosaic, at its finest noise."""
    colors = np.array([_draw_paint(rng) for _ in range(3)], dtype=np.float32)
    shift, coarse = rng.integers(512, size=2), int(rng.integers(1, 6))
    kind = rng.choice(["plain", "bands", "letters", "mosaic", "spray"], p=[0.3, 0.15, 0.15, 0.25, 0.15])
    y, x = np.mgrid[:height, :width]
    if kind == "bands":
        slope = rng.uniform(-1, 1)
        index = ((y + slope * x) // (3 + 2 * coarse)).astype(int) % 3
    elif kind == "letters":
        line = (
            (y % (3 + coarse) < 2 + coarse // 2)
            & (abs(y - height / 2) < height / 3)
            & (abs(x - width / 2) < width * 0.4)
        )
        index = np.where(line & (rng.random((height, width))[y // (3 + coarse), x] < 0.6), 1, 0)
    elif kind == "mosaic":
        cells = rng.random((height // coarse + 1, width // coarse + 1, 3), dtype=np.float32)
        return cells[y // coarse, x // coarse]
    elif kind == "spray":
        index = (_grain(x * 3 + shift[0], y * 3 + shift[1]) * 3).astype(int) % 3
    else:
        index = np.zeros((height, width), dtype=int)
    return colors[index]


def _as_print(name: str, texture: NDArray) -> NDArray[np.float32]:
    """A texture from outside as float, checked."""
    if name not in PANELS:
        raise ValueError(f"textures: no panel is named {name!r}; known: {', '.join(PANELS)}")
    texture = np.asarray(texture)
    if texture.ndim != 3 or texture.shape[2] != 3 or min(texture.shape[:2]) < 2:
        raise ValueError(
            f"textures[{name!r}] must be [h, w, 3] with h, w at least 2, got {list(texture.shape)}"
        )
    if texture.dtype == np.uint8:
        return texture.astype(np.float32) / np.float32(255)
    if not (texture.min() >= 0 and texture.max() <= 1):
        raise ValueError(
            f"textures[{name!r}] must lie in 0..1, got {texture.min()}..{texture.max()}; clamp it"
        )
    return texture.astype(np.float32)


def _draw_things(rng: np.random.Generator, camera: _Camera, truck: _Truck) -> list[_Thing]:
    """Cars, containers and crates that stand apart from the truck and do not hide it, farthest first."""
    things = []
    own = _bounds(camera.project(truck.corners()))
    for _ in range(rng.integers(1, 6)):
        length, depth, high, distance, bearing, angle = rng.uniform(
            (0.8, 0.8, 0.8, 7.0, -0.5, 0.0), (5.0, 2.4, 3.2, 24.0, 0.5, 2 * math.pi)
        )
        is_car, color, hub = rng.random() < 0.4, _draw_paint(rng), _draw_paint(rng, POLES)
        picture = _draw_print(rng, 16, 24)
        center, heading = distance * _direction(bearing), _direction(angle)
        if is_car:
            solid = _Solid(center, heading, 3.4 + length / 5, 1.8, 0.25, 0.9 + high / 6)
            paint = partial(_paint_car, body=solid, color=color, hub=hub)
        else:
            solid = _Solid(center, heading, length, depth, 0.0, high)
            paint = partial(_Canvas.solid, solid=solid, color=color, picture=picture)
        apart = math.hypot(*(center - truck.cargo.center)) > 1.1 * truck.chassis.length
        behind = distance > truck.cargo.distance
        if apart and (behind or not _overlap(_bounds(camera.project(solid.corners())), own)):
            things.append(_Thing(solid, paint))
    return sorted(things, key=lambda thing: -thing.solid.distance)


def _paint_car(canvas: _Canvas, body: _Solid, color: NDArray, hub: NDArray) -> None:
    cabin = _Solid(
        body.center - 0.1 * body.heading, body.heading, 0.5 * body.length, 1.6, body.high, body.high + 0.5
    )
    canvas.solid(body, color)
    canvas.wheels(body, body.width, 0.33, hub, (0.2, 0.8))
    canvas.solid(cabin, GLASS)
    canvas.face(cabin.faces()["top"], color)


def _paint_surroundings(rng: np.random.Generator, canvas: _Canvas, truck: _Truck) -> None:
    """Sky, ground and road; then buildings and trees, farthest first."""
    camera, planes = canvas.camera, canvas.planes
    x = (canvas.x - camera.center_px[0].astype(np.float32)) / np.float32(camera.focal_px)
    y = ((canvas.y - camera.center_px[1].astype(np.float32)) / np.float32(camera.focal_px))[:, None]
    rays = [np.float32(a) * x + (np.float32(b) * y + np.float32(c)) for a, b, c in camera.axes.T]

    sky, haze = _draw_paint(rng, SKIES), rng.uniform(0.75, 0.95)
    cloudy, shift = rng.uniform(0, 0.6), rng.integers(512, size=6)
    rise = np.clip(rays[2] * 2.5, 0, 1)
    clouds = np.float32(cloudy) * np.clip(
        _grain(rays[0] * 200 + shift[0], rays[2] * 500 + shift[1]) * 2 - 1, 0, 1
    )
    color = haze + rise * (sky.astype(np.float32)[:, None, None] - np.float32(haze))
    planes[:3] = color + clouds * (np.float32(0.95) - color)

    far = np.maximum(-rays[2], np.float32(0.004))
    away = np.float32(camera.position[2]) / far
    ground_x, ground_y = rays[0] * away, rays[1] * away
    base, other = _draw_paint(rng, GROUNDS), _draw_paint(rng, GROUNDS)
    rough, patchy = rng.uniform(0.1, 0.5), rng.uniform(0, 0.7)
    fine = _grain(ground_x * 40 + shift[2], ground_y * 40 + shift[3]) - np.float32(0.5)
    wide = _grain(ground_x * 6 + shift[4], ground_y * 6 + shift[5])
    color = base[:, None, None] + (other - base)[:, None, None] * (patchy * wide)
    color = color.astype(np.float32) * (1 + np.float32(rough) * fine * np.minimum(1, 8 / away))

    along = truck.cargo.heading if rng.random() < 0.6 else _direction(rng.uniform(-1.5, 1.5))
    half, offset, gray = rng.uniform((2.4, -1.2, 0.22), (4.5, 1.2, 0.45))
    dash, has_road = rng.uniform(1.5, 3.0), rng.random() < 0.8
    if has_road:
        aside = np.float32(along[1]) * (ground_x - np.float32(truck.cargo.center[0]))
        aside -= np.float32(along[0]) * (ground_y - np.float32(truck.cargo.center[1])) + np.float32(offset)
        onward = np.float32(along[0]) * ground_x + np.float32(along[1]) * ground_y
        blur = away * np.float32(1.0 / camera.focal_px) + np.float32(1e-3)
        road = np.clip((np.float32(half) - abs(aside)) / blur + np.float32(0.5), 0, 1)
        color += road * (np.float32(gray) * (1 + np.float32(0.3) * fine) - color)
        middle = np.clip((np.float32(0.1) - abs(aside)) / blur + np.float32(0.5), 0, 1) * (
            onward % (2 * dash) < dash
        )
        border = np.clip(
            (np.float32(0.08) - abs(abs(aside) - np.float32(half - 0.3))) / blur + np.float32(0.5), 0, 1
        )
        color += np.maximum(middle, border) * (np.float32(0.85) - color)
    lit = canvas.sun.shade(np.array([0.0, 0.0, 1.0]))
    fog = np.clip(away / 150, 0, np.float32(0.8))
    color = color * np.float32(lit)
    color += fog * (np.float32(haze) - color)
    ground = np.clip(-rays[2] * np.float32(camera.focal_px) + np.float32(0.5), 0, 1)
    planes[:3] += ground * (color - planes[:3])

    distances = np.sort(rng.uniform(20, 60, rng.integers(1, 7)))[::-1]
    for distance in distances:
        bearing, tree = rng.uniform(-0.6, 0.6), rng.random() < 0.6
        center = distance * _direction(bearing)
        if tree:
            _paint_tree(rng, canvas, center)
        else:
            length, depth, high, angle = rng.uniform((6, 6, 4, 0), (16, 12, 14, math.pi))
            wall = _draw_paint(rng, WALLS)
            _paint_building(canvas, _Solid(center, _direction(angle), length, depth, 0.0, high), wall)


def _paint_building(canvas: _Canvas, solid: _Solid, wall: NDArray) -> None:
    for name, face in solid.faces().items():
        columns = int(np.linalg.norm(face.across[:2]) // 2)
        quad = canvas.face(face, wall)
        if quad is None or name == "top":
            continue
        window = canvas.window(_bounds(quad), 0.0)
        u, v = canvas.inside(face, window)
        frame = (u > 0) & (u < 1) & (v > 0.05) & (v < 0.9)
        panes = (
            frame & (abs(u * columns % 1 - 0.5) < 0.28) & (abs(v * (solid.high // 3 + 1) % 1 - 0.5) < 0.25)
        )
        canvas.blend(window, panes * np.float32(0.8), GLASS * canvas.sun.shade(face.normal()))


def _paint_tree(rng: np.random.Generator, canvas: _Canvas, center: NDArray) -> None:
    high, wide, lobes = rng.uniform((4, 1.5, 0.3), (9, 3.5, 0.8))
    green = np.array(rng.uniform((0.10, 0.22, 0.05), (0.34, 0.42, 0.16)))
    shift = rng.integers(512, size=2)
    top = _raise(center[None], high)[0]
    root, crown = canvas.camera.project(np.stack([_raise(center[None], 0.0)[0], top - (0, 0, wide)]))
    per_meter = canvas.camera.focal_px / math.hypot(*center)
    trunk = np.array([0.15 * per_meter, 0.0])
    canvas.polygon(
        np.array([crown - trunk, crown + trunk, root + trunk, root - trunk]), np.array((0.25, 0.18, 0.12))
    )
    radius = wide * per_meter
    window = rows, columns = canvas.window(np.concatenate([crown, crown]), 1.5 * radius)
    dx, dy = (canvas.x[columns] - crown[0]) / radius, (canvas.y[rows, None] - crown[1]) / radius
    leaves = _grain(dx * 40 + shift[0], dy * 40 + shift[1]) - 0.5
    cover = np.clip((1 - np.hypot(dx, dy) + lobes * leaves) * radius + 0.5, 0, 1).astype(np.float32)
    light = (0.75 - 0.3 * dy + 0.9 * leaves) * canvas.sun.shade(np.array([0.0, 0.0, 1.0]))
    canvas.blend(window, cover, np.clip(green[:, None, None] * light, 0, 1))


def _paint_truck(
    rng: np.random.Generator, canvas: _Canvas, truck: _Truck, prints: Mapping[str, NDArray]
) -> dict[str, NDArray[np.float64]]:
    """Paint the truck and return the quads of its visible panels."""
    cab_color, cargo_color, hub = _draw_paint(rng), _draw_paint(rng), _draw_paint(rng, POLES)
    near = canvas.near_side(truck.cargo)
    panels = {}

    def wheel(place: float) -> None:
        canvas.wheels(truck.chassis, truck.cargo.width, truck.wheel_m, hub, (place,), truck=True)

    def paint_cab() -> None:
        faces = truck.cab.faces()
        canvas.solid(truck.cab, cab_color, truck=True)
        left = 0.35 if near == "right" else 0.1
        canvas.face(faces[near].part(left, 0.1, left + 0.55, 0.45), GLASS, truck=True)
        canvas.face(faces["front"].part(0.08, 0.08, 0.92, 0.48), GLASS, truck=True)
        for left in (0.05, 0.8):
            canvas.face(faces["front"].part(left, 0.72, left + 0.15, 0.82), LAMP, truck=True)
        wheel(0.86)

    def paint_cargo() -> None:
        faces = truck.cargo.faces()
        canvas.solid(truck.cargo, cargo_color, truck=True)
        for name, face in (("side", faces[near]), ("rear", faces["rear"])):
            x, y = INSET_FRAC[name]
            panel = face.part(x, y, 1 - x, 1 - y)
            sight = panel.corner + (panel.across + panel.down) / 2 - canvas.camera.position
            if -(panel.normal() @ sight) > MIN_FACING * math.sqrt(sight @ sight):
                panels[name] = canvas.face(panel, cargo_color, prints[name], grow=0.0, truck=True)

    canvas.solid(truck.chassis, STEEL, truck=True)
    bumper = truck.chassis.faces()["rear"]
    ground = 1 + truck.chassis.low / (truck.chassis.high - truck.chassis.low)
    for left in (0.0, 0.8):
        canvas.face(bumper.part(left, 0.8, left + 0.2, ground), RUBBER, truck=True)
    canvas.face(bumper.part(-0.05, 0.3, 1.05, 0.8), 1.6 * STEEL, truck=True)
    for left in (0.0, 0.85):
        canvas.face(bumper.part(left, 0.35, left + 0.15, 0.75), TAIL_LAMP, truck=True)
    wheel(0.17)
    from_behind = truck.cargo.heading @ (truck.cargo.center - canvas.camera.position[:2]) > 0
    for paint in (paint_cab, paint_cargo) if from_behind else (paint_cargo, paint_cab):
        paint()
    return panels


def _paint_poles(rng: np.random.Generator, canvas: _Canvas, truck: _Truck) -> None:
    """In some scenes a lamp post or a trunk stands before the middle of the truck."""
    camera = canvas.camera
    x0, _, x1, _ = _bounds(camera.project(truck.corners()))
    for _ in range(rng.choice(3, p=[0.65, 0.25, 0.1])):
        position, near, thick, high = rng.uniform((0.2, 0.4, 0.03, 3.0), (0.8, 0.75, 0.08, 7.0))
        color = _draw_paint(rng, POLES)
        distance = near * (truck.cargo.distance - truck.cargo.length)
        slope = (x0 + position * (x1 - x0) - camera.center_px[0]) / camera.focal_px
        base = np.array([slope * distance, distance, 0.0])
        foot, top = camera.project(np.stack([base, base + np.array((0, 0, high))]))
        half = np.array([thick * camera.focal_px / distance, 0.0])
        canvas.polygon(
            np.array([top - half, top + half, foot + half, foot - half]), color * canvas.sun.ambient, grow=0.0
        )


def _develop(rng: np.random.Generator, planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The camera: gain, tint, gamma, blur, noise and eight bits."""
    gain, gamma, center, noise = rng.uniform((0.85, 0.9, 0.7, 0.005), (1.15, 1.1, 1.0, 0.025))
    tint = rng.uniform(0.95, 1.05, 3) * gain
    picture = np.clip(planes * tint.astype(np.float32)[:, None, None], 0, 1)
    picture = np.exp(np.float32(gamma) * np.log(np.maximum(picture, np.float32(1e-4))))
    middle, side = np.float32(center), np.float32((1 - center) / 2)
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
    padded = middle * padded[:, 1:-1] + side * (padded[:, :-2] + padded[:, 2:])
    picture = middle * padded[:, :, 1:-1] + side * (padded[:, :, :-2] + padded[:, :, 2:])
    picture += np.float32(noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.ascontiguousarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))
