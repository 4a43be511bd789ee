"""The forms of the JSON files of a run folder: the type of each entry that a reader relies on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpatch.core.schema import decode
from fpatch.evaluation.conditions import PATCH

_DIGESTS = Mapping[str, str]

_FORMS: dict[str, dict[str, Any]] = {
    "environment.json": {
        "format": int | str, "fpatch": str, "execution": Mapping[str, Any], "files": _DIGESTS,
        "data": Mapping[str, str | None], "sources": Mapping[str, _DIGESTS], "processes": int,
        "folder": str, "resumed": tuple[Mapping[str, int], ...],
    },
    "data.json": {"images": tuple[Mapping[str, str | int], ...]},
    "manifest": {
        "execution": Mapping[str, Any], "rows": int, "patches": tuple[str, ...], "checkpoint": str,
        "step": int, "state": str | None, "files": _DIGESTS, "settings": Mapping[str, Any],
        "grid": Mapping[str, tuple[float, ...]],
        "num_draws": int | None, "differences": tuple[str, ...],
        "data": _DIGESTS,
    },
    "summary": {"checkpoint": str | None, "step": int, "metric": str, "settings": Mapping[str, Any]},
}  # fmt: skip
"""By the name of the file, or by its kind in `tables/`."""

_IMAGE = ("name", "split", "bytes")


def check_form(path: Path, value: Mapping[str, Any]) -> None:
    """Check the entries of a JSON file of a run folder.

    Raises:
        ValueError: If one has another type; the message names it.

    Example:
        >>> from pathlib import Path
        >>> from fpatch.runs.forms import check_form
        >>> check_form(Path("tables/test.json"), {"rows": "8"})
        Traceback (most recent call last):
        ValueError: rows: expected a whole number, got '8'
    """
    name = path.name
    if path.parent.name == "tables":
        name = "summary" if name.endswith(".summary.json") else "manifest"
    for key, kind in _FORMS.get(name, {}).items():
        if key in value:
            decode(kind, value[key], key)
    patches = value.get("patches") if name == "manifest" else None
    if patches and not any(patch.startswith(f"{PATCH}/") for patch in patches):
        raise ValueError(f"patches: none is that of the condition {PATCH!r}, got {value['patches']!r}")
    for i, image in enumerate(value["images"] if name == "data.json" and "images" in value else ()):
        for key in _IMAGE:
            decode(int if key == "bytes" else str, image.get(key), f"images[{i}].{key}")
