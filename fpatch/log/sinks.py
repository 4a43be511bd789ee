"""The log of a run: each record goes to disk first, then to every sink."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fpatch.core.files import digest, file_digest
from fpatch.core.names import safe_name
from fpatch.log.destinations import EXPERIMENT, TRACKING_URI, choose_experiment
from fpatch.log.records import Kind, Mark, Record, Records
from fpatch.log.values import inside, to_histogram, to_plain, to_png, to_scalar

_logger = logging.getLogger(__name__)


@runtime_checkable
class Sink(Protocol):
    """A destination of records; it is made from the `Records` of a run, which may hold earlier ones.

    Example:
        >>> from fpatch.log import Sink
        >>> class Printer:
        ...     def __init__(self, records): ...
        ...     def write(self, record): print(record["step"], record["values"])
        ...     def commit(self): ...
        ...     def close(self, finished): return None
        >>> isinstance(Printer(None), Sink)
        True
    """

    def write(self, record: Record) -> None:
        """Receive a record that is on disk; a resume may still drop it."""
        ...

    def commit(self) -> None:
        """Mark all records so far as final."""
        ...

    def close(self, finished: bool | None) -> str | None:
        """End the sink; return a sentence if work remains for the user.

        Args:
            finished: True for a run that finished, False for one that failed, None for one that was stopped.
        """
        ...


def open_log(
    folder: Path | str,
    *,
    tensorboard: bool = True,
    mlflow: bool | str = False,
    experiment: str = EXPERIMENT,
    name: str | None = None,
    sinks: Sequence[Callable[[Records], Sink]] = (),
    resume_step: int | None = None,
) -> "Log":
    """Open the log of a run, new or resumed.

    Args:
        folder: The run folder; it is made if absent.
        tensorboard: Whether to write event files to `folder/tensorboard`.
        mlflow: The tracking URI, `http://HOST:PORT` or `sqlite:///FILE`. True is that of the environment
            variable `MLFLOW_TRACKING_URI`, or else `mlflow.db` beside the folder.
        experiment: The name of the experiment in MLflow. `MLFLOW_EXPERIMENT_NAME` replaces the default.
        name: The name of the run in MLflow; by default that of the folder.
        sinks: Factories of further sinks, called with the records.
        resume_step: The step of the state to resume from; later records leave the log and every sink.

    Raises:
        FileExistsError: If the folder has a log and `resume_step` is not given.
        ImportError: If a package of the extra `log` is missing.
        ValueError: If the log is damaged, or the URI is invalid.
        OSError: If the disk is full.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from fpatch.log import open_log
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = open_log(folder, tensorboard=False)
        ...     log.scalars(1, {"loss/total": 0.5})
        ...     unsent = log.close()
        ...     json.loads(Path(folder, "records.jsonl").read_text())["values"]
        {'loss/total': 0.5}
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    makers = list(sinks)
    if mlflow:
        from fpatch.log.mlflow import Mlflow

        uri, experiment = tracking_uri(folder, mlflow), choose_experiment(experiment)
        makers.append(lambda records: Mlflow(records, uri, experiment, name or folder.resolve().name))
    if tensorboard:
        try:
            from fpatch.log.tensorboard import TensorBoard
        except ImportError as error:
            raise ImportError(
                "logging to TensorBoard needs tensorboard: pip install 'fpatch[log]', or set "
                "tensorboard = false"
            ) from error
        makers.append(TensorBoard)
    records = Records(folder)
    try:
        if resume_step is not None:
            records.resume(resume_step)
        elif records.size:
            raise FileExistsError(
                f"{records.path} exists: give resume_step to resume that run, or choose a new folder"
            )
        return Log(records, [make(records) for make in makers], resume_step or 0)
    except BaseException:
        records.close()
        raise


