"""Tables of a run folder: evaluations as Parquet and CSV, with the patches shown and the execution."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fpatch.core.names import check_name
from fpatch.evaluation.evaluation import Evaluation
from fpatch.runs.files import read_execution, read_json, read_tensors, tensor_bytes, write_file, write_json
from fpatch.runs.locks import RunError
from fpatch.runtime.execution import Execution


def save_evaluation(
    folder: Path,
    name: str,
    evaluation: Evaluation,
    execution: Execution,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the tables (Parquet and CSV), the patches shown, the execution and other settings, atomically."""
    patches = {
        f"{condition}/{value}/{patch}": tensor
        for condition, patches in evaluation.conditions.items()
        for value, entries in patches.items()
        for patch, tensor in entries.items()
    }
    files = {
        **_encode_table("", evaluation.table),
        **(_encode_table("objects.", evaluation.objects) if evaluation.objects else {}),
        "patches.safetensors": tensor_bytes(patches),
    }
    tables = folder / "tables"
    for suffix, data in files.items():  # a full disk fails here, while an older evaluation is intact
        write_file(tables / f"{name}.{suffix}.tmp", data)
    for stale in ("json", "objects.parquet", "objects.csv"):
        (tables / f"{name}.{stale}").unlink(missing_ok=True)
    for suffix in files:
        (tables / f"{name}.{suffix}.tmp").replace(tables / f"{name}.{suffix}")
    rows = len(evaluation.table["image_id"])
    facts = {"execution": execution._asdict(), "rows": rows, "patches": list(patches)}
    facts |= {"settings": dict(settings)} if settings else {}
    write_json(tables / f"{name}.json", facts)


def load_table(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Load the columns of a table.

    Raises:
        RunError: If the table is missing or broken.
    """
    return _read_table(_find_table(folder, name))


def load_objects(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Load the columns of a table's objects; none if no metric wrote any.

    Raises:
        RunError: If the table is missing, or its objects are broken.
    """
    path = _find_table(folder, name).with_suffix(".objects.parquet")
    return _read_table(path) if path.is_file() else {}


def load_conditions(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Load the patches that an evaluation showed, by condition."""
    tensors, _ = read_tensors(folder, f"tables/{name}.patches.safetensors")
    conditions: dict[str, dict[str, Any]] = {}
    # the file sorts by name, but the last bit of a sum over patches depends on their order
    for path in read_json(folder / f"tables/{name}.json", "patches")["patches"]:
        condition, value, patch = path.split("/", 2)
        conditions.setdefault(condition, {}).setdefault(value, {})[patch] = tensors[path]
    return conditions


def load_settings(folder: Path, name: str) -> dict[str, Any]:
    """Load the settings of an evaluation that are not those of the run, by dotted name."""
    return read_json(folder / f"tables/{name}.json").get("settings", {})


def load_execution(folder: Path, name: str) -> Execution:
    """Load the execution of an evaluation."""
    return read_execution(folder / f"tables/{name}.json")


def _find_table(folder: Path, name: str) -> Path:
    check_name("table", name)
    path = folder / f"tables/{name}.parquet"
    if not path.with_suffix(".json").is_file() or not path.is_file():
        tables = (folder / "tables").glob("*.parquet")
        known = [p.stem for p in tables if p.with_suffix(".json").is_file()]
        there = f"tables: {', '.join(sorted(known))}; " if known else ""
        raise RunError(f"{folder} has no table {name!r}; {there}`fpatch evaluate {folder}` makes 'test'")
    return path


def _encode_table(prefix: str, columns: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Encode a table as Parquet and CSV, by suffix."""
    table = pa.table({n: pa.array(c) for n, c in columns.items()})
    parquet, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.csv.write_csv(table, text)
    files = {"parquet": parquet, "csv": text}
    return {f"{prefix}{suffix}": file.getvalue().to_pybytes() for suffix, file in files.items()}


def _read_table(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a Parquet file.

    Raises:
        RunError: If the file cannot be read.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} is broken ({error}); `fpatch evaluate` makes it again") from error
    return {n: table[n].to_numpy() for n in table.column_names}
