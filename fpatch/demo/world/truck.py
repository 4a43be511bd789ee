"""The truck: its pose before the camera, its paint and its prints."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpatch.demo.world.canvas import Canvas
from fpatch.demo.world.paints import GLASS, LAMP, POLES, RUBBER, STEEL, TAIL_LAMP, draw_paint
from fpatch.demo.world.solids import Camera, Solid, at_height, bounds_of, cross, direction

MARGIN_PX = 2.0
"""Free border around the truck."""
MIN_FACING = 0.12
"""The smallest cosine between the normal of a visible panel and the line of sight."""
INSET_FRAC = {"side": (0.03, 0.05), "rear": (0.06, 0.05)}
"""Frame around a panel, as fractions of the width and height of its face."""


class Truck(NamedTuple):
    """Three cuboids and the radius of the wheels."""

    cargo: Solid
    cab: Solid
    chassis: Solid
    wheel_m: float

    def corners(self) -> NDArray:
        """Return the corners of its visible solids, ``[n, 3]``."""
        return np.concatenate(
            [self.cargo.corners(), self.cab.corners(), at_height(self.chassis.footprint(), 0.0)]
        )


def draw_pose(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[Camera, Truck]:
    """Draw a camera and a truck inside the image, seen from behind or from a side."""
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
        axes = np.stack([right, cross(forward, right), forward])
        camera = Camera(np.array([0, 0, camera_height]), axes, focal_px, np.array([width / 2, height / 2]))
        center, heading = distance * direction(bearing), direction(bearing + heading_angle)
        ahead = center + heading * (length + cab_length + 0.15) / 2
        truck = Truck(
            Solid(center, heading, length, depth, floor, floor + tall),
            Solid(ahead, heading, cab_length, depth * 0.94, 0.45, 0.45 + cab_height),
            Solid(center + heading * cab_length / 2, heading, length + cab_length, depth * 0.85, 0.35, floor),
            wheel_m,
        )
        x0, y0, x1, y1 = bounds_of(camera.project(truck.corners()))
        if min(x0, y0, width - x1, height - y1) >= MARGIN_PX:
            return camera, truck
        distance *= 1.03


def paint_truck(
    rng: np.random.Generator, canvas: Canvas, truck: Truck, prints: Mapping[str, NDArray]
) -> dict[str, NDArray[np.float64]]:
    """Paint the truck and return the quads of its visible panels."""
    cab_color, cargo_color, hub = draw_paint(rng), draw_paint(rng), draw_paint(rng, POLES)
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
