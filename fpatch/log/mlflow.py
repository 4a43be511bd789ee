"""The MLflow sink: committed records reach MLflow once each, also after a failure of the server."""

import importlib.util
import json
import logging
import os
import tempfile
import time
import uuid
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fpatch.core.files import write_atomic
from fpatch.core.inputs import parse_json
from fpatch.log.copies import is_copy, place_of
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
_FIRST_PAUSE_S = 30.0
_LONGEST_PAUSE_S = 600.0
_SQLITE = "sqlite:///"
_UID_TAG = "fpatch.uid"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
_logger = logging.getLogger(__name__)


class Mlflow:
    """A sink that sends committed records to an MLflow run.

    `mlflow.json` in the run folder holds the id of the MLflow run, the number of sent bytes of the records
    and their checksum. After a kill between a request and the update of this file, metrics are sent again
    with the times of the records, and MLflow stores them once. A resume from an older state may drop sent
    records. The run is then sent again under a new id, and the old one goes to MLflow's trash.

    The file also holds the place of the folder. A copy of the folder gets an MLflow run of its own, and that
    of the original stays as it is.

    Training continues without a server. Requests time out after 5 s. A failure is followed by a pause of 30 s
    that doubles up to 10 min. A commit begins no new block after 5 s. MLflow has no histograms.
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
        if "://" not in uri:
            raise ValueError(f"mlflow: uri must be like sqlite:///FILE or http://HOST:PORT, got {uri!r}")
        self._records, self._uri, self._experiment, self._name = records, uri, experiment, name
        self._path = records.folder / "mlflow.json"
        self._state = self._load()
        self._committed = self._state["offset"]
        self._client: Any = None
        self._pause_s, self._paused_until, self._failure = _FIRST_PAUSE_S, 0.0, ""

    def write(self, record: Record) -> None:
        """Ignore a record that is not committed, because a resume may drop it."""

    def commit(self) -> None:
        """Send all records, unless the pause after a failure lasts."""
        self._committed = self._records.size
        if time.monotonic() >= self._paused_until:
            self._try_to_send(_COMMIT_LIMIT_S)

    def close(self, finished: bool) -> str | None:
        """Send committed records and end the MLflow run; return a sentence if records remain unsent."""
        self._try_to_send(float("inf"), status="FINISHED" if finished else "FAILED")
        if not self._failure:
            return None
        num_unsent = sum(1 for _ in self._records.read(self._state["offset"], self._committed))
        return (
            f"MLflow at {self._uri} lacks {num_unsent} records ({self._failure}); they are kept: "
            f"`fpatch resume {self._records.folder}` sends them once the server answers"
        )

    def _try_to_send(self, limit_s: float, status: str | None = None) -> None:
        deadline = time.monotonic() + limit_s
        try:
            with _contained():
                self._client = self._client or self._connect()
                while self._state["offset"] < self._committed and time.monotonic() < deadline:
                    self._send_block()
                if status is not None:
                    self._client.set_terminated(self._state["run_id"], status)
        except Exception as error:  # a failed tracker must not end a training
            self._client = None
            self._paused_until = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            if not self._failure:
                _logger.warning("MLflow at %s failed, records are sent later: %s", self._uri, error)
            self._failure = str(error).partition("\n")[0] or repr(error)
        else:
            self._pause_s, self._failure = _FIRST_PAUSE_S, ""

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
        from mlflow import MlflowClient

        self._save()  # the uid is on disk before a run has it
        if self._uri.startswith(_SQLITE):
            _make_database(Path(self._uri.removeprefix(_SQLITE)))
        client = MlflowClient(self._uri)
        if not _is_own(client, self._state["run_id"], self._state["uid"]):
            self._state |= {"run_id": self._find_or_create_run(client), "offset": 0, "crc32": 0}
        for old in self._state["superseded"]:
            if isinstance(old, list) and len(old) == 2 and _is_own(client, *old):
                client.delete_run(old[0])
        self._state["superseded"] = []
        client.update_run(self._state["run_id"], status="RUNNING")
        self._save()
        return client

    def _find_or_create_run(self, client: Any) -> str:
        uid = self._state["uid"]
        if experiment := client.get_experiment_by_name(self._experiment):
            experiment_id = experiment.experiment_id
            if runs := client.search_runs([experiment_id], f"tags.`{_UID_TAG}` = '{uid}'"):
                return runs[0].info.run_id
        else:
            experiment_id = client.create_experiment(self._experiment, self._artifact_location())
        start_time = next((record["time"] for record in self._records), None)
        return client.create_run(experiment_id, start_time, {_UID_TAG: uid}, self._name).info.run_id

    def _artifact_location(self) -> str | None:
        """Return a folder beside a local database; a server chooses its own."""
        if not self._uri.startswith(_SQLITE):
            return None
        return (Path(self._uri.removeprefix(_SQLITE)).resolve().parent / "mlartifacts").as_uri()

    def _send_block(self) -> None:
        start = self._state["offset"]
        block = list(islice(self._records.read(start, self._committed), _RECORDS_PER_BLOCK))
        self._send([record for record, _ in block])
        end = block[-1][1]
        self._state |= {"offset": end, "crc32": self._checksum(start, end, self._state["crc32"])}
        self._save()

    def _send(self, records: list[Record]) -> None:
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
            if any(Path(folder).iterdir()):
                client.log_artifacts(run_id, folder)
        for path in dict.fromkeys(name for _, name, _ in entries(records, "artifacts")):
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
            self._client.log_artifact(run_id, str(local), Path(path).parent.as_posix().removeprefix("."))


def nest(uri: str, parent: Path, children: Sequence[Path]) -> None:
    """Make the MLflow runs of some run folders children of the run of another.

    Args:
        uri: The tracking URI.
        parent: The run folder of the parent.
        children: The run folders of the children.

    Raises:
        Exception: By MLflow, if the server does not answer.
    """
    with _contained():
        from mlflow import MlflowClient

        client, (parent_id,) = MlflowClient(uri), run_ids([parent])
        for folder in children:
            state = parse_json((folder / "mlflow.json").read_bytes())
            if _is_own(client, state["run_id"], state["uid"]):
                client.set_tag(state["run_id"], "mlflow.parentRunId", parent_id)


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


@contextmanager
def _contained() -> Iterator[None]:
    """Set short timeouts for MLflow, and silence its telemetry, warnings and logs."""
    added = {key: value for key, value in _ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(added)
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for key in added:
            del os.environ[key]


def _is_own(client: Any, run_id: Any, uid: Any) -> bool:
    """Return whether a run is not in the trash, and has the tag that was given to it with this id."""
    from mlflow.exceptions import MlflowException

    if not isinstance(run_id, str) or not isinstance(uid, str):
        return False
    try:
        run = client.get_run(run_id)
        return run.info.lifecycle_stage == "active" and run.data.tags.get(_UID_TAG) == uid
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _make_database(path: Path) -> None:
    """Make a local database atomically, because MLflow cannot open one that a kill left incomplete."""
    from mlflow import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        new = Path(folder, path.name)
        MlflowClient(f"{_SQLITE}{new}")
        with suppress(FileExistsError):  # another run was faster
            os.link(new, path)


def _batches(entries: list[Any], size: int) -> Iterator[list[Any]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))
