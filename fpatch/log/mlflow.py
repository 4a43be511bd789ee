"""MLflow, fed from the records: what a dead server did not take is sent later, and nothing arrives twice."""

import importlib.util
import json
import logging
import os
import shutil
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

from PIL import Image

from fpatch.core.files import write_atomic
from fpatch.log.records import Kind, Record, Records
from fpatch.log.values import safe_name, to_text

RECORDS_PER_BLOCK = 200
METRICS_PER_REQUEST = 1000
ENTRIES_PER_REQUEST = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
MAX_DIGEST_LENGTH = 36
COMMIT_LIMIT_S = 5.0
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0
SQLITE = "sqlite:///"
UID_TAG = "fpatch.uid"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
_logger = logging.getLogger(__name__)


class Mlflow:
    """Sink that sends committed records to an MLflow run.

    `mlflow.json` in the run folder holds the id of the run and how much of the records is sent, with a
    checksum. After a kill between sending and noting it, metrics are sent again with the times of the
    records, and MLflow stores them once. If records that were sent left the log (a resume from an older
    state), nothing can be taken back: the run is sent anew under a new id, and the old one goes to MLflow's
    trash.

    Training goes on without a server: requests time out after 5 s, a failure is followed by a pause of 30 s
    that doubles up to 10 min, and a commit begins no new block after 5 s. MLflow has no histograms.
    """

    def __init__(self, records: Records, uri: str, experiment: str, name: str) -> None:
        """Take up the state of the run folder; the server is first asked at a commit.

        Raises:
            ImportError: MLflow is not installed.
            ValueError: `uri` is no URI.
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
        self._pause_s, self._paused_until, self._failure = FIRST_PAUSE_S, 0.0, ""

    def write(self, record: Record) -> None:
        """Do nothing: what is not committed may still be taken back."""

    def commit(self) -> None:
        """Send what was recorded so far, unless the server failed a moment ago."""
        self._committed = self._records.size
        if time.monotonic() >= self._paused_until:
            self._try_to_send(COMMIT_LIMIT_S)

    def close(self, finished: bool) -> str | None:
        """Send what is committed and end the MLflow run; say what could not be sent, and how to send it."""
        self._try_to_send(float("inf"), status="FINISHED" if finished else "FAILED")
        if not self._failure:
            return None
        num_unsent = sum(1 for _ in self._records.read(self._state["offset"], self._committed))
        return (
            f"MLflow at {self._uri} lacks {num_unsent} records ({self._failure}); they are kept: "
            f"`fpatch resume {self._records.folder}` sends them when it answers again"
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
        except Exception as error:  # no failure of a tracker is worth a training run
            self._client = None
            self._paused_until = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            if not self._failure:
                _logger.warning("MLflow at %s failed, records are sent later: %s", self._uri, error)
            self._failure = str(error).partition("\n")[0] or repr(error)
        else:
            self._pause_s, self._failure = FIRST_PAUSE_S, ""

    def _load(self) -> dict[str, Any]:
        new = {"uid": uuid.uuid4().hex, "run_id": None, "offset": 0, "crc32": 0, "superseded": []}
        if not self._path.exists():
            return new
        state = json.loads(self._path.read_bytes())
        if state["crc32"] == self._checksum(0, state["offset"]):
            return state
        return new | {"superseded": [*state["superseded"], state["run_id"]]}

    def _save(self) -> None:
        state = self._state | {"uri": self._uri, "experiment": self._experiment}
        write_atomic(self._path, json.dumps(state, indent=1).encode())

    def _checksum(self, start: int, stop: int, crc32: int = 0) -> int:
        with open(self._records.path, "rb") as file:
            file.seek(start)
            return zlib.crc32(file.read(stop - start), crc32)

    def _connect(self) -> Any:
        from mlflow import MlflowClient

        self._save()  # the uid is on disk before a run bears it
        if self._uri.startswith(SQLITE):
            _make_database(Path(self._uri.removeprefix(SQLITE)))
        client = MlflowClient(self._uri)
        if not _is_alive(client, self._state["run_id"]):
            self._state |= {"run_id": self._find_or_create_run(client), "offset": 0, "crc32": 0}
        for run_id in self._state["superseded"]:
            if _is_alive(client, run_id):
                client.delete_run(run_id)
        self._state["superseded"] = []
        client.update_run(self._state["run_id"], status="RUNNING")
        self._save()
        return client

    def _find_or_create_run(self, client: Any) -> str:
        uid = self._state["uid"]
        if experiment := client.get_experiment_by_name(self._experiment):
            experiment_id = experiment.experiment_id
            if runs := client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{uid}'"):
                return runs[0].info.run_id
        else:
            experiment_id = client.create_experiment(self._experiment, self._artifact_location())
        start_time = next((record["time"] for record in self._records), None)
        return client.create_run(experiment_id, start_time, {UID_TAG: uid}, self._name).info.run_id

    def _artifact_location(self) -> str | None:
        """A folder beside a local database; a server decides itself."""
        if not self._uri.startswith(SQLITE):
            return None
        return (Path(self._uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()

    def _send_block(self) -> None:
        start = self._state["offset"]
        block = list(islice(self._records.read(start, self._committed), RECORDS_PER_BLOCK))
        self._send([record for record, _ in block])
        end = block[-1][1]
        self._state |= {"offset": end, "crc32": self._checksum(start, end, self._state["crc32"])}
        self._save()

    def _send(self, records: list[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client, run_id = self._client, self._state["run_id"]
        metrics = [
            Metric(safe_name(name), float(value), record["time"], record["step"])
            for record, name, value in _entries(records, "scalars")
        ]
        new_params, changed_params = self._sort_params(records)
        tags = {safe_name(name): to_text(value) for _, name, value in _entries(records, "tags")}
        tags |= {f"resumed/{name}": value for name, value in changed_params.items()}
        for _, name, text in _entries(records, "text"):
            if name == "description":
                tags["mlflow.note.content"] = text
        if _entries(records, "images"):
            tags["mlflow.loggedImages"] = "True"
        tag_entries = [RunTag(name, _cut(text, MAX_TAG_LENGTH)) for name, text in tags.items()]
        for some in _batches(metrics, METRICS_PER_REQUEST):
            client.log_batch(run_id, metrics=some)
        for some in _batches([Param(*entry) for entry in new_params.items()], ENTRIES_PER_REQUEST):
            client.log_batch(run_id, params=some)
        for some in _batches(tag_entries, ENTRIES_PER_REQUEST):
            client.log_batch(run_id, tags=some)
        if inputs := [_dataset_input(name, value) for _, name, value in _entries(records, "input")]:
            client.log_inputs(run_id, inputs)
        with tempfile.TemporaryDirectory() as folder:
            _stage_files(Path(folder), self._records.folder, records)
            if any(Path(folder).iterdir()):
                client.log_artifacts(run_id, folder)
        for path in dict.fromkeys(name for _, name, _ in _entries(records, "artifacts")):
            self._upload(path)

    def _sort_params(self, records: list[Record]) -> tuple[dict[str, str], dict[str, str]]:
        """New parameters, and those that differ from what MLflow has and does not let change."""
        entries = _entries(records, "params")
        known = self._client.get_run(self._state["run_id"]).data.params if entries else {}
        new: dict[str, str] = {}
        changed: dict[str, str] = {}
        for _, name, value in entries:
            key, text = safe_name(name), _cut(to_text(value), MAX_PARAM_LENGTH)
            if text != (known | new).get(key):
                (changed if key in known or key in new else new)[key] = text
        return new, changed

    def _upload(self, path: str) -> None:
        local, run_id = self._records.folder / path, self._state["run_id"]
        if local.is_dir():
            self._client.log_artifacts(run_id, str(local), path)
        elif local.exists():
            self._client.log_artifact(run_id, str(local), Path(path).parent.as_posix().removeprefix("."))
        else:
            _logger.warning("%s was deleted before it could be sent to MLflow", local)


def nest(uri: str, parent: Path, children: Sequence[Path]) -> None:
    """Have MLflow show the runs of some run folders below the run of another.

    Args:
        uri: The tracking URI.
        parent: Run folder.
        children: Run folders.

    Raises:
        Exception: Of MLflow's, if the server does not answer.
    """
    with _contained():
        from mlflow import MlflowClient

        client, (parent_id,) = MlflowClient(uri), run_ids([parent])
        for run_id in run_ids(children):
            client.set_tag(run_id, "mlflow.parentRunId", parent_id)


def run_ids(folders: Sequence[Path]) -> list[str]:
    """MLflow's names for the runs of run folders, of those that it knows."""
    paths = [path for folder in folders if (path := folder / "mlflow.json").exists()]
    found = [json.loads(path.read_bytes())["run_id"] for path in paths]
    return [run_id for run_id in found if run_id is not None]


