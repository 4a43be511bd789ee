"""Tables of a run folder: evaluations as Parquet and CSV, with the patches shown and the execution."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fpatch.core.files import digest, file_digest
from fpatch.core.inputs import machine_memory
from fpatch.core.names import check_file_name, typed
from fpatch.core.tree import tensor_bytes
from fpatch.evaluation.conditions import NONE
from fpatch.evaluation.evaluation import Evaluation
from fpatch.log.sealed import SEAL, is_edited
from fpatch.runs.files import (
    file_damage,
    is_sealed_run,
    read_execution,
    read_json,
    read_tensors,
    write_file,
    write_sealed,
)
from fpatch.runs.locks import RunError
from fpatch.runtime.execution import Execution

_BYTES = 8
"""The least memory of a value as it is read here."""


def save_evaluation(
    folder: Path,
    name: str,
    evaluation: Evaluation,
    execution: Execution,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the tables (Parquet and CSV) and the patches shown, then their manifest, atomically.

    Args:
        folder: The run folder.
        name: The name of the evaluation.
        evaluation: Its result.
        execution: Its execution.
        facts: Further entries of the manifest, such as the checkpoint.
    """
    patches = {
        f"{condition}/{value}/{patch}": tensor
        for condition, patches in evaluation.conditions.items()
        for value, entries in patches.items()
        for patch, tensor in entries.items()
    }
    files = {
        **encode_table("", evaluation.table),
        **(encode_table("objects.", evaluation.objects) if evaluation.objects else {}),
        "patches.safetensors": tensor_bytes(patches),
    }
    tables = folder / "tables"
    for suffix, data in files.items():  # a full disk fails here, while an older evaluation is intact
        write_file(tables / f"{name}.{suffix}.tmp", data)
    for stale in ("json", "objects.parquet", "objects.csv"):
        (tables / f"{name}.{stale}").unlink(missing_ok=True)
    for suffix in files:
        (tables / f"{name}.{suffix}.tmp").replace(tables / f"{name}.{suffix}")
    manifest = {
        "execution": execution._asdict(),
        "rows": len(evaluation.table["image_id"]),
        "patches": list(patches),
        **(facts or {}),
        "files": {f"tables/{name}.{suffix}": digest(data) for suffix, data in files.items()},
    }
    write_sealed(tables / f"{name}.json", manifest)


def record_files(folder: Path, name: str, paths: Sequence[str]) -> None:
    """Add the digests of further files of an evaluation, by relative path, to its manifest."""
    manifest = load_manifest(folder, name)
    found = {path: file_digest(folder / path) for path in paths}
    write_sealed(folder / f"tables/{name}.json", manifest | {"files": manifest.get("files", {}) | found})


def load_manifest(folder: Path, name: str) -> dict[str, Any]:
    """Load the manifest of an evaluation: execution, rows, patches, checkpoint, and digests of its files."""
    return read_json(folder / f"tables/{name}.json", "execution", "rows", "patches")


def table_damage(folder: Path, name: str) -> list[str]:
    """Return a sentence for each file of an evaluation that is not as it was written."""
    path = folder / f"tables/{name}.json"
    said = []
    if is_edited(path.read_bytes(), "files"):
        said.append(f"tables/{name}.json is not as it was written")
    manifest = load_manifest(folder, name)
    recorded = (SEAL, "files", "state") if is_sealed_run(folder) or SEAL in manifest else ()
    lacking = [part for part in recorded if not manifest.get(part)]
    said += [f"tables/{name}.json lacks {part!r}, which every evaluation records" for part in lacking]
    found = (file_damage(folder, file, recorded) for file, recorded in manifest.get("files", {}).items())
    return [*said, *(sentence for sentence in found if sentence is not None)]


