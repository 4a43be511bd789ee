"""A figure of results by class: success with intervals, and what the victim calls the objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fpatch.core.names import label
from fpatch.evaluation.by_class import NO_DETECTION, NOT_FINITE, ByClass, ClassResult
from fpatch.evaluation.conditions import NONE, PATCH, TITLES
from fpatch.viz import style
from fpatch.viz.names import clip_apart, clip_name, wrap_name

_MOST, _MOST_OTHERS = 10, 3
"""The most true classes shown, and the most further answers."""

_CELL_IN, _LETTER_IN = 0.29, 0.066
_OTHERS = "(other classes)"


def plot_classes(path: str | Path, found: ByClass, success: str, title: str = "") -> None:
    """Save success by class, and the answers of the victim without the patch and with it.

    The classes with the most rows are shown, ten at most.

    Args:
        path: PNG file.
        found: The results by class; one class at least.
        success: The label of the axis of success.
        title: The title above.

    Raises:
        ImportError: If the extra `plot` is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.evaluation.by_class import ByClass, ClassResult
        >>> from fpatch.metrics import Rate
        >>> from fpatch.viz.class_figure import plot_classes
        >>> rates = {"patch": Rate(0.5, 0.2, 0.8, 10, 10), "noise": Rate(0.1, 0.0, 0.4, 10, 10)}
        >>> answers = {"patch": {"stop": 5, "bird": 5}, "none": {"stop": 10}}
        >>> stop = ClassResult(Rate(1.0, 0.7, 1.0, 10, 10), rates, {}, answers)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_classes(Path(folder, "classes.png"), ByClass({"stop": stop}), "attack success (%)")
        ...     Path(folder, "classes.png").read_bytes()[1:4]
        b'PNG'
    """
    names = found.largest(_MOST)
    shown = {name: found.classes[name] for name in names}
    columns = _choose_answers(shown)
    clipped = clip_apart(names)
    rows = [f"{clip} ({shown[name].main.count})" for name, clip in zip(names, clipped, strict=True)]
    deep = len(rows) * _CELL_IN
    conditions = [c for c in (NONE, PATCH) if columns and all(c in e.answers for e in shown.values())]
    margin = max(map(len, rows)) * _LETTER_IN + 0.3
    wide = max(len(columns) * _CELL_IN, 1.2)
    width = max(margin + max(2.6, len(conditions) * (wide + 0.2) + 0.2), 4.6)
    below = max(map(len, clip_apart(columns)), default=0) * _LETTER_IN * 0.85 + 0.9
    height = deep + 1.5 + (deep + below if conditions else 0.0)
    with style.figure("figures of classes", width, height) as figure:
        upper, lower = figure, None
        if conditions:
            parts: Any = figure.subfigures(2, 1, height_ratios=[deep + 1.5, deep + below])
            upper, lower = parts
        axis = upper.subplots()
        _draw_rates(axis, rows, shown, success)
        left = len(found.classes) - len(shown)
        more = f"; {left} more classes are not shown" if left else ""
        counted = "rows found without a patch" if found.attacked else "rows"
        note = f"(n): {counted}; bars: 95\u00a0% intervals over images{more}"
        axis.set_title(wrap_name(note, int((width - margin) / 0.062)), fontsize=7, fontweight="normal")
        if lower is not None:
            axes = lower.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
            for axis, condition in zip(axes, conditions, strict=True):
                _draw_answers(axis, clipped, columns, shown, condition)
            axes[0].set_ylabel("true class")
            lower.supxlabel("answer: number of all rows, colored by their share of the class", fontsize=8)
        figure.suptitle(label(clip_name(title, int(width / 0.085))))
        style.save(figure, path)


def _choose_answers(shown: Mapping[str, ClassResult]) -> list[str]:
    """Return the answers with a column of their own: the classes shown, and the most frequent others."""
    totals: dict[str, int] = {}
    for entry in shown.values():
        for condition in (NONE, PATCH):
            for answer, count in entry.answers.get(condition, {}).items():
                totals[answer] = totals.get(answer, 0) + count
    special = [name for name in (NO_DETECTION, NOT_FINITE) if name in totals]
    others = [name for name in totals if name not in shown and name not in special]
    others.sort(key=lambda name: (-totals[name], name))
    extra = others if len(others) <= _MOST_OTHERS + 1 else [*others[:_MOST_OTHERS], _OTHERS]
    return [*shown, *extra, *special] if totals else []


def _draw_rates(axis: Any, rows: Sequence[str], shown: Mapping[str, ClassResult], success: str) -> None:
    """Draw the patch and every control as dots with intervals, a line per class."""
    conditions = list(next(iter(shown.values())).shown)
    space = 0.7 / max(len(conditions), 1)
    for i, condition in enumerate(conditions):
        rates = [entry.shown[condition] for entry in shown.values()]
        values = 100 * np.array([(r.value, r.low, r.high) for r in rates])
        places = np.arange(len(rows)) + (i - (len(conditions) - 1) / 2) * space
        known = np.isfinite(values[:, 1])
        look = style.condition_style(condition, i)
        spans = np.abs(values[known, 1:] - values[known, :1]).T
        axis.errorbar(
            values[known, 0], places[known], xerr=spans, fmt="none", ecolor=look["color"], elinewidth=0.8
        )
        name = "no patch" if condition == NONE else label(clip_name(TITLES.get(condition, condition), 30))
        axis.plot(values[:, 0], places, linestyle="", label=name, **look)
    for i, entry in enumerate(shown.values()):
        if entry.not_finite:
            axis.text(50, i, "rows are not finite", ha="center", va="center", fontsize=7, fontstyle="italic")
    axis.set_yticks(range(len(rows)), [label(name) for name in rows])
    axis.set(xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5), xlabel=label(wrap_name(success, 60)))
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    handles, names = axis.get_legend_handles_labels()
    inches = axis.figure.bbox.width / axis.figure.dpi
    across = min(max(int(inches / 1.3), 1), len(names))
    axis.figure.legend(handles, names, loc="outside lower center", ncols=across)


def _draw_answers(
    axis: Any, rows: Sequence[str], columns: Sequence[str], shown: Mapping[str, ClassResult], condition: str
) -> None:
    """Draw the answers of a condition: a row per true class."""
    counts = np.zeros((len(rows), len(columns)), dtype=int)
    for i, entry in enumerate(shown.values()):
        for answer, count in entry.answers[condition].items():
            counts[i, columns.index(answer if answer in columns else _OTHERS)] += count
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap=style.COUNTS, vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(counts), strict=True):
        ink = "white" if shares[i, j] > 0.6 else style.INK
        axis.text(j, i, str(counts[i, j]), ha="center", va="center", color=ink, fontsize=6.5)
    names = [label(name) for name in clip_apart(columns)]
    axis.set_xticks(range(len(columns)), names, rotation=55, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), [label(name) for name in rows])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("no patch" if condition == NONE else label(TITLES.get(condition, condition)))
