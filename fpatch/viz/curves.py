"""Rates with their intervals, as curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fpatch.metrics import Rate


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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves need matplotlib: pip install 'fpatch[plot]'") from error
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (name, (xs, curves)) in zip(axes, panels.items(), strict=True):
        for curve, rates in curves.items():
            line = axis.plot(
                xs, [100 * r.value for r in rates], marker="o", ms=3, label=(labels or {}).get(curve, curve)
            )
            axis.fill_between(
                xs,
                [100 * r.low for r in rates],
                [100 * r.high for r in rates],
                alpha=0.18,
                color=line[0].get_color(),
            )
        axis.set(xlabel=name, ylim=(-3, 103))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(success)
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=140)