def load_table(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Load the columns of a table.

    Raises:
        RunError: If the table is missing or broken.
    """
    return _read_table(_find_table(folder, name), read_json(folder / f"tables/{name}.json").get("rows"))


def load_objects(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Load the columns of a table's objects; none if no metric wrote any.

    Raises:
        RunError: If the table is missing, or its objects are broken.
    """
    path = _find_table(folder, name).with_suffix(".objects.parquet")
    return _read_table(path) if path.is_file() else {}


def load_conditions(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Load the patches that an evaluation showed, by condition; one without patches has "none" alone."""
    tensors, _ = read_tensors(folder, f"tables/{name}.patches.safetensors")
    conditions: dict[str, dict[str, Any]] = {}
    # the file sorts by name, but the last bit of a sum over patches depends on their order
    listed = read_json(folder / f"tables/{name}.json", "patches")["patches"]
    if tensors and not listed:
        first = next(iter(tensors))
        raise RunError(
            f"{folder}/tables/{name}.json is broken (patches: lists none, but its file of patches holds "
            f"{first!r:.80}); restore it"
        )
    for path in listed:
        if path.count("/") < 2 or path not in tensors:
            raise RunError(
                f"{folder}/tables/{name}.json is broken (patches: no patch {path!r:.80}); restore it"
            )
        condition, value, patch = path.split("/", 2)
        conditions.setdefault(condition, {}).setdefault(value, {})[patch] = tensors[path]
    return conditions or {NONE: {}}


def load_settings(folder: Path, name: str) -> dict[str, Any]:
    """Load the settings of an evaluation that are not those of the run, by dotted name."""
    return read_json(folder / f"tables/{name}.json").get("settings", {})


def load_execution(folder: Path, name: str) -> Execution:
    """Load the execution of an evaluation."""
    return read_execution(folder / f"tables/{name}.json")


def _find_table(folder: Path, name: str) -> Path:
    check_file_name("table", name, "such as test")
    path = folder / f"tables/{name}.parquet"
    if not path.with_suffix(".json").is_file() or not path.is_file():
        tables = (folder / "tables").glob("*.parquet")
        known = [p.stem for p in tables if p.with_suffix(".json").is_file()]
        there = f"tables: {', '.join(sorted(known))}; " if known else ""
        raise RunError(
            f"{folder} has no table {name!r}; {there}`fpatch evaluate {typed(folder)}` makes 'test'"
        )
    return path


def encode_table(prefix: str, columns: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Encode a table as Parquet and CSV, by suffix."""
    table = pa.table({n: pa.array(c) for n, c in columns.items()})
    parquet, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.csv.write_csv(table, text)
    files = {"parquet": parquet, "csv": text}
    return {f"{prefix}{suffix}": file.getvalue().to_pybytes() for suffix, file in files.items()}


def _read_table(path: Path, rows: int | None = None) -> dict[str, np.ndarray]:
    """Read the columns of a Parquet file, of which a small one may hold more rows than the memory.

    Args:
        path: The file.
        rows: The recorded number of rows; None: it is not recorded.

    Raises:
        RunError: If the file cannot be read, or has another number of rows.
    """
    pa.array(np.zeros(0))  # pyarrow imports pandas now, and passes on a stop, which `to_numpy` would lose
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            found, columns = file.metadata.num_rows, file.metadata.num_columns
            if rows is not None and rows != found:
                raise RunError(
                    f"{path} has {found} rows, but {rows} were recorded; restore it, or make it again by "
                    f"`fpatch evaluate {path.parents[1]}`"
                )
            if found * columns * _BYTES > machine_memory():
                raise RunError(
                    f"{path} is broken ({found} rows of {columns} columns are more than the memory of this "
                    "machine); `fpatch evaluate` makes it again"
                )
            _check_columns(path, file.schema_arrow)
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} is broken ({error}); `fpatch evaluate` makes it again") from error
    return {n: table[n].to_numpy() for n in table.column_names}


_KINDS = ("is_integer", "is_floating", "is_boolean", "is_string", "is_large_string", "is_null")
"""Kinds that a column of a table may have: numbers, bools and texts; null in a table without rows."""


def _check_columns(path: Path, schema: pa.Schema) -> None:
    """Check that each column has a name of its own and a kind that an evaluation writes."""
    counts = Counter(schema.names)
    for name, kind in zip(schema.names, schema.types, strict=True):
        if counts[name] > 1:
            raise RunError(
                f"{path} is broken ({counts[name]} columns are named {name!r}); `fpatch evaluate` makes it "
                "again"
            )
        if not any(getattr(pa.types, is_kind)(kind) for is_kind in _KINDS):
            raise RunError(
                f"{path} is broken (the column {name!r} must hold numbers, bools or texts, got {kind}); "
                "`fpatch evaluate` makes it again"
            )
