"""The MLflow sink: committed records reach MLflow once each, also after a failure of the server."""

import importlib.util
import json
import logging
import os
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fpatch.core.files import write_atomic
from fpatch.core.inputs import parse_json
from fpatch.core.names import typed
from fpatch.log.attempts import PATIENCE_S, Attempt
from fpatch.log.copies import is_copy, place_of
from fpatch.log.destinations import TRACKING_URI
from fpatch.log.mlflow_client import (
    UID_TAG,
    check_beside,
    contained,
    find_active_run,
    is_own,
    local_database,
    open_client,
    prepare,
    quiet,
)
from fpatch.log.mlflow_payload import (
    entries,
    make_inputs,
    make_metrics,
    make_params,
    make_tags,
    sort_params,
    stage_files,
)
from fpatch.log.records import Record, Records
from fpatch.log.values import inside

_RECORDS_PER_BLOCK = 200
_METRICS_PER_REQUEST = 1000
_ENTRIES_PER_REQUEST = 100
_COMMIT_LIMIT_S = 5.0
"""Seconds that a commit waits; then the training goes on, and the sending beside it."""
_FIRST_PAUSE_S = 30.0
_LONGEST_PAUSE_S = 600.0

_logger = logging.getLogger(__name__)


class Mlflow:
    """A sink that sends committed records to an MLflow run.

    `mlflow.json` in the run folder holds the id of the MLflow run, the number of sent bytes of the records
    and their checksum. After a kill between a request and the update of this file, metrics are sent again
    with the times of the records, and MLflow stores them once. A resume from an older state may drop sent
    records. The run is then sent again under a new id, and the old one goes to MLflow's trash.

    The file also holds the place of the folder. A copy of the folder gets an MLflow run of its own, and that
    of the original stays as it is. Inside an active run of the user's own code, in the same store, the run
    is nested below it.

    Training continues without a server. A commit waits for 5 s at most, whatever the store, and sending goes
    on beside the training. A store that makes no progress for 30 s has failed. A failure is followed by a
    pause of 30 s that doubles up to 10 min. MLflow has no histograms.
    """

    def __init__(self, records: Records, uri: str, experiment: str, name: str) -> None:
        """Read `mlflow.json` of the run folder; the first request is that of a commit.

        Args:
            records: The log of the run.
            uri: The tracking URI.
            experiment: The name of the experiment.
            name: The name of the run.

        Raises:
            ImportError: If MLflow is not installed.
            ValueError: If `uri` is no URI.
        """
        if importlib.util.find_spec("mlflow") is None:
            raise ImportError("logging to MLflow needs mlflow: pip install 'fpatch[log]'")
        if "://" not in uri and uri != os.environ.get(TRACKING_URI):
            raise ValueError(f"mlflow: uri must be like sqlite:///FILE or http://HOST:PORT, got {uri!r}")
        self._records, self._uri, self._experiment, self._name = records, uri, experiment, name
        self._path = records.folder / "mlflow.json"
        self._state = self._load()
        self._committed = self._state["offset"]
        self._parent = find_active_run(uri)
        self._client: Any = None
        self._attempt: Attempt | None = None
        self._pause_s, self._paused_until, self._failure = _FIRST_PAUSE_S, 0.0, ""

    def write(self, record: Record) -> None:
        """Ignore a record that is not committed, because a resume may drop it."""

    def commit(self) -> None:
        """Send all records, unless the pause after a failure lasts; wait for a few seconds at most."""
        self._committed = self._records.size
        self._note_end()
        if self._attempt is None and time.monotonic() >= self._paused_until:
            self._begin()
            if self._attempt is not None:
                with quiet():
                    self._attempt.wait(_COMMIT_LIMIT_S)
                self._note_end()

    def close(self, finished: bool | None) -> str | None:
        """Send committed records and end the MLflow run; return a sentence if records remain unsent."""
        self._wait_for_end()
        if self._attempt is None:
            self._begin(status="KILLED" if finished is None else "FINISHED" if finished else "FAILED")
            self._wait_for_end()
        if not self._failure:
            return None
        num_unsent = sum(1 for _ in self._records.read(self._state["offset"], self._committed))
        return (
            f"MLflow at {self._uri} lacks {num_unsent} records ({self._failure}); they are kept: "
            f"`fpatch resume {typed(self._records.folder)}` sends them once the server answers"
        )

    def _begin(self, status: str | None = None) -> None:
        """Begin to send the committed records, and then the status, if one is given."""
        stop = self._committed
        try:
            check_beside(self._uri, self._records.folder)
            prepare(self._uri)
        except Exception as error:  # a failed tracker must not end a training
            self._fail(error)
            return

        def send(note_progress: Callable[[], None]) -> None:
            with contained():
                self._client = self._client or self._connect()
                while self._state["offset"] < stop:
                    note_progress()
                    self._send_block(stop, note_progress)
                if status is not None:
                    self._client.set_terminated(self._state["run_id"], status)

        self._attempt = Attempt(send)

    def _wait_for_end(self) -> None:
        """Wait for the attempt as long as it moves."""
        if self._attempt is not None:
            with quiet():
                self._attempt.wait_while_it_moves(PATIENCE_S)
            self._note_end()

    def _note_end(self) -> None:
        """Note how an attempt has ended, or that it hangs, which is said once."""
        attempt = self._attempt
        if attempt is None:
            return
        if attempt.is_running:
            if attempt.idle_s > PATIENCE_S:
                self._note_failure(f"no answer for {PATIENCE_S:.0f} s")
            return
        self._attempt = None
        if attempt.error is None:
            self._pause_s, self._failure = _FIRST_PAUSE_S, ""
            return
        self._fail(attempt.error)

    def _fail(self, error: Exception) -> None:
        self._client = None
        self._paused_until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._note_failure(str(error).partition("\n")[0] or repr(error))

    def _note_failure(self, why: str) -> None:
        if not self._failure:
            _logger.warning("MLflow at %s failed, records are sent later: %s", self._uri, why)
        self._failure = why

    def _load(self) -> dict[str, Any]:
        here = place_of(self._records.folder)
        new = {
            "uid": uuid.uuid4().hex,
            "run_id": None,
            "offset": 0,
            "crc32": 0,
            "superseded": [],
            "place": here,
        }
        if not self._path.exists():
            return new
        state = _read_state(self._path)
        if is_copy(state, here):
            _logger.warning("%s is a copy: MLflow gets a run of its own for it", self._records.folder)
            return new
        state["place"] = here
        if state["crc32"] == self._checksum(0, state["offset"]):
            return state
        return new | {"superseded": [*state["superseded"], [state["run_id"], state["uid"]]]}

    def _save(self) -> None:
        state = self._state | {"uri": self._uri, "experiment": self._experiment}
        write_atomic(self._path, json.dumps(state, indent=1).encode())

    def _checksum(self, start: int, stop: int, crc32: int = 0) -> int:
        with open(self._records.path, "rb") as file:
            file.seek(start)
            return zlib.crc32(file.read(stop - start), crc32)

    def _connect(self) -> Any:
        self._save()  # the uid is on disk before a run has it
        client = open_client(self._uri)
        if not is_own(client, self._state["run_id"], self._state["uid"]):
            self._state |= {"run_id": self._find_or_create_run(client), "offset": 0, "crc32": 0}
        for old in self._state["superseded"]:
            if isinstance(old, list) and len(old) == 2 and is_own(client, *old):
                client.delete_run(old[0])
        self._state["superseded"] = []
        if self._parent is None:  # the store of an active run is the user's
            files = client.get_run(self._state["run_id"]).info.artifact_uri
            check_beside(self._uri, self._records.folder, files)
        client.update_run(self._state["run_id"], status="RUNNING")
        self._save()
        return client

    def _find_or_create_run(self, client: Any) -> str:
        uid, tags = self._state["uid"], {}
        if self._parent is not None:
            experiment_id, tags = self._parent.experiment_id, {"mlflow.parentRunId": self._parent.run_id}
        elif experiment := client.get_experiment_by_name(self._experiment):
            experiment_id = experiment.experiment_id
        else:
            experiment_id = client.create_experiment(self._experiment, self._artifact_location())
        if runs := client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{uid}'"):
            return runs[0].info.run_id
        start_time = next((record["time"] for record in self._records), None)
        return client.create_run(experiment_id, start_time, {UID_TAG: uid} | tags, self._name).info.run_id

    def _artifact_location(self) -> str | None:
        """Return a folder beside a local database; a server chooses its own."""
        path = local_database(self._uri)
        return None if path is None else (path.resolve().parent / "mlartifacts").as_uri()

    def _send_block(self, stop: int, note_progress: Callable[[], None]) -> None:
        start = self._state["offset"]
        block = list(islice(self._records.read(start, stop), _RECORDS_PER_BLOCK))
        self._send([record for record, _ in block], note_progress)
        end = block[-1][1]
        self._state |= {"offset": end, "crc32": self._checksum(start, end, self._state["crc32"])}
        self._save()

    def _send(self, records: list[Record], note_progress: Callable[[], None]) -> None:
        client, run_id = self._client, self._state["run_id"]
        known = client.get_run(run_id).data.params if entries(records, "params") else {}
        new_params, changed_params = sort_params(records, known)
        for some in _batches(make_metrics(records), _METRICS_PER_REQUEST):
            client.log_batch(run_id, metrics=some)
        for some in _batches(make_params(new_params), _ENTRIES_PER_REQUEST):
            client.log_batch(run_id, params=some)
        for some in _batches(make_tags(records, changed_params), _ENTRIES_PER_REQUEST):
            client.log_batch(run_id, tags=some)
        if inputs := make_inputs(records):
            client.log_inputs(run_id, inputs)
        with tempfile.TemporaryDirectory() as folder:
            stage_files(Path(folder), self._records.folder, records)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                note_progress()
                client.log_artifact(run_id, str(path), _parent_of(path.relative_to(folder)))
        for path in dict.fromkeys(name for _, name, _ in entries(records, "artifacts")):
            note_progress()
            self._upload(path)

    def _upload(self, path: str) -> None:
        try:
            local, run_id = inside(self._records.folder, path), self._state["run_id"]
        except FileNotFoundError:
            _logger.warning("%s was deleted before it could be sent to MLflow", self._records.folder / path)
            return
        if local.is_dir():
            self._client.log_artifacts(run_id, str(local), path)
        else:
            self._client.log_artifact(run_id, str(local), _parent_of(Path(path)))


def _read_state(path: Path) -> dict[str, Any]:
    """Read `mlflow.json`.

    Raises:
        ValueError: If it lacks an entry, or an entry has another type.
    """
    kinds = {"uid": str, "run_id": str | None, "offset": int, "crc32": int, "superseded": list}
    try:
        state = parse_json(path.read_bytes())
        broken = not isinstance(state, dict) or not all(isinstance(state.get(n), k) for n, k in kinds.items())
    except ValueError:
        broken = True
    if broken or state["offset"] < 0:
        raise ValueError(f"{path} is broken; remove it, and MLflow gets a new run with all records")
    return state


def _batches(entries: list[Any], size: int) -> Iterator[list[Any]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


def _parent_of(path: Path) -> str | None:
    """Return the folder of an artifact in MLflow; None for the root."""
    return path.parent.as_posix().removeprefix(".") or None
