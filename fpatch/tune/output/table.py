"""The table of trials."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fpatch.core.files import write_atomic
from fpatch.tune.folder.journal import Entry, Journal
from fpatch.tune.plan import Plan


def trial_columns(plan: Plan, entries: list[Entry]) -> dict[str, list[Any]]:
    """Make a column for each fact and each varied setting; None where a trial has no value.

    Columns:
        `trial`, `status` ("running" without an outcome), the objective by its name at the last evaluation,
        `error` (its standard error), `step`, `seconds`, `seed`, `parent`, `pack` (the first trial of the
        pack), `setting/<name>`, and `message` and `traceback` of a failed trial.
    """
    objective = plan.sweep.objective
    columns: dict[str, list[Any]] = {
        "trial": [e.trial.name for e in entries],
        "status": [e.outcome.status if e.outcome else "running" for e in entries],
        objective: [e.value if e.points else None for e in entries],
        "error": [e.points[-1].error if e.points else None for e in entries],
        "step": [e.points[-1].step if e.points else 0 for e in entries],
        "seconds": [e.outcome.seconds if e.outcome else None for e in entries],
        "seed": [e.trial.seed for e in entries],
        "parent": [e.trial.parent for e in entries],
        "pack": [e.trial.pack[0] if e.trial.pack else None for e in entries],
    }
    for name in plan.space.varied:
        columns[f"setting/{name}"] = [e.trial.settings.get(name) for e in entries]
    columns["message"] = [e.outcome.error if e.outcome else "" for e in entries]
    columns["traceback"] = [e.outcome.traceback if e.outcome else "" for e in entries]
    return columns


def save_table(journal: Journal, plan: Plan) -> list[str]:
    """Write `trials.parquet` and `trials.csv` into the folder of the sweep; return their names."""
    columns = trial_columns(plan, journal.entries())
    table = pa.table({name: _column(values) for name, values in columns.items()})
    parquet, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.csv.write_csv(table, text)
    write_atomic(journal.folder / "trials.parquet", parquet.getvalue().to_pybytes())
    write_atomic(journal.folder / "trials.csv", text.getvalue().to_pybytes())
    return ["trials.parquet", "trials.csv"]


def _column(values: list[Any]) -> pa.Array:
    """Make a column of numbers or strings if all values are of one kind, else of JSON."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values] if float in kinds else values)
    if kinds in ({str}, {bool}):
        return pa.array(values)
    return pa.array([None if v is None else json.dumps(v) for v in values])
