"""The answers of commands: an exit code, and the facts that `--json` prints as one document."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fpatch.demo.measurements import Result
    from fpatch.evaluation.grid import Cell
    from fpatch.evaluation.replaying import Replay
    from fpatch.runs.folder import Run
    from fpatch.tune.folder.journal import Entry
    from fpatch.tune.plan import Plan


class Answer(NamedTuple):
    """The answer of a command.

    Attributes:
        code: The exit code: 0 done, 1 a difference or an obstacle was found.
        facts: The facts for `--json`, with the names of the JSON files in run folders. None are printed where
            another process of the run prints them.
    """

    code: int
    facts: Mapping[str, Any]


def to_document(facts: Mapping[str, Any]) -> str:
    """Return facts as a JSON document; null replaces NaN, as in run folders.

    Example:
        >>> from fpatch.cli.answers import to_document
        >>> from fpatch.metrics import Rate
        >>> print(to_document({"rate": Rate(0.5, float("nan"), float("nan"), 4, 2)}), end="")
        {
          "rate": {
            "value": 0.5,
            "low": null,
            "high": null,
            "count": 4,
            "photographs": 2
          }
        }
    """
    from fpatch.log.values import to_json

    return to_json(_plain(facts)).decode()


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and math.isinf(value):
        return repr(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def describe_run(run: "Run") -> dict[str, Any]:
    """Return the facts of a trained run: its folder, its last step, and its best checkpoint."""
    config = run.read_json("config.json")
    facts = run.checkpoint_facts("best") if run.has_checkpoint("best") else {}
    return {
        "run": str(run.folder),
        "name": config.get("name"),
        "step": run.checkpoint_step("last"),
        "num_steps": config.get("train", {}).get("num_steps"),
        **{name: facts.get(name) for name in ("best", "best_step")},
        "files": [str(p) for p in sorted((run.folder / "patch").glob("*.png"))],
    }


def describe_victim(result: "Result") -> dict[str, Any]:
    """Return the facts of one victim of the demo."""
    facts = {"run": str(result.run.folder), "step": result.run.checkpoint_step("best")}
    more = {name: value for name, value in result._asdict().items() if name not in ("run", "study", "rates")}
    return facts | result.rates.to_json() | more


def describe_replay(result: "Replay | None", written: Iterable[Path]) -> dict[str, Any]:
    """Return the facts of rerun rows: their counts, and the differences of each row."""
    if result is None:
        return {"rows": 0, "identical": 0, "different": 0, "differences": {}, "files": []}
    different = len(result.differences)
    return {
        "rows": len(result.rows),
        "identical": len(result.rows) - different,
        "different": different,
        "largest": result.largest if different else 0.0,
        "differences": dict(sorted(result.differences.items())),
        "files": [str(path) for path in sorted(written)],
    }


def describe_cells(cells: "Iterable[Cell]") -> list[dict[str, Any]]:
    """Return the values and rates of each cell of a grid, in the order of the table."""
    return [{"values": cell.values, **cell.success.to_json()} for cell in cells]


def describe_entry(entry: "Entry", going: bool = True) -> dict[str, Any]:
    """Return the facts of a trial; without an outcome it is running, or interrupted."""
    status = "running" if going else "interrupted"
    return {
        "trial": entry.trial.name,
        "status": status if entry.outcome is None else entry.outcome.status,
        "value": entry.value,
        "error": entry.error,
        "step": entry.points[-1].step if entry.points else 0,
        "seed": entry.trial.seed,
        "settings": entry.trial.settings,
        **({"reason": entry.outcome.error} if entry.outcome and entry.outcome.error else {}),
    }


def describe_trials(folder: Path, plan: "Plan", entries: "Iterable[Entry]", going: bool) -> dict[str, Any]:
    """Return the facts of a sweep and of its trials, in their order."""
    return {
        "sweep": str(folder),
        "name": plan.study.name,
        "objective": plan.sweep.objective,
        "mode": plan.sweep.mode,
        "running": going,
        "trials": [describe_entry(entry, going) for entry in entries],
    }
