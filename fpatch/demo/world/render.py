"""Procedural images of a box truck, drawn with numpy alone.

A pinhole camera looks at a street: sky, ground, a road, buildings, trees, other boxes with shadows, and one
truck. The sides and the rear of its cargo box carry flat panels. A print on a panel is lit, hidden behind
poles, blurred and made noisy like the rest of the scene. A scene can be rendered again with another print
and no other change.

For the frames of the world and of the image see `fpatch.demo.world.solids`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpatch.demo.world.canvas import Canvas, Sun
from fpatch.demo.world.paints import draw_print
from fpatch.demo.world.solids import direction
from fpatch.demo.world.surroundings import draw_things, paint_poles, paint_surroundings
from fpatch.demo.world.truck import draw_pose, paint_truck

PANELS = ("side", "rear")
LABEL = "truck"
MIN_SIDE_PX = 48
PRINT_SIZE = {"side": (20, 36), "rear": (20, 20)}
"""Height and width of the prints that the renderer draws."""


@dataclass(frozen=True)
class Scene:
    """An image and its ground truth.

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
    """Return the generator of scene `index` under `seed`: Philox, keyed by the pair."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def render(
    rng: np.random.Generator, size_hw: tuple[int, int], textures: Mapping[str, NDArray] | None = None
) -> Scene:
    """Render one random scene.

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
    camera, truck = draw_pose(rng, size_hw)
    canvas = Canvas(camera, size_hw, _draw_sun(rng))
    paint_surroundings(rng, canvas, truck)
    things = draw_things(rng, camera, truck)
    prints = {name: draw_print(rng, *PRINT_SIZE[name]) for name in PANELS}
    prints |= {name: _as_print(name, texture) for name, texture in (textures or {}).items()}

    for solid in (truck.cargo, truck.cab, *(thing.solid for thing in things)):
        canvas.shadow(solid)
    behind = sum(thing.solid.distance > truck.cargo.distance for thing in things)
    for thing in things[:behind]:
        thing.paint(canvas)
    panels = paint_truck(rng, canvas, truck, prints)
    for thing in things[behind:]:
        thing.paint(canvas)
    paint_poles(rng, canvas, truck)

    visible = canvas.planes[3] > 0.5
    columns, rows = np.flatnonzero(visible.any(0)), np.flatnonzero(visible.any(1))
    bounds = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    return Scene(_develop(rng, canvas.planes[:3]), bounds, LABEL, panels)


def _draw_sun(rng: np.random.Generator) -> Sun:
    azimuth, elevation, ambient = rng.uniform((0, 0.6, 0.68), (2 * math.pi, 1.2, 0.95))
    ground = direction(azimuth) * math.cos(elevation)
    return Sun(np.append(ground, math.sin(elevation)), ambient)


def _as_print(name: str, texture: NDArray) -> NDArray[np.float32]:
    """Check a given texture and convert it to floats."""
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


def _develop(rng: np.random.Generator, planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Apply the camera: gain, tint, gamma, blur, noise and eight bits."""
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
