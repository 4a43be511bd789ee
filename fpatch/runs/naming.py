"""The names of results in a run folder: an evaluation by other settings, or a grid, replaces no other."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fpatch.core.files import digest
from fpatch.runs.folder import Run
from fpatch.runs.places import is_place
from fpatch.runs.tables import load_manifest
from fpatch.study.defense import SETTING
from fpatch.viz.names import short_paths

_logger = logging.getLogger(__name__)

_LONGEST = 40
"""Characters of a setting in the name of a table; longer or unusual ones are told apart by a digest."""
_LONGEST_NAME = 120
"""Characters of the name of a table; file systems allow 255 bytes, and grids, figures and files add some."""
_UNNAMED = ("device", "data.root", "data.resident")
"""Settings that say where and how a table is measured, and not what."""


def table_name(split: str, checkpoint: str, settings: Mapping[str, Any] | None = None) -> str:
    """Return the name of an evaluation in tables and logs: "test", "test-last", "test-hit-goal-stop".

    Other settings of the evaluation are a part of the name, so that it replaces no other. A split of another
    name is "split-NAME": "test-split-night" holds the images of "night", measured as a test.

    Example:
        >>> from fpatch.runs.naming import table_name
        >>> table_name("test", "best"), table_name("test", "last", {"pipeline.hit.goal": "stop"})
        ('test', 'test-last-hit-goal-stop')
        >>> table_name("test", "best", {"data.placements": "../../data/night.csv"})
        'test-placements-night-608ce1'
        >>> table_name("test", "best", {"defense": {}})
        'test-defense-none'
    """
    name = split if (split, checkpoint) == ("test", "best") else f"{split}-{checkpoint}"
    settings = settings or {}
    for setting, value in sorted(settings.items()):
        follows = setting == "data.classes" and "data.objects" in settings
        if setting in _UNNAMED or setting.endswith(".sha256") or follows:
            continue
        if setting == SETTING:
            written = digest(json.dumps(value, sort_keys=True).encode())[:6]
            name += f"-defense-{'-'.join(value)}-{written}" if value else "-defense-none"
            continue
        short = (setting.partition(".")[2] or setting).replace(".", "-")
        short = "split" if setting == f"data.{split}" else short
        shown = _stem(setting, value)
        exact = f"{short}-{value if shown is None else shown}"
        plain = re.sub(r"[^A-Za-z0-9_-]", "-", exact)[:_LONGEST]
        is_exact = shown is None and plain == exact
        name += f"-{plain}" if is_exact else f"-{plain}-{digest(f'{setting}={value}'.encode())[:6]}"
    return _bounded(name)


def _bounded(name: str) -> str:
    """Cut a name that no file could have, with its ending; a digest tells it apart."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 7]}-{digest(name.encode())[:6]}"


def _stem(setting: str, value: Any) -> str | None:
    """Return the name of a setting's file, or None if it names none."""
    if isinstance(value, Mapping) and isinstance(value.get("loader"), str):
        return Path(value.get("weights") or value["loader"]).stem
    return Path(value).stem if isinstance(value, str) and is_place(setting) else None


def validation_name(step: int) -> str:
    """Return the name of the table of a validation during training.

    Example:
        >>> from fpatch.runs.naming import validation_name
        >>> validation_name(100)
        'validation-00000100'
    """
    return f"validation-{step:08d}"


def validation_step(table: str) -> int | None:
    """Return the step of a validation during training by the name of its table; None for other tables.

    Example:
        >>> from fpatch.runs.naming import validation_step
        >>> validation_step("validation-00000100"), validation_step("validation-best-num_draws-4")
        (100, None)
    """
    found = re.fullmatch("validation-([0-9]{8,})", table)
    return int(found[1]) if found else None