def tracking_uri(folder: Path, mlflow: bool | str) -> str:
    """Return the tracking URI of a run folder.

    True means the store that `MLFLOW_TRACKING_URI` names, and without this variable the database beside the
    folder.

    Raises:
        ValueError: If there is no URI for the path of the database.
    """
    if uri := mlflow if isinstance(mlflow, str) else os.environ.get(TRACKING_URI):
        return uri
    from fpatch.log.mlflow_client import database_uri

    return database_uri(folder.resolve().parent / "mlflow.db")


class Log:
    """Writes values of a run to the log on disk and to every sink; see `open_log`.

    A name has one value per step. A kill can fall between two parts of a step. A resumed run then records
    that step, or step 0, a second time, and the values of the first time are kept.

    Example:
        >>> import tempfile
        >>> from fpatch.log import Log, Records, open_log
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = open_log(folder, tensorboard=False)
        ...     log.params({"optimizer.name": "adam"})
        ...     log.scalars(1, {"loss/total": 0.5})
        ...     log.close()
        []
    """

    def __init__(self, records: Records, sinks: Sequence[Sink], step: int) -> None:
        """Continue after `records`, at `step`; use `open_log` instead."""
        self._records, self._sinks, self._step = records, sinks, step
        self._written: set[tuple[int, str, str]] = set()
        self._standing: set[tuple[int, str, str]] = set()
        self._revisited: dict[tuple[int, str, str], Any] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._safe_names: dict[tuple[str, str], str] = {}
        for record in records:
            kind = record["kind"]
            for name, value in record["values"].items():
                self._safe_names[kind, safe_name(name)] = name
                if record["step"] in (0, step):
                    self._standing.add((record["step"], kind, name))
                if kind in ("params", "tags", "input"):
                    self._described.setdefault(kind, {})[name] = value

    def revisit(self, step: int) -> None:
        """Keep the values of an earlier step that come out again; others are recorded anew, and count."""
        for record in (r for r in self._records if r["step"] == step):
            self._revisited |= {(step, record["kind"], n): v for n, v in record["values"].items()}
        self._standing -= self._revisited.keys()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Record numbers: Python's, numpy's or tensors of one element, NaN and infinities included.

        Raises:
            ValueError: If a value is no number, or its name has a value at this step.
        """
        self._record(step, "scalars", values, to_scalar)

    def images(self, step: int, values: Mapping[str, Float[Tensor, "_ _ _"] | np.ndarray]) -> None:
        """Record images as PNG files.

        Args:
            step: The step.
            values: Images [3, h, w] or [1, h, w] by name, floats in 0..1; they are clamped and rounded, and
                NaN becomes black.

        Raises:
            ValueError: If a value is no such image, or its name has a value at this step.
        """
        digests: dict[str, str] = {}

        def save(name: str, image: Tensor | np.ndarray) -> str:
            path, data = f"images/{safe_name(name)}/{step:08d}.png", to_png(name, image)
            if self._revisited.get((step, "images", name)) == path:
                file = self._records.folder / path
                if file.is_file() and file_digest(file) == digest(data):
                    return path
                del self._revisited[step, "images", name]
            digests[path] = self._records.write_file(path, data)
            return path

        self._record(step, "images", values, save)
        if digests:
            self._write(step, "files", digests)

    def files(self, paths: Sequence[str]) -> None:
        """Record the digests of files of the run folder by their relative paths, so that edits show.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If it lies outside the run folder.
        """
        if paths:
            found = {path: file_digest(inside(self._records.folder, path)) for path in paths}
            self._write(self._step, "files", found)

    @property
    def settings(self) -> list[str]:
        """The names of the recorded settings."""
        return list(self._described.get("params", {}))

    @property
    def mark(self) -> Mark:
        """The end of the records."""
        return self._records.mark

    def histograms(self, step: int, values: Mapping[str, Tensor | np.ndarray]) -> None:
        """Record the distribution of the numbers in arrays of any shape.

        Raises:
            ValueError: If an array holds no real numbers, or its name has a value at this step.
        """
        self._record(step, "histograms", values, to_histogram)

    def text(self, step: int, values: Mapping[str, str]) -> None:
        """Record Markdown; the text `description` becomes the description of the MLflow run.

        Raises:
            ValueError: If a name has a value at this step.
        """
        self._record(step, "text", values, lambda name, text: text)

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run by flat names; in MLflow a later change is a tag `resumed/NAME`."""
        self._describe("params", {name: to_plain(value) for name, value in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record labels of the run; a later value replaces an earlier one."""
        self._describe("tags", {name: to_plain(value) for name, value in values.items()})

    def dataset(self, name: str, digest: str, source: str, *, context: str = "train", **profile: Any) -> None:
        """Record a data set that the run reads.

        Args:
            name: Its name.
            digest: Its digest.
            source: Its path or address.
            context: Its purpose.
            **profile: Facts, such as `num_rows`.
        """
        value = {"digest": digest, "source": source, "context": context, "profile": to_plain(profile)}
        self._describe("input", {name: value})

    def artifacts(self, paths: Sequence[str]) -> None:
        """Record files or folders of the run folder by their relative paths; MLflow gets a copy.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If it lies outside the run folder.
        """
        sizes = {path: inside(self._records.folder, path).stat().st_size for path in paths}
        if sizes:
            self._write(self._step, "artifacts", sizes)

    def flush(self) -> None:
        """Force all records to the disk; call it before a state is saved."""
        self._records.sync()

    def commit(self, step: int) -> None:
        """Declare all records final, after the state of `step` is saved; a resume keeps them.

        Raises:
            ValueError: If a later step is recorded.
        """
        if step < self._step:
            raise ValueError(f"commit: step must be at least {self._step}, the last recorded, got {step}")
        self.flush()
        self._records.seal(self._step)
        for sink in self._sinks:
            sink.commit()

    def seal(self, step: int, mark: Mark) -> None:
        """Declare the records before a mark final, after the state of `step` is saved, without the sinks."""
        self.flush()
        self._records.seal(step, mark)

    def close(self, finished: bool | None = True) -> list[str]:
        """Commit if the run finished, and end all sinks; return a sentence for each unfinished task.

        Args:
            finished: False: the run failed. None: it was stopped, and may be resumed.
        """
        if finished:
            self.commit(self._step)
        left = [sentence for sink in self._sinks if (sentence := sink.close(finished))]
        self._records.close()
        for sentence in left:
            _logger.warning(sentence)
        return left

    def _record(
        self, step: int, kind: Kind, values: Mapping[str, Any], convert: Callable[[str, Any], Any]
    ) -> None:
        if step > self._step:
            self._step = step
            self._written.clear()
        names = [name for name in values if (step, kind, name) not in self._standing]
        for name in names:
            if (step, kind, name) in self._written:
                raise ValueError(f"{kind}: a name must have one value per step, got {name!r} twice at {step}")
            safe = safe_name(name)
            if (other := self._safe_names.setdefault((kind, safe), name)) != name:
                raise ValueError(f"{kind}: {name!r} and {other!r} are both {safe!r} in MLflow; rename one")
        found = {name: convert(name, values[name]) for name in names}
        before = {name: self._revisited.get((step, kind, name)) for name in names}
        if found := {n: v for n, v in found.items() if json.dumps(v) != json.dumps(before[n])}:
            self._write(step, kind, found)
        self._written.update((step, kind, name) for name in names)

    def _describe(self, kind: Kind, values: dict[str, Any]) -> None:
        known = self._described.setdefault(kind, {})
        new = {name: value for name, value in values.items() if name not in known or known[name] != value}
        if new:
            self._write(self._step, kind, new)
            known |= new

    def _write(self, step: int, kind: Kind, values: dict[str, Any]) -> None:
        record = self._records.write(step, kind, values)
        for sink in self._sinks:
            sink.write(record)
