"""Tables of rows as Parquet and CSV."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fpatch.runs.locks import RunError


def write_table(prefix: str, columns: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """A table as Parquet and CSV, by suffix."""
    table = pa.table({n: pa.array(c) for n, c in columns.items()})
    parquet, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.csv.write_csv(table, text)
    files = {"parquet": parquet, "csv": text}
    return {f"{prefix}{suffix}": file.getvalue().to_pybytes() for suffix, file in files.items()}


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a Parquet file.

    Raises:
        RunError: If it cannot be read.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} is broken ({error}); `fpatch evaluate` makes it again") from error
    return {n: table[n].to_numpy() for n in table.column_names}
