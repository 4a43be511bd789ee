"""Surfaces: colors, grain and prints. Colors are display values in 0..1."""

import math

import numpy as np
from numpy.typing import NDArray

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


def draw_paint(rng: np.random.Generator, paints: NDArray = PAINTS) -> NDArray:
    """Draw one of the colors and perturb it."""
    return np.clip(paints[rng.integers(len(paints))] + rng.uniform(-0.07, 0.07, 3), 0.03, 0.97)


def draw_print(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Draw the print of a wall, ``[h, w, 3]``: plain, bands, letters, spray or a mosaic down to noise."""
    colors = np.array([draw_paint(rng) for _ in range(3)], dtype=np.float32)
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
        index = (grain(x * 3 + shift[0], y * 3 + shift[1]) * 3).astype(int) % 3
    else:
        index = np.zeros((height, width), dtype=int)
    return colors[index]


def _make_grain(side: int = 512) -> NDArray[np.float32]:
    """Make smooth tileable noise, uniform in 0..1, ``[side, side]``, with side a power of two."""
    rng = np.random.Generator(np.random.Philox(key=0))
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


def grain(x: NDArray, y: NDArray) -> NDArray:
    """Return the noise at coordinates in cells of the table."""
    wrap = np.int32(len(GRAIN) - 1)
    return GRAIN[y.astype(np.int32) & wrap, x.astype(np.int32) & wrap]