def grid_name(
    split: str,
    checkpoint: str,
    grid: Mapping[str, Sequence[float]],
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the name of a grid in tables and figures: its evaluation, its axes, and a digest of its values.

    Example:
        >>> from fpatch.runs.naming import grid_name
        >>> grid_name("test", "best", {"camera/exposure/stops": [-1.0, 0.0, 1.0]})
        'test-grid-stops-ad631b'
    """
    axes = "-".join(short_paths(list(grid)))
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", axes)[:_LONGEST]
    values = json.dumps({path: [float(v) for v in values] for path, values in grid.items()})
    return f"{table_name(split, checkpoint, settings)}-grid-{plain}-{digest(values.encode())[:6]}"


def transfer_name(
    names: Sequence[str],
    split: str = "test",
    checkpoint: str = "best",
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the name of the files of a transfer: its evaluation, and a digest of the names of its runs.

    Example:
        >>> from fpatch.runs.naming import transfer_name
        >>> transfer_name(["20260101-120000-a", "20260101-130000-b"], checkpoint="last")
        'transfer-test-last-433903'
    """
    table = table_name(split, checkpoint, settings)
    runs = digest("\n".join(names).encode())[:6]
    return f"transfer-{runs}" if table == "test" else f"transfer-{table}-{runs}"


def matrix_name(
    names: Sequence[str],
    defenses: Mapping[str, Any],
    split: str = "test",
    checkpoint: str = "best",
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the name of the files of a matrix: its evaluation, and a digest of its runs and defenses.

    Example:
        >>> from fpatch.runs.naming import matrix_name
        >>> matrix_name(["20260101-120000-a"], {"few": {"few": {"stage": "defend.bit_depth"}}})
        'matrix-6759a4'
    """
    asked = json.dumps({name: defenses[name] for name in sorted(defenses)})
    return transfer_name([*names, asked], split, checkpoint, settings).replace("transfer", "matrix", 1)


def scatter_name(table: str, metric: str | None) -> str:
    """Return the name of a scatter plot of a table, by a metric that is not the study's own.

    Example:
        >>> from fpatch.runs.naming import scatter_name
        >>> scatter_name("test", None), scatter_name("test-last", "best_score/delta/noise")
        ('scatter', 'scatter-test-last-best_score-delta-noise')
    """
    parts = ["scatter", *([table] if table != "test" else []), *([metric] if metric else [])]
    return _bounded(re.sub(r"[^A-Za-z0-9_-]", "-", "-".join(parts)))


def find_other_name(name: str, manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence if a manifest is not that of a table with this name, but of another one.

    A copied or renamed table would answer another question under the name of this one. Tables of earlier
    versions, which record no state of the patch, are known by their files alone.

    Example:
        >>> from fpatch.runs.naming import find_other_name
        >>> find_other_name("test", {"state": "5f", "checkpoint": "best", "settings": {"seed": 7}})
        ["tables/test.json is the record of another table, 'test-seed-7'"]
    """
    expected = name
    files = [file for file in manifest.get("files", ()) if file.endswith(".patches.safetensors")]
    if files and f"tables/{name}.patches.safetensors" not in files:
        expected = files[0].removeprefix("tables/").removesuffix(".patches.safetensors")
    elif "state" in manifest and "checkpoint" not in manifest:
        expected = f"validation-{manifest.get('step', 0):08d}"
    elif "state" in manifest:
        split = name.partition("-")[0]
        facts = manifest["checkpoint"], manifest.get("settings")
        grid = manifest.get("grid")
        expected = table_name(split, *facts) if grid is None else grid_name(split, facts[0], grid, facts[1])
    if expected == name:
        return []
    return [f"tables/{name}.json is the record of another table, {expected!r}"]


def warn_of_replaced(run: Run, table: str, facts: Mapping[str, Any]) -> None:
    """Say which table a measurement replaces, if that shows another patch or was made from other inputs."""
    if not (run.folder / f"tables/{table}.json").is_file():
        return
    before = load_manifest(run.folder, table)
    if any(before.get(name) != facts.get(name) for name in ("state", "differences", "data")):
        made = f"checkpoint {before.get('checkpoint')} (step {before.get('step')})"
        _logger.warning("%s: tables/%s of %s is replaced", run.folder, table, made)
