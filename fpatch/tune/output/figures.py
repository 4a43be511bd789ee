"""Figures of a sweep: parallel coordinates of all trials, and the importance of each setting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fpatch.core.names import label
from fpatch.tune.folder.journal import Entry, Journal
from fpatch.tune.plan import Plan
from fpatch.tune.search.space import Choice, Space, Varied
from fpatch.viz import style
from fpatch.viz.names import clip_apart, clip_name, wrap_name

_FEWEST = 10
"""The least number of trials for importances."""
_FOOT = -0.15
"""Position of a setting that a trial lacks."""
_MANY = 8
"""From this number of settings on, their axes are closer together."""
_GOOD = 0.1
"""Trials within this share of the range from the best are drawn strongly."""
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
"""Box behind labels, which keeps them legible on lines."""


def save_figures(journal: Journal, plan: Plan) -> list[str]:
    """Write `figures/parallel.png` and, from ten trials on, `figures/importance.png`; returns their names.

    Raises:
        ImportError: If the extra `sweep` is not installed.
    """
    entries = [e for e in journal.entries() if e.outcome is not None and e.value == e.value]
    folder = journal.folder / "figures"
    folder.mkdir(exist_ok=True)
    names: list[str] = []
    if entries:
        plot_parallel(folder / "parallel.png", plan, entries)
        names.append("figures/parallel.png")
    if len(entries) >= _FEWEST:
        plot_importance(folder / "importance.png", plan, entries)
        names.append("figures/importance.png")
    return names


def plot_parallel(path: Path, plan: Plan, entries: Sequence[Entry]) -> None:
    """Save parallel coordinates: an axis for each setting, then the objective; the best are drawn last."""
    from matplotlib import colormaps

    names = list(plan.space.varied)
    values = np.array([e.value for e in entries])
    low, high = float(values.min()), float(values.max())
    goodness = plan.sweep.sign * values
    rank = (goodness.max() - goodness) / ((high - low) or 1.0)  # 0 is the best
    step = 1.35 if len(names) < _MANY else 0.95  # inches
    with style.figure("figures", max(step * (len(names) + 1) + 0.6, 3.6), 3.4, "sweep") as figure:
        axis = figure.subplots()
        for i in np.argsort(goodness):
            heights = [place(plan.space, n, entries[i].trial.settings) for n in names]
            heights.append((entries[i].value - low) / ((high - low) or 1.0))
            color, strong = colormaps[style.RATES](0.92 * rank[i]), rank[i] < _GOOD
            axis.plot(heights, color=color, alpha=0.95 if strong else 0.55, lw=1.5 if strong else 0.8)
        for x, name in enumerate(names):
            _label_axis(axis, x, plan.space.varied[name])
        _label_ends(axis, len(names), f"{low:.3g}", f"{high:.3g}")
        for x in range(len(names) + 1):
            axis.axvline(x, color="0.6", lw=0.8, zorder=0)
        foot = _FOOT if plan.space.when else 0.0
        axis.set(xlim=(-0.35, len(names) + 0.35), ylim=(foot - 0.12, 1.12), yticks=[])
        labels = [
            wrap_name(name, int(step / 0.072), 5) for name in _short_names([*names, plan.sweep.objective])
        ]
        axis.set_xticks(range(len(labels)), [*map(label, labels)])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        note = "dark: the best" + ("; a setting that a trial lacks is at the foot" if plan.space.when else "")
        title = f"{plan.study.name}: {len(entries)} trials"
        figure.suptitle(label(clip_name(title, int(figure.get_figwidth() / 0.09))))
        axis.set_title(wrap_name(note, int(figure.get_figwidth() / 0.065)), fontsize=7, fontweight="normal")
        style.save(figure, path)


def _short_names(names: Sequence[str]) -> list[str]:
    """Return settings without the first parts of their names that do not tell them apart."""
    plain = [name.removeprefix("objective.") for name in names]
    for parts in (2, 3, 4):
        short = [".".join(name.split(".")[-parts:]) for name in plain]
        if len(set(short)) == len(plain):
            return short
    return plain


def _label_axis(axis: Any, x: int, kind: Varied) -> None:
    if isinstance(kind, Choice):
        for option in kind.options:
            axis.text(
                x + 0.03,
                kind.unit(option),
                label(clip_name(str(option), 18)),
                fontsize=6.5,
                va="center",
                bbox=_PAPER,
            )
        return
    _label_ends(axis, x, f"{kind.low:.3g}", f"{kind.high:.3g}{' log' if kind.log else ''}")


def _label_ends(axis: Any, x: int, low: str, high: str) -> None:
    axis.text(x, 1.02, high, ha="center", va="bottom", fontsize=7, bbox=_PAPER)
    axis.text(x, -0.02, low, ha="center", va="top", fontsize=7, bbox=_PAPER)


def place(space: Space, name: str, settings: dict[str, Any]) -> float:
    """Return the position of a setting between its ends, in [0, 1]; below 0 if the trial lacks it."""
    return space.varied[name].unit(settings[name]) if name in settings else _FOOT


def importance(plan: Plan, entries: Sequence[Entry]) -> Any:
    """Permutation importance of each setting for a forest that predicts the objective of held-out trials.

    Raises:
        fpatch.analysis.importance.NothingToExplain: If the objective or the settings do not vary.
    """
    from fpatch.analysis import permutation_importance

    table = {
        f"sample/{n}": np.array([place(plan.space, n, e.trial.settings) for e in entries])
        for n in plan.space.varied
    }
    values = np.array([e.value for e in entries])
    rows = {"image_id": np.arange(len(entries)), "objective/value": values}
    return permutation_importance({**rows, **table}, "objective/value")


def plot_importance(path: Path, plan: Plan, entries: Sequence[Entry]) -> None:
    """Save the importances as bars, with the share of the variance that the forest predicts."""
    from fpatch.analysis.importance import NothingToExplain

    try:
        found = importance(plan, entries)
    except NothingToExplain:
        found = None
    with style.figure("figures", 5.2, 0.26 * len(plan.space.varied) + 1.4, "sweep") as figure:
        axis = figure.subplots()
        if found is None:
            is_constant = np.ptp([e.value for e in entries]) == 0
            why = "all have the same value" if is_constant else "only the seed varies"
            note = f"no importances for {plan.sweep.objective} from {len(entries)} trials: {why}"
            axis.text(0.5, 0.5, label(wrap_name(note, 60)), ha="center", va="center")
            axis.set_axis_off()
        else:
            _draw_bars(axis, found.columns[::-1])
            score = found.score
            verdict = "; the interval holds 0: ignore the bars" if score.low <= 0 else ""
            note = (
                f"variance predicted in trials held out: {score.value:.2f} "
                f"[{score.low:.2f}, {score.high:.2f}]{verdict}; thin lines: standard deviations"
            )
            axis.set_title(wrap_name(note, 62), fontsize=7, fontweight="normal")
            title = f"{plan.study.name}: {plan.sweep.objective}, {len(entries)} trials"
            figure.suptitle(label(clip_name(title, 58)))
        style.save(figure, path)


def _draw_bars(axis: Any, columns: Sequence[Any]) -> None:
    """Draw the importance of each setting, the least first."""
    settings = [c.column.removeprefix("sample/") for c in columns]
    names = [label(name) for name in clip_apart(_short_names(settings), 34)]
    falls, spreads = [c.mean for c in columns], [c.std for c in columns]
    axis.barh(names, falls, xerr=spreads, color=style.COLORS[0], error_kw={"elinewidth": 0.8})
    axis.axvline(0.0, color="0.4", linewidth=0.6)
    axis.set_xlabel("share of the variance lost when shuffled")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.set_axisbelow(True)