def is_sent(folder: Path) -> bool:
    """Whether MLflow has every record of a run folder."""
    path = folder / "mlflow.json"
    size = (folder / "records.jsonl").stat().st_size
    return path.exists() and json.loads(path.read_bytes())["offset"] >= size


@contextmanager
def _contained() -> Iterator[None]:
    """Give MLflow short timeouts and no say in this process: no telemetry, no warnings, no chatter."""
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


def _is_alive(client: Any, run_id: str | None) -> bool:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return False
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _make_database(path: Path) -> None:
    """Make a new local database whole or not at all: MLflow cannot use one that was killed half-made."""
    from mlflow import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        new = Path(folder, path.name)
        MlflowClient(f"{SQLITE}{new}")
        with suppress(FileExistsError):  # another run was faster
            os.link(new, path)


def _entries(records: list[Record], kind: Kind) -> list[tuple[Record, str, Any]]:
    return [
        (record, name, value)
        for record in records
        if record["kind"] == kind
        for name, value in record["values"].items()
    ]


def _batches(entries: list[Any], size: int) -> Iterator[list[Any]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


def _cut(text: str, length: int) -> str:
    note = " ... (cut, whole among the artifacts)"
    return text if len(text) <= length else text[: length - len(note)] + note


def _dataset_input(name: str, value: dict[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"uri": value["source"]}), json.dumps(value["profile"])
    dataset = Dataset(name, value["digest"][:MAX_DIGEST_LENGTH], "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", value["context"])])


def _stage_files(target: Path, folder: Path, records: list[Record]) -> None:
    """Lay out the files that become artifacts: images as MLflow's image grid names them, and texts."""
    texts = {
        f"text/{safe_name(name)}/{record['step']:08d}.md": text
        for record, name, text in _entries(records, "text")
    }
    for _, name, value in _entries(records, "params"):
        if len(text := to_text(value)) > MAX_PARAM_LENGTH:
            texts[f"params/{safe_name(name)}.txt"] = text
    for path, text in texts.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text)
    for record, name, path in _entries(records, "images"):
        (target / "images").mkdir(exist_ok=True)
        key, uid = safe_name(name).replace("/", "~"), uuid.uuid5(uuid.NAMESPACE_URL, path)
        stem = f"images/{key}+step+{record['step']}+timestamp+{record['time']}+{uid}"
        shutil.copyfile(folder / path, target / f"{stem}.png")
        with Image.open(folder / path) as image:
            image.thumbnail((256, 256))
            image.save(target / f"{stem}+compressed.webp")
