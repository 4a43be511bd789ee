"""Places for labels that do not cover each other."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Box = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax, with y downwards."""


class Label(NamedTuple):
    """A label to place.

    Attributes:
        size: Width and height.
        corners: The wished places of its top left corner, the best first.
    """

    size: tuple[float, float]
    corners: Sequence[tuple[float, float]]


def corners_at(box: Box, size: tuple[float, float], inset: float = 2.0) -> list[tuple[float, float]]:
    """Return the places of a label at a box: above it, inside from the top, below, then at its right edge.

    Example:
        >>> from fpatch.viz._labels import corners_at
        >>> corners_at((10.0, 40.0, 70.0, 70.0), (30.0, 10.0), inset=0.0)[:3]
        [(10.0, 30.0), (10.0, 40.0), (10.0, 50.0)]
    """
    (x0, y0, x1, y1), (width, height) = box, size
    lines = max(int((y1 - y0 - inset) // height), 1)
    inside = [y0 + inset + height * i for i in range(min(lines, 4))]
    return [(x, y) for x in (x0, x1 - width) for y in (y0 - height, *inside, y1)]


def place_labels(
    labels: Sequence[Label], bounds: Box, kept_free: Sequence[Box] = ()
) -> list[tuple[float, float]]:
    """Place labels in their order: each at its first wish that is free, else at the nearest free place.

    Labels stay inside the bounds, and outside of the boxes that are kept free. Where no place is free, a
    label covers as little of others as it can.

    Returns:
        The top left corner of each label.

    Example:
        >>> from fpatch.viz._labels import Label, place_labels
        >>> place_labels([Label((30.0, 10.0), [(5.0, 5.0)])] * 2, (0.0, 0.0, 40.0, 40.0))
        [(5.0, 5.0), (5.0, 15.0)]
    """
    taken: list[Box] = list(kept_free)
    placed = []
    for label in labels:
        wishes = [_clamp(corner, label.size, bounds) for corner in label.corners]
        best = min(wishes, key=lambda corner: _covered(corner, label.size, taken))
        if _covered(best, label.size, taken) > 0:
            near = [best, *_nearby(wishes[0], label.size, bounds)]
            best = min(near, key=lambda corner: _covered(corner, label.size, taken))
        placed.append(best)
        taken.append((*best, best[0] + label.size[0], best[1] + label.size[1]))
    return placed


def _nearby(
    corner: tuple[float, float], size: tuple[float, float], bounds: Box
) -> Iterator[tuple[float, float]]:
    """Yield places in lines and steps of a quarter of the width, the nearest first."""
    (x, y), (width, height) = corner, size
    lines = int((bounds[3] - bounds[1]) // height) + 1
    steps = range(-12, 13)
    moved = [(i * width / 4, j * height) for i in steps for j in range(-lines, lines + 1)]
    for dx, dy in sorted(moved, key=lambda move: abs(move[0]) + abs(move[1])):
        found = x + dx, y + dy
        if found == _clamp(found, size, bounds):
            yield found


def _clamp(corner: tuple[float, float], size: tuple[float, float], bounds: Box) -> tuple[float, float]:
    x, y = (max(min(at, bounds[i + 2] - size[i]), bounds[i]) for i, at in enumerate(corner))
    return x, y


def _covered(corner: tuple[float, float], size: tuple[float, float], taken: Sequence[Box]) -> float:
    """Return the area of a label that lies over others."""
    (x, y), (width, height) = corner, size
    wide = (max(min(x + width, b[2]) - max(x, b[0]), 0.0) for b in taken)
    high = (max(min(y + height, b[3]) - max(y, b[1]), 0.0) for b in taken)
    return sum(w * h for w, h in zip(wide, high, strict=True) if w * h > 1e-6)
