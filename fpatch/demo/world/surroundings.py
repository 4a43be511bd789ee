"""The surroundings of the truck: sky, ground and road, buildings, trees, cars, crates and poles."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpatch.demo.world.canvas import Canvas
from fpatch.demo.world.paints import GLASS, GROUNDS, POLES, SKIES, WALLS, draw_paint, draw_print, grain
from fpatch.demo.world.solids import Camera, Solid, at_height, bounds_of, direction, overlap
from fpatch.demo.world.truck import Truck


class Thing(NamedTuple):
    """An object in the scene: the solid that casts its shadow, and its painter."""

    solid: Solid
    paint: Callable[[Canvas], None]


def draw_things(rng: np.random.Generator, camera: Camera, truck: Truck) -> list[Thing]:
    """Draw cars, containers and crates apart from the truck that do not hide it, farthest first."""
    things = []
    own = bounds_of(camera.project(truck.corners()))
    for _ in range(rng.integers(1, 6)):
        length, depth, high, distance, bearing, angle = rng.uniform(
            (0.8, 0.8, 0.8, 7.0, -0.5, 0.0), (5.0, 2.4, 3.2, 24.0, 0.5, 2 * math.pi)
        )
        is_car, color, hub = rng.random() < 0.4, draw_paint(rng), draw_paint(rng, POLES)
        picture = draw_print(rng, 16, 24)
        center, heading = distance * direction(bearing), direction(angle)
        if is_car:
            solid = Solid(center, heading, 3.4 + length / 5, 1.8, 0.25, 0.9 + high / 6)
            paint = partial(_paint_car, body=solid, color=color, hub=hub)
        else:
            solid = Solid(center, heading, length, depth, 0.0, high)
            paint = partial(Canvas.solid, solid=solid, color=color, picture=picture)
        apart = math.hypot(*(center - truck.cargo.center)) > 1.1 * truck.chassis.length
        behind = distance > truck.cargo.distance
        if apart and (behind or not overlap(bounds_of(camera.project(solid.corners())), own)):
            things.append(Thing(solid, paint))
    return sorted(things, key=lambda thing: -thing.solid.distance)


def _paint_car(canvas: Canvas, body: Solid, color: NDArray, hub: NDArray) -> None:
    cabin = Solid(
        body.center - 0.1 * body.heading, body.heading, 0.5 * body.length, 1.6, body.high, body.high + 0.5
    )
    canvas.solid(body, color)
    canvas.wheels(body, body.width, 0.33, hub, (0.2, 0.8))
    canvas.solid(cabin, GLASS)
    canvas.face(cabin.faces()["top"], color)


def paint_surroundings(rng: np.random.Generator, canvas: Canvas, truck: Truck) -> None:
    """Paint sky, ground and road; then buildings and trees, farthest first."""
    camera = canvas.camera
    x = (canvas.x - camera.center_px[0].astype(np.float32)) / np.float32(camera.focal_px)
    y = ((canvas.y - camera.center_px[1].astype(np.float32)) / np.float32(camera.focal_px))[:, None]
    rays = [np.float32(a) * x + (np.float32(b) * y + np.float32(c)) for a, b, c in camera.axes.T]
    haze, shift = _paint_sky(rng, canvas, rays)
    _paint_ground(rng, canvas, truck, rays, haze, shift)

    distances = np.sort(rng.uniform(20, 60, rng.integers(1, 7)))[::-1]
    for distance in distances:
        bearing, tree = rng.uniform(-0.6, 0.6), rng.random() < 0.6
        center = distance * direction(bearing)
        if tree:
            _paint_tree(rng, canvas, center)
        else:
            length, depth, high, angle = rng.uniform((6, 6, 4, 0), (16, 12, 14, math.pi))
            wall = draw_paint(rng, WALLS)
            _paint_building(canvas, Solid(center, direction(angle), length, depth, 0.0, high), wall)


def _paint_sky(rng: np.random.Generator, canvas: Canvas, rays: list[NDArray]) -> tuple[float, NDArray]:
    """Paint a sky with clouds; return the gray of the haze and the grain offsets of sky and ground."""
    sky, haze = draw_paint(rng, SKIES), rng.uniform(0.75, 0.95)
    cloudy, shift = rng.uniform(0, 0.6), rng.integers(512, size=6)
    rise = np.clip(rays[2] * 2.5, 0, 1)
    clouds = np.float32(cloudy) * np.clip(
        grain(rays[0] * 200 + shift[0], rays[2] * 500 + shift[1]) * 2 - 1, 0, 1
    )
    color = haze + rise * (sky.astype(np.float32)[:, None, None] - np.float32(haze))
    canvas.planes[:3] = color + clouds * (np.float32(0.95) - color)
    return haze, shift


def _paint_ground(
    rng: np.random.Generator,
    canvas: Canvas,
    truck: Truck,
    rays: list[NDArray],
    haze: float,
    shift: NDArray,
) -> None:
    """Paint the ground up to the horizon, hazy in the distance, in most scenes with a road."""
    camera, planes = canvas.camera, canvas.planes
    far = np.maximum(-rays[2], np.float32(0.004))
    away = np.float32(camera.position[2]) / far
    ground_x, ground_y = rays[0] * away, rays[1] * away
    base, other = draw_paint(rng, GROUNDS), draw_paint(rng, GROUNDS)
    rough, patchy = rng.uniform(0.1, 0.5), rng.uniform(0, 0.7)
    fine = grain(ground_x * 40 + shift[2], ground_y * 40 + shift[3]) - np.float32(0.5)
    wide = grain(ground_x * 6 + shift[4], ground_y * 6 + shift[5])
    color = base[:, None, None] + (other - base)[:, None, None] * (patchy * wide)
    color = color.astype(np.float32) * (1 + np.float32(rough) * fine * np.minimum(1, 8 / away))
    _paint_road(rng, color, truck, ground_x, ground_y, away * np.float32(1.0 / camera.focal_px), fine)
    lit = canvas.sun.shade(np.array([0.0, 0.0, 1.0]))
    fog = np.clip(away / 150, 0, np.float32(0.8))
    color = color * np.float32(lit)
    color += fog * (np.float32(haze) - color)
    ground = np.clip(-rays[2] * np.float32(camera.focal_px) + np.float32(0.5), 0, 1)
    planes[:3] += ground * (color - planes[:3])


def _paint_road(
    rng: np.random.Generator,
    color: NDArray,
    truck: Truck,
    ground_x: NDArray,
    ground_y: NDArray,
    pixel_m: NDArray,
    fine: NDArray,
) -> None:
    """Paint a road with markings into the ground, mostly along the truck."""
    along = truck.cargo.heading if rng.random() < 0.6 else direction(rng.uniform(-1.5, 1.5))
    half, offset, gray = rng.uniform((2.4, -1.2, 0.22), (4.5, 1.2, 0.45))
    dash, has_road = rng.uniform(1.5, 3.0), rng.random() < 0.8
    if not has_road:
        return
    aside = np.float32(along[1]) * (ground_x - np.float32(truck.cargo.center[0]))
    aside -= np.float32(along[0]) * (ground_y - np.float32(truck.cargo.center[1])) + np.float32(offset)
    onward = np.float32(along[0]) * ground_x + np.float32(along[1]) * ground_y
    blur = pixel_m + np.float32(1e-3)
    road = np.clip((np.float32(half) - abs(aside)) / blur + np.float32(0.5), 0, 1)
    color += road * (np.float32(gray) * (1 + np.float32(0.3) * fine) - color)
    middle = np.clip((np.float32(0.1) - abs(aside)) / blur + np.float32(0.5), 0, 1)
    middle = middle * (onward % (2 * dash) < dash)
    border = np.clip(
        (np.float32(0.08) - abs(abs(aside) - np.float32(half - 0.3))) / blur + np.float32(0.5), 0, 1
    )
    color += np.maximum(middle, border) * (np.float32(0.85) - color)


def _paint_building(canvas: Canvas, solid: Solid, wall: NDArray) -> None:
    for name, face in solid.faces().items():
        columns = int(np.linalg.norm(face.across[:2]) // 2)
        quad = canvas.face(face, wall)
        if quad is None or name == "top":
            continue
        window = canvas.window(bounds_of(quad), 0.0)
        u, v = canvas.inside(face, window)
        frame = (u > 0) & (u < 1) & (v > 0.05) & (v < 0.9)
        panes = (
            frame & (abs(u * columns % 1 - 0.5) < 0.28) & (abs(v * (solid.high // 3 + 1) % 1 - 0.5) < 0.25)
        )
        canvas.blend(window, panes * np.float32(0.8), GLASS * canvas.sun.shade(face.normal()))


def _paint_tree(rng: np.random.Generator, canvas: Canvas, center: NDArray) -> None:
    high, wide, lobes = rng.uniform((4, 1.5, 0.3), (9, 3.5, 0.8))
    green = np.array(rng.uniform((0.10, 0.22, 0.05), (0.34, 0.42, 0.16)))
    shift = rng.integers(512, size=2)
    top = at_height(center[None], high)[0]
    root, crown = canvas.camera.project(np.stack([at_height(center[None], 0.0)[0], top - (0, 0, wide)]))
    per_meter = canvas.camera.focal_px / math.hypot(*center)
    trunk = np.array([0.15 * per_meter, 0.0])
    canvas.polygon(
        np.array([crown - trunk, crown + trunk, root + trunk, root - trunk]), np.array((0.25, 0.18, 0.12))
    )
    radius = wide * per_meter
    window = rows, columns = canvas.window(np.concatenate([crown, crown]), 1.5 * radius)
    dx, dy = (canvas.x[columns] - crown[0]) / radius, (canvas.y[rows, None] - crown[1]) / radius
    leaves = grain(dx * 40 + shift[0], dy * 40 + shift[1]) - 0.5
    cover = np.clip((1 - np.hypot(dx, dy) + lobes * leaves) * radius + 0.5, 0, 1).astype(np.float32)
    light = (0.75 - 0.3 * dy + 0.9 * leaves) * canvas.sun.shade(np.array([0.0, 0.0, 1.0]))
    canvas.blend(window, cover, np.clip(green[:, None, None] * light, 0, 1))


def paint_poles(rng: np.random.Generator, canvas: Canvas, truck: Truck) -> None:
    """Paint up to two lamp posts or trunks before the middle of the truck."""
    camera = canvas.camera
    x0, _, x1, _ = bounds_of(camera.project(truck.corners()))
    for _ in range(rng.choice(3, p=[0.65, 0.25, 0.1])):
        position, near, thick, high = rng.uniform((0.2, 0.4, 0.03, 3.0), (0.8, 0.75, 0.08, 7.0))
        color = draw_paint(rng, POLES)
        distance = near * (truck.cargo.distance - truck.cargo.length)
        slope = (x0 + position * (x1 - x0) - camera.center_px[0]) / camera.focal_px
        base = np.array([slope * distance, distance, 0.0])
        foot, top = camera.project(np.stack([base, base + np.array((0, 0, high))]))
        half = np.array([thick * camera.focal_px / distance, 0.0])
        canvas.polygon(
            np.array([top - half, top + half, foot + half, foot - half]), color * canvas.sun.ambient, grow=0.0
        )
