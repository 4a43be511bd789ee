"""The MLflow runs of several run folders: nest them below another, end them, and find what was sent."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fpatch.core.inputs import parse_json
from fpatch.log.attempts import PATIENCE_S, Attempt
from fpatch.log.mlflow_client import contained, is_own, open_client, prepare, quiet


def nest(uri: str, parent: Path, children: Sequence[Path]) -> None:
    """Make the MLflow runs of some run folders children of the run of another.

    Args:
        uri: The tracking URI.
        parent: The run folder of the parent.
        children: The run folders of the children.

    Raises:
        Exception: By MLflow, if the server does not answer.
    """
    (parent_id,) = run_ids([parent])

    def tag(client: Any, run_id: str) -> None:
        client.set_tag(run_id, "mlflow.parentRunId", parent_id)

    _on_own_runs(uri, children, tag)


def end_runs(uri: str, folders: Sequence[Path]) -> None:
    """End the MLflow runs of run folders as killed, whose processes were stopped.

    Args:
        uri: The tracking URI.
        folders: The run folders; those without an MLflow run are skipped.

    Raises:
        Exception: By MLflow, if the server does not answer.
    """
    _on_own_runs(uri, folders, lambda client, run_id: client.set_terminated(run_id, "KILLED"))


def _on_own_runs(uri: str, folders: Sequence[Path], act: Callable[[Any, str], None]) -> None:
    """Do something to the MLflow runs of run folders, and wait for it no longer than it makes progress."""

    def work(note_progress: Callable[[], None]) -> None:
        with contained():
            client = open_client(uri)
            for folder in (folder for folder in folders if (folder / "mlflow.json").exists()):
                note_progress()
                state = parse_json((folder / "mlflow.json").read_bytes())
                if is_own(client, state["run_id"], state["uid"]):
                    act(client, state["run_id"])

    prepare(uri)
    attempt = Attempt(work)
    with quiet():
        is_done = attempt.wait_while_it_moves(PATIENCE_S)
    if not is_done:
        raise ConnectionError(f"no answer for {PATIENCE_S:.0f} s")
    if attempt.error is not None:
        raise attempt.error


def run_ids(folders: Sequence[Path]) -> list[str]:
    """Return the ids of the MLflow runs of run folders; folders without one are skipped."""
    paths = [path for folder in folders if (path := folder / "mlflow.json").exists()]
    found = [parse_json(path.read_bytes())["run_id"] for path in paths]
    return [run_id for run_id in found if run_id is not None]


def is_sent(folder: Path) -> bool:
    """Return whether MLflow has every record of a run folder."""
    path = folder / "mlflow.json"
    size = (folder / "records.jsonl").stat().st_size
    return path.exists() and parse_json(path.read_bytes())["offset"] >= size
