"""Rates over a grid of two values, as heat maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fpatch.metrics import Rate

_MOST_PANELS_WIDE = 3


class HeatMap(NamedTuple):
    """One panel of a figure.

    Attributes:
        x: Name and values (or names) of the columns.
        y: Name and values (or names) of the rows.
        rates: The rates by row and column; None for a cell that was not measured.

    Example:
        >>> from fpatch import metrics, viz
        >>> rate = metrics.Rate(0.8, 0.7, 0.9, 60, 60)
        >>> panel = viz.HeatMap(("distance (m)", [5, 10]), ("light", ["day"]), [[rate, None]])
        >>> print(panel.rates[0][0])
        80.0 % [70.0, 90.0] of 60 rows, 60 images
    """

    x: tuple[str, Sequence[float | str]]
    y: tuple[str, Sequence[float | str]]
    rates: Sequence[Sequence[Rate | None]]


def plot_heat_maps(path: str | Path, panels: Sequence[HeatMap], success: str = "attack success (%)") -> None:
    """Save heat maps of rates; each cell shows its percentage and its number of rows.

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
        >>> rate = metrics.Rate(0.8, 0.7, 0.9, 60, 60)
        >>> panel = viz.HeatMap(("distance (m)", [5, 10]), ("light", ["day"]), [[rate, None]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     viz.plot_heat_maps(Path(folder, "map.png"), [panel])
        ...     Path(folder, "map.png").read_bytes()[1:4]
        b'PNG'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("heat maps need matplotlib: pip install 'fpatch[plot]'") from error
    wide = min(len(panels), _MOST_PANELS_WIDE)
    high = -(-len(panels) // wide)
    columns = max(len(p.x[1]) for p in panels)
    rows = max(len(p.y[1]) for p in panels)
    size = (wide * (2.6 + 0.75 * columns), high * max(1.4 + 0.5 * rows, 3.2))
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(high, wide, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        percent = np.array([[np.nan if r is None else 100 * r.value for r in row] for row in panel.rates])
        image = axis.imshow(percent, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for i, j in np.ndindex(percent.shape):
            rate = panel.rates[i][j]
            if rate is not None and not np.isnan(rate.value):
                ink = "black" if percent[i, j] > 60 else "white"
                axis.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="bottom", color=ink)
                axis.text(j, i, f"n {rate.count}", ha="center", va="top", color=ink, fontsize=7)
        axis.set_xticks(range(len(panel.x[1])), [_show(v) for v in panel.x[1]])
        axis.set_yticks(range(len(panel.y[1])), [_show(v) for v in panel.y[1]])
        axis.set(xlabel=panel.x[0], ylabel=panel.y[0])
        figure.colorbar(image, ax=axis, label=success)
    figure.savefig(path, dpi=140)


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
