"""The style of all figures: fonts, sizes, and colors that readers with a color vision deficiency tell apart.

References:
    Okabe and Ito (2008), Color universal design (the colors of curves, boxes and conditions).
    Nuñez, Anderton and Renslow (2018), Optimizing colormaps with consideration for color vision deficiency.
"""

import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageFont

from fpatch.core.files import write_atomic
from fpatch.evaluation.conditions import NONE, PATCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 300
"""Pixels per inch of saved figures, which is enough for print."""

INK, PALE, PAPER = "#222222", "#d9d9d9", "#ffffff"
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f")
"""The colors of curves without a meaning of their own."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Marks beside the colors, for print in gray."""

FOUND, TRUTH = "#d55e00", "#56b4e9"
"""The boxes of answers and patches, and those of objects."""

RATES, COUNTS, DIFFERENCES = "viridis", "Blues", "RdBu_r"
"""Color scales of rates, of shares of rows and of signed differences."""

_CONDITIONS = {
    PATCH: "#d55e00", NONE: INK, "noise": "#0072b2", "flat": "#009e73", "shuffled": "#cc79a7",
    "rendered": "#56b4e9",
}  # fmt: skip
_SHEET = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": "0.4",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "figure.titlesize": 9.5,
    "figure.titleweight": "bold",
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.usetex": False,
    "figure.dpi": 100,
    "savefig.dpi": DPI,
    "savefig.facecolor": PAPER,
    "figure.facecolor": PAPER,
}


@contextmanager
def figure(what: str, width: float, height: float, extra: str = "plot") -> Iterator["Figure"]:
    """Make a figure in the style; draw and save it within the block.

    Args:
        what: The kind of the figure, for the error.
        width: Its width in inches.
        height: Its height in inches.
        extra: The extra of the installation that brings matplotlib.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> from fpatch.viz import style
        >>> with style.figure("curves", 4.0, 3.0) as figure:
        ...     float(figure.get_figwidth())
        4.0
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{what} need matplotlib: pip install 'fpatch[{extra}]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc of the user or of the working folder says
        matplotlib.rcParams.update(_SHEET)  # type: ignore[arg-type]
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: str | os.PathLike[str], **options: Any) -> None:
    """Write a figure atomically, in the format of its suffix; without one as PNG.

    Raises:
        OSError: If the file cannot be written; it keeps its old content.
        ValueError: If the suffix names no format.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.viz import style
        >>> with tempfile.TemporaryDirectory() as folder, style.figure("curves", 2.0, 1.0) as figure:
        ...     style.save(figure, Path(folder, "curves.pdf"))
        ...     Path(folder, "curves.pdf").read_bytes()[:4]
        b'%PDF'
    """
    place, file = Path(path), io.BytesIO()
    place = place if place.suffix else place.with_name(f"{place.name}.png")
    figure.savefig(file, format=place.suffix[1:].lower(), **options)
    write_atomic(place, file.getvalue())


def condition_style(condition: str, index: int) -> dict[str, Any]:
    """Return the color and the mark of a condition, the same in every figure, or those of an index."""
    color = _CONDITIONS.get(condition, COLORS[index % len(COLORS)])
    known = list(_CONDITIONS)
    place = known.index(condition) if condition in known else index
    return {"color": color, "marker": MARKERS[place % len(MARKERS)]}


def rgb(color: str) -> tuple[int, int, int]:
    """Return a color "#rrggbb" as levels.

    Example:
        >>> from fpatch.viz import style
        >>> style.rgb("#d55e00")
        (213, 94, 0)
    """
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


@functools.cache
def pillow_font(px: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Return the font of drawn images: that of the other figures, or Pillow's own without matplotlib."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return ImageFont.load_default(size=px)
    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), px)
