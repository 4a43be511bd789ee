"""Rates with their intervals, as curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fpatch.core.names import label
from fpatch.metrics import Rate
from fpatch.viz import style
from fpatch.viz.names import clip_apart, clip_name, wrap_name


def plot_curves(
    path: str | Path,
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[Rate]]]],
    title: str = "",
    labels: Mapping[str, str] | None = None,
    success: str = "attack success (%)",
) -> None:
    """Save curves of rates with 95 % bands.

    Args:
        path: PNG file.
        panels: The panels by the name of their x axis: the x values, and a rate for each, by curve.
        title: The title above all panels.
        labels: The legend by curve; None: the names of the curves.
        success: The label of the y axis.

    Raises:
        ImportError: If the extra `plot` is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch import metrics, viz
        >>> rates = [metrics.Rate(0.8, 0.7, 0.9, 60, 60), metrics.Rate(0.4, 0.3, 0.5, 60, 60)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     viz.plot_curves(Path(folder, "curves.png"), {"distance (m)": ([5, 10], {"patch": rates})})
        ...     Path(folder, "curves.png").read_bytes()[1:4]
        b'PNG'
    """
    with style.figure("curves", max(3.3 * len(panels), 4.0), 3.1) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (name, (xs, curves)) in zip(axes, panels.items(), strict=True):
            for i, (curve, rates) in enumerate(curves.items()):
                _draw_curve(
                    axis, xs, rates, style.condition_style(curve, i), (labels or {}).get(curve, curve)
                )
            axis.set(xlabel=wrap_name(name, 40), ylim=(-3, 103))
            axis.grid(visible=True)
        axes[0].set_title("bands: 95\u00a0% intervals over images", fontsize=7, fontweight="normal")
        axes[0].set_ylabel(wrap_name(success, 40))
        handles, names = axes[0].get_legend_handles_labels()
        names = [label(name) for name in clip_apart(names, 30)]
        across = max(1, min(len(names), int(figure.get_figwidth() / (0.5 + 0.07 * max(map(len, names))))))
        figure.legend(handles, names, loc="outside lower center", ncols=across)
        if title:
            figure.suptitle(label(clip_name(title, int(figure.get_figwidth() / 0.09))))
        style.save(figure, path)


def _draw_curve(axis: Any, xs: Sequence[float], rates: Sequence[Rate], look: Any, name: str) -> None:
    """Draw a curve with its band, or one point with its bar; left out where an interval is unknown."""
    axis.plot(xs, [100 * r.value for r in rates], label=name, **look)
    low, high = (
        [100 * value for value in bound] for bound in zip(*((r.low, r.high) for r in rates), strict=True)
    )
    if len(xs) > 1:
        axis.fill_between(xs, low, high, alpha=0.15, color=look["color"], linewidth=0)
    else:
        axis.vlines(xs, low, high, color=look["color"], linewidth=1)
