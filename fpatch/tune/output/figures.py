"""Figures of a sweep: parallel coordinates of all trials, and the importance of each setting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fpatch.core.names import label
from fpatch.tune.folder.journal import Entry, Journal
from fpatch.tune.plan import Plan
from fpatch.tune.search.space import Choice, Space, Varied

_FEWEST = 10
"""The least number of trials for importances."""
_FOOT = -0.15
"""Position of a setting that a trial lacks."""
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


def _new_figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'fpatch[sweep]'") from error
    return Figure(layout="constrained", **options)


def plot_parallel(path: Path, plan: Plan, entries: Sequence[Entry]) -> None:
    """Save parallel coordinates: an axis for each setting, then the objective; the best are drawn last."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    names = list(plan.space.varied)
    values = np.array([e.value for e in entries])
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    figure = _new_figure(figsize=(1.9 * (len(names) + 1) + 1, 4.2))
    axis = figure.subplots()
    colors, scale = colormaps["viridis"], Normalize(low, high)
    for i in np.argsort(plan.sweep.sign * values):
        entry = entries[i]
        places = [place(plan.space, n, entry.trial.settings) for n in names] + [(entry.value - low) / span]
        axis.plot(range(len(places)), places, color=colors(scale(entry.value)), alpha=0.8, lw=1.5)
    for x, name in enumerate(names):
        _label_axis(axis, x, plan.space.varied[name])
    _label_ends(axis, len(names), f"{low:.3g}", f"{high:.3g}")
    for x in range(len(names) + 1):
        axis.axvline(x, color="0.6", lw=0.8, zorder=0)
    foot = _FOOT if plan.space.when else 0.0
    axis.set(xlim=(-0.3, len(names) + 0.3), ylim=(foot - 0.12, 1.12), yticks=[])
    labels = [*(n.removeprefix("objective.") for n in names), plan.sweep.objective]
    axis.set_xticks(range(len(labels)), [*map(label, labels)], rotation=20, ha="right", fontsize=8)
    for side in ("top", "left", "right", "bottom"):
        axis.spines[side].set_visible(False)
    note = "; a setting that a trial lacks is at the foot" if plan.space.when else ""
    figure.suptitle(label(f"{plan.study.name}: {len(entries)} trials{note}"), fontsize=10)
    figure.savefig(path, dpi=140)


def _label_axis(axis: Any, x: int, kind: Varied) -> None:
    if isinstance(kind, Choice):
        for option in kind.options:
            axis.text(x + 0.03, kind.unit(option), label(str(option)), fontsize=7, va="center", bbox=_PAPER)
        return
    _label_ends(axis, x, f"{kind.low:.3g}", f"{kind.high:.3g}{' log' if kind.log else ''}")


def _label_ends(axis: Any, x: int, low: str, high: str) -> None:
    axis.text(x, 1.02, high, ha="center", va="bottom", fontsize=8, bbox=_PAPER)
    axis.text(x, -0.02, low, ha="center", va="top", fontsize=8, bbox=_PAPER)


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

    figure = _new_figure(figsize=(6.4, 0.4 * len(plan.space.varied) + 1.6))
    axis = figure.subplots()
    try:
        found = importance(plan, entries)
    except NothingToExplain:
        is_constant = np.ptp([e.value for e in entries]) == 0
        why = "all have the same value" if is_constant else "only the seed varies"
        note = f"no importances for {plan.sweep.objective} from {len(entries)} trials: {why}"
        axis.text(0.5, 0.5, label(note), ha="center", wrap=True, fontsize=8)
        axis.set_axis_off()
    else:
        columns = found.columns[::-1]
        names = [label(c.column.removeprefix("sample/").removeprefix("objective.")) for c in columns]
        axis.barh(names, [c.mean for c in columns], xerr=[c.std for c in columns], color="#4477aa")
        axis.set_xlabel("share of the variance lost when shuffled")
        score = found.score
        verdict = "; the interval holds 0: ignore the bars" if score.low <= 0 else ""
        figure.suptitle(
            f"{label(plan.sweep.objective)}, {len(entries)} trials: share of the variance predicted in "
            f"trials\nheld out {score.value:.2f} [{score.low:.2f}, {score.high:.2f}]{verdict}",
            fontsize=9,
        )
    figure.savefig(path, dpi=140)
