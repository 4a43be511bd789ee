"""A page with the rows of a table as dots: any column against any other, colored by a third."""

import base64
import html
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fpatch.analysis._scatter_page import PAGE
from fpatch.analysis.importance import is_key
from fpatch.core.checks import nearest
from fpatch.core.files import write_atomic
from fpatch.data import read_image
from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.evaluation.rates import conditions_of

_THUMBNAIL_PX = 192


def scatter(
    table: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
    images: Mapping[int, str | os.PathLike[str] | Image.Image] | None = None,
) -> None:
    """Write one HTML file that works offline: a dot per row, and menus for the columns of the axes.

    Pointing at a dot shows its image, draw, results under every condition and sampled values. Columns of
    digests and keys are left out. The file holds plotly.js (4.8 MB). 300 rows of 60 columns add about 0.2 MB,
    and a thumbnail up to 8 kB.

    Args:
        table: Columns of equal length, such as `Evaluation.table` or the result of `Run.load_table`.
        path: HTML file; its folder is made if absent, an older file is replaced.
        x: The column of the x axis at the start; None: the first sampled column.
        y: The column of the y axis at the start; None: the first difference to no patch.
        color: The column of the color at the start; None: one color.
        images: Thumbnails by `image_id`: files, or PIL images.

    Raises:
        ImportError: If the extra `analysis` is not installed.
        FileNotFoundError: If an image is missing.
        ValueError: If a column is unknown, or an image cannot be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from fpatch import analysis
        >>> table = {"image_id": np.array([0, 1]), "sample/blur/px": np.array([0.5, 2.0])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table |= {"found/patch": np.array([False, True]), "found/delta": np.array([-1.0, 0.0])}
        ...     analysis.scatter(table, Path(folder, "page.html"))
        ...     Path(folder, "page.html").read_text()[:15]
        '<!doctype html>'
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the scatter page needs plotly: pip install 'fpatch[analysis]'") from error
    path = Path(path)
    names = [
        n
        for n in table
        if not is_key(n) and not n.startswith("digest/") and n not in ("photograph", "sample")
    ]
    first_x = next((n for n in names if n.startswith("sample/")), names[0])
    first_y = next((n for n in names if n.endswith("/delta")), names[-1])
    start = {"x": first_x if x is None else x, "y": first_y if y is None else y, "color": color}
    for axis, name in start.items():
        if name is not None and name not in names:
            raise ValueError(f"scatter({axis}): no column {name!r}; {nearest(name, names)}")
    ends = [f"/{condition}" for condition in (PATCH, NONE) if any(n.endswith(f"/{condition}") for n in names)]
    metrics = [n.removesuffix(end) for end in ends[:1] for n in names if n.endswith(end)]
    data = {
        "start": start,
        "results": {metric: conditions_of(table, metric) for metric in metrics},
        "columns": {name: _plain(table[name]) for name in names},
        "thumbnails": {int(i): _thumbnail(image) for i, image in (images or {}).items()},
    }
    written = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = PAGE.substitute(title=html.escape(path.stem), data=written, plotly=get_plotlyjs())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode())


def _plain(column: np.ndarray) -> list[Any]:
    """Convert a column to JSON values: the digits of its type, and null for what is not finite."""
    if column.dtype.kind != "f":
        return column.tolist()
    return [float(str(value)) if np.isfinite(value) else None for value in column]


def _thumbnail(source: str | os.PathLike[str] | Image.Image) -> str:
    """Return a small JPEG of an image as a data URI."""
    picture = Image.fromarray(read_image(source).permute(1, 2, 0).numpy())
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
