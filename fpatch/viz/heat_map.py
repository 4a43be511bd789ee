"""Rates over a grid of two values, as heat maps; beside each the difference from a control."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpatch.core.names import label
from fpatch.metrics import Rate
from fpatch.viz import style
from fpatch.viz.names import clip_apart, clip_name, show_values, wrap_name

_LETTER_IN, _LINE_IN = 0.066, 0.125
"""The width of a letter of the ticks, and the height of a line, in inches."""

_LEAST_LIMIT = 20.0
"""The colors of differences reach this many points at least, so that chance is pale."""


class _Form(NamedTuple):
    """The form of the cells.

    Attributes:
        most: The most rows or columns of a map with such cells.
        width: The width of a cell in inches.
        height: Its height.
        points: The size of its number.
        has_more: Whether counts and intervals stand in it.
    """

    most: float
    width: float
    height: float
    points: float
    has_more: bool


_FORMS = (
    _Form(6, 0.78, 0.6, 9.5, True),
    _Form(14, 0.42, 0.34, 7.5, False),
    _Form(math.inf, 0.31, 0.26, 6.5, False),
)

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
        framed: Cells (row, column) with a frame.
        frame: The meaning of the frame, written above the map.
        rule: The row above which a line is drawn, such as the first control.

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
    framed: Sequence[tuple[int, int]] = ()
    frame: str = ""
    rule: int | None = None


def plot_heat_maps(
    path: str | Path, panels: Sequence[HeatMap], success: str = "attack success (%)", title: str = ""
) -> None:
    """Save heat maps of rates; each cell shows its percentage, its number of rows and the clean rate.

    Maps of more than six rows or columns have smaller cells, and say the range of those numbers above.

    A panel with `over` has a second map: the difference from the control in points, with its interval. Zero
    is white, and a cell is hatched where the interval holds 0 or is unknown.

    Args:
        path: PNG file.
        panels: The panels, one at least.
        success: The label of the colors.
        title: The title above all maps.

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
    paired = any(panel.over is not None for panel in panels)
    wide = 2 if paired or len(panels) > 1 else 1
    high = len(panels) if paired else -(-len(panels) // wide)
    width, height = np.max([_size(panel) for panel in panels], axis=0)
    with style.figure("heat maps", wide * width, high * height + 0.3 * bool(title)) as figure:
        axes = figure.subplots(high, wide, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for i, panel in enumerate(panels):
            row, column = (i, 0) if paired else divmod(i, wide)
            _draw_rates(figure, axes[row, column], panel, success)
            if panel.over is not None:
                _draw_differences(figure, axes[row, 1], panel, panel.over)
        if title:
            figure.suptitle(label(clip_name(title, int(figure.get_figwidth() / 0.09))))
        style.save(figure, path)


def _form(panel: HeatMap) -> _Form:
    longest = max(len(panel.x[1]), len(panel.y[1]))
    return next(form for form in _FORMS if longest <= form.most)


def _names(panel: HeatMap) -> tuple[list[str], list[str]]:
    """Return the names of the columns and of the rows, as they are written."""
    form, (columns, rows) = _form(panel), (show_values(axis[1]) for axis in (panel.x, panel.y))
    if form.has_more:
        return [wrap_name(n) for n in columns], [wrap_name(n) for n in rows]
    return clip_apart(columns), clip_apart(rows)


def _size(panel: HeatMap) -> tuple[float, float]:
    """Return the inches of one map, with its names, its lines above and its bar of colors."""
    form, (columns, rows) = _form(panel), _names(panel)
    across = len(columns) * form.width + _longest(rows) * _LETTER_IN + 1.5
    tall = _longest(columns) * _LETTER_IN * 0.8 if _is_crowded(columns, form) else _LINE_IN
    down = max(len(rows) * form.height, 1.3) + tall + 1.1
    return max(across, 3.4), down


def _longest(names: Sequence[str]) -> int:
    return max(len(line) for name in names for line in name.split("\n"))


def _is_crowded(names: Sequence[str], form: _Form) -> bool:
    """Return whether names under the columns would touch each other."""
    return (_longest(names) + 1) * _LETTER_IN > form.width


def _draw_rates(figure: Any, axis: Any, panel: HeatMap, success: str) -> None:
    percent, form = _percent(panel.rates), _form(panel)
    image = _draw_cells(axis, panel, percent, style.RATES, (0, 100))
    for i, j in np.ndindex(percent.shape):
        rate = panel.rates[i][j]
        if rate is None or math.isnan(rate.value):
            continue
        ink, more = "black" if percent[i, j] > 60 else "white", f"n {rate.count}"
        clean = panel.clean[i][j] if panel.clean is not None else None
        if clean is not None:
            more += f"\nclean {100 * clean.value:.0f} %"
        _write(axis, i, j, f"{percent[i, j]:.0f}", more if form.has_more else "", ink, form)
    notes = [] if form.has_more else [_ranges(panel)]
    if panel.framed:
        _frame(axis, panel.framed)
        notes.append(f"framed: {panel.frame}" if panel.frame else "")
    if panel.rule is not None:
        axis.axhline(panel.rule - 0.5, color="white", linewidth=2.5)
        axis.axhline(panel.rule - 0.5, color=style.INK, linewidth=0.8)
    _note(axis, panel, notes)
    _color_bar(figure, image, axis, success)


def _ranges(panel: HeatMap) -> str:
    """Return the range of the counts and of the clean rates, which stand in no small cell."""
    rates = [r for row in panel.rates for r in row if r is not None]
    counts = [r.count for r in rates]
    text = f"{_range(counts)} rows per cell"
    clean = [100 * r.value for row in panel.clean or () for r in row if r is not None and r.value == r.value]
    return text + (f", clean {_range([round(c) for c in clean])}\u00a0%" if clean else "")


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "0"
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _note(axis: Any, panel: HeatMap, notes: Sequence[str]) -> None:
    """Write lines above a map, no longer than the map is wide."""
    form = _form(panel)
    letters = max(int(len(panel.x[1]) * form.width / (_LETTER_IN * 0.95)), 30)
    lines = [wrap_name(note, letters) for note in notes if note]
    if lines:
        axis.set_title("\n".join(lines), fontsize=7, fontweight="normal")


def _frame(axis: Any, cells: Sequence[tuple[int, int]]) -> None:
    from matplotlib.patches import Rectangle

    for i, j in cells:
        for color, width in (("white", 2.6), (style.INK, 1.2)):
            box = Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=color, linewidth=width)
            axis.add_patch(box)


def _draw_differences(figure: Any, axis: Any, panel: HeatMap, over: Cells) -> None:
    from matplotlib.patches import Rectangle

    points, form = _percent(over), _form(panel)
    limit = max(_LEAST_LIMIT, float(np.nanmax(np.abs(points), initial=0.0)))
    image = _draw_cells(axis, panel, points, style.DIFFERENCES, (-limit, limit))
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
        _write(axis, i, j, number, interval if form.has_more else "", ink, form, image.to_rgba(points[i, j]))
    measured = [r for row in over for r in row if r is not None and not math.isnan(r.value)]
    unknown = " or is unknown" if any(math.isnan(r.low) for r in measured) else ""
    _note(axis, panel, [f"hatched: the interval holds 0{unknown}"])
    _color_bar(figure, image, axis, f"patch minus {panel.control} (points)")


def _color_bar(figure: Any, image: Any, axis: Any, text: str) -> None:
    bar = figure.colorbar(image, ax=axis, label=wrap_name(text, 34), fraction=0.06, aspect=18, pad=0.02)
    bar.outline.set_visible(False)


def _percent(rates: Cells) -> np.ndarray:
    return np.array([[np.nan if r is None else 100 * r.value for r in row] for row in rates])


def _draw_cells(
    axis: Any, panel: HeatMap, values: np.ndarray, colors: str, limits: tuple[float, float]
) -> Any:
    """Draw colored cells with their ticks and names; cells without a value stay gray."""
    axis.set_axis_on()
    axis.set_facecolor("0.85")
    image = axis.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    form, (columns, rows) = _form(panel), _names(panel)
    slant = {}
    if _is_crowded(columns, form):
        slant = {"rotation": 35 if form.has_more else 60, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(columns)), columns, **slant)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(wrap_name(panel.x[0], max(int(len(columns) * form.width / _LETTER_IN), 20)))
    axis.set_ylabel(wrap_name(panel.y[0], max(int(len(rows) * form.height / _LETTER_IN), 20)))
    for count, draw in ((len(columns), axis.axvline), (len(rows), axis.axhline)):
        for k in range(1, count):
            draw(k - 0.5, color="white", linewidth=0.6)
    return image


def _write(
    axis: Any, i: int, j: int, number: str, more: str, ink: str, form: _Form, behind: Any = None
) -> None:
    """Write a number into a cell, and smaller lines below it."""
    from matplotlib.patheffects import withStroke

    halo = {} if behind is None else {"path_effects": [withStroke(linewidth=2.5, foreground=behind)]}
    place = {"ha": "center", "va": "bottom" if more else "center", "color": ink}
    axis.text(j, i, number, fontsize=form.points, **place, **halo)
    if more:
        axis.text(j, i, more, ha="center", va="top", color=ink, fontsize=6, linespacing=1.05, **halo)
