"""Rates over a grid of two values, as heat maps; beside each the difference from a control."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpatch.metrics import Rate
from fpatch.viz._names import show_values, wrap_name

_MOST_PANELS_WIDE = 3
_CELL_IN, _LETTER_IN = (0.78, 0.62), 0.085
"""The sides of a cell, and the width of a letter of the ticks, in inches."""

_LEAST_LIMIT = 20.0
"""The colors of differences reach this many points at least, so that chance is pale."""

Cells = Sequence[Sequence[Rate | None]]
"""Rates by row and column; None for a cell that was not measured."""


class HeatMap(NamedTuple):
    """One panel of a figure: success, and maybe its difference from a control beside it.

    Attributes:
        x: Name and values (or names) of the columns.
        y: Name and values (or names) of the rows.
        rates: The rates by row and column; None for a cell that was not measured.
        over: The rates minus those of a control, likewise; None: no second map.
        clean: The rates found without a patch, likewise; None: not written in the cells.
        control: The name of the control.

    Example:
        >>> from fpatch import metrics, viz
        >>> rate = metrics.Rate(0.8, 0.7, 0.9, 60, 60)
        >>> panel = viz.HeatMap(("distance (m)", [5, 10]), ("light", ["day"]), [[rate, None]])
        >>> print(panel.rates[0][0])
        80.0 % [70.0, 90.0] of 60 rows, 60 images
    """

    x: tuple[str, Sequence[float | str]]
    y: tuple[str, Sequence[float | str]]
    rates: Cells
    over: Cells | None = None
    clean: Cells | None = None
    control: str = "the control"


def plot_heat_maps(path: str | Path, panels: Sequence[HeatMap], success: str = "attack success (%)") -> None:
    """Save heat maps of rates; each cell shows its percentage, its number of rows and the clean rate.

    A panel with `over` has a second map: the difference from the control in points, with its interval. Zero
    is white, and a cell is hatched where the interval holds 0 or is unknown.

    Args:
        path: PNG file.
        panels: The panels, one at least.
        success: The label of the colors.

    Raises:
        ImportError: If the extra `plot` is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch import metrics, viz
        >>> rate, more = metrics.Rate(0.8, 0.7, 0.9, 60, 60), metrics.Rate(0.1, -0.05, 0.25, 60, 60)
        >>> panel = viz.HeatMap(("distance (m)", [5]), ("light", ["day"]), [[rate]], over=[[more]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     viz.plot_heat_maps(Path(folder, "map.png"), [panel])
        ...     Path(folder, "map.png").read_bytes()[1:4]
        b'PNG'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("heat maps need matplotlib: pip install 'fpatch[plot]'") from error
    paired = any(panel.over is not None for panel in panels)
    wide = 2 if paired else min(len(panels), _MOST_PANELS_WIDE)
    high = len(panels) if paired else -(-len(panels) // wide)
    width, height = np.max([_size(panel) for panel in panels], axis=0)
    figure = Figure(figsize=(wide * width, high * height), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, panel in enumerate(panels):
        row, column = (i, 0) if paired else divmod(i, wide)
        _draw_rates(figure, axes[row, column], panel, success)
        if panel.over is not None:
            _draw_differences(figure, axes[row, 1], panel, panel.over)
    figure.savefig(path, dpi=140)


def _size(panel: HeatMap) -> tuple[float, float]:
    """Return the inches of one map, with its names and its bar of colors."""
    columns, rows = ([wrap_name(n) for n in show_values(axis[1])] for axis in (panel.x, panel.y))
    widest = max(len(line) for name in rows for line in name.split("\n"))
    across = len(columns) * _CELL_IN[0] + widest * _LETTER_IN + 1.9
    tall = max(len(line) for name in columns for line in name.split("\n")) if _is_crowded(columns) else 1
    down = len(rows) * _CELL_IN[1] + tall * _LETTER_IN + 1.3
    return max(across, 3.6), max(down, 3.2)


def _is_crowded(names: Sequence[str]) -> bool:
    """Return whether names under the columns would touch each other."""
    return any(len(line) * _LETTER_IN > _CELL_IN[0] for name in names for line in name.split("\n"))


def _draw_rates(figure: Any, axis: Any, panel: HeatMap, success: str) -> None:
    percent = _percent(panel.rates)
    image = _draw_cells(axis, panel, percent, "viridis", (0, 100))
    for i, j in np.ndindex(percent.shape):
        rate = panel.rates[i][j]
        if rate is None or math.isnan(rate.value):
            continue
        ink, more = "black" if percent[i, j] > 60 else "white", f"n {rate.count}"
        clean = panel.clean[i][j] if panel.clean is not None else None
        if clean is not None:
            more += f"\nclean {100 * clean.value:.0f} %"
        _write(axis, i, j, f"{percent[i, j]:.0f}", more, ink)
    figure.colorbar(image, ax=axis, label=wrap_name(success, 40))


def _draw_differences(figure: Any, axis: Any, panel: HeatMap, over: Cells) -> None:
    from matplotlib.patches import Rectangle

    points = _percent(over)
    limit = max(_LEAST_LIMIT, float(np.nanmax(np.abs(points), initial=0.0)))
    image = _draw_cells(axis, panel, points, "RdBu_r", (-limit, limit))
    for i, j in np.ndindex(points.shape):
        rate = over[i][j]
        if rate is None or math.isnan(rate.value):
            continue
        if not (rate.low > 0 or rate.high < 0):
            box = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor="0.55", linewidth=0)
            axis.add_patch(box)
        interval = f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]" if rate.low == rate.low else "too few"
        ink = "white" if abs(points[i, j]) > 0.65 * limit else "black"
        number = f"{points[i, j]:+.0f}" if abs(points[i, j]) >= 0.5 else "0"
        _write(axis, i, j, number, interval, ink, image.to_rgba(points[i, j]))
    axis.set_title("hatched: the interval holds 0", fontsize=8)
    label = f"patch minus {panel.control} (points)"
    figure.colorbar(image, ax=axis, label=wrap_name(label, 40))


def _percent(rates: Cells) -> np.ndarray:
    return np.array([[np.nan if r is None else 100 * r.value for r in row] for row in rates])


def _draw_cells(
    axis: Any, panel: HeatMap, values: np.ndarray, colors: str, limits: tuple[float, float]
) -> Any:
    """Draw colored cells with their ticks and names; cells without a value stay gray."""
    axis.set_axis_on()
    axis.set_facecolor("0.85")
    image = axis.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    columns, rows = ([wrap_name(n) for n in show_values(values)] for values in (panel.x[1], panel.y[1]))
    slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if _is_crowded(columns) else {}
    axis.set_xticks(range(len(columns)), columns, **slant)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel(wrap_name(panel.x[0], max(int(len(columns) * _CELL_IN[0] / _LETTER_IN), 20)))
    axis.set_ylabel(wrap_name(panel.y[0], max(int(len(rows) * _CELL_IN[1] / _LETTER_IN), 20)))
    return image


def _write(axis: Any, i: int, j: int, number: str, more: str, ink: str, behind: Any = None) -> None:
    """Write a number into a cell, and smaller lines below it."""
    from matplotlib.patheffects import withStroke

    halo = {} if behind is None else {"path_effects": [withStroke(linewidth=2.5, foreground=behind)]}
    axis.text(j, i, number, ha="center", va="bottom", color=ink, fontsize=10, **halo)
    axis.text(j, i, more, ha="center", va="top", color=ink, fontsize=6.5, linespacing=1.05, **halo)
