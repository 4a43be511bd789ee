"""The log of a run: records on disk first, then every sink."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fpatch.log.records import Kind, Record, Records
from fpatch.log.values import inside, safe_name, to_histogram, to_plain, to_png, to_scalar

_logger = logging.getLogger(__name__)


@runtime_checkable
class Sink(Protocol):
    """A place that records go to. It is made from the `Records`, which hold what stands at the start."""

    def write(self, record: Record) -> None:
        """Take a record that is on disk, but that a resume may still take back."""
        ...

    def commit(self) -> None:
        """Learn that everything written so far is final."""
        ...

    def close(self, finished: bool) -> str | None:
        """End, with an error unless `finished`; return a sentence for the user if something is left to do."""
        ...


def open_log(
    folder: Path | str,
    *,
    tensorboard: bool = True,
    mlflow: bool | str = False,
    experiment: str = "fpatch",
    name: str | None = None,
    sinks: Sequence[Callable[[Records], Sink]] = (),
    resume_step: int | None = None,
) -> "Log":
    """Open the log of a run, new or resumed.

    Args:
        folder: The run folder; it is made if absent.
        tensorboard: Whether to write event files to `folder/tensorboard`.
        mlflow: The tracking URI, `http://HOST:PORT` or `sqlite:///FILE`; true for `mlflow.db` beside it.
        experiment: Name of the experiment in MLflow.
        name: Name of the run in MLflow; by default that of the folder.
        sinks: Makers of further sinks, called with the records.
        resume_step: The step of the state to go on from; later records leave the log and every sink.

    Raises:
        FileExistsError: The folder has a log and `resume_step` is not given.
        ImportError: A package of the extra `log` is missing.
        ValueError: The log is damaged, or the URI is none.
        OSError: The disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    makers = list(sinks)
    if mlflow:
        from fpatch.log.mlflow import Mlflow

        uri = mlflow if isinstance(mlflow, str) else f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
        makers.append(lambda records: Mlflow(records, uri, experiment, name or folder.resolve().name))
    if tensorboard:
        try:
            from fpatch.log.tensorboard import TensorBoard
        except ImportError as error:
            raise ImportError(
                "logging to TensorBoard needs tensorboard: pip install 'fpatch[log]', or switch it off"
            ) from error
        makers.append(TensorBoard)
    records = Records(folder)
    try:
        if resume_step is not None:
            records.resume(resume_step)
        elif records.size:
            raise FileExistsError(
                f"{records.path} exists: give resume_step to go on with that run, or a new folder"
            )
        return Log(records, [make(records) for make in makers], resume_step or 0)
    except BaseException:
        records.close()
        raise


class Log:
    """Records what a run has to show, in the log on disk and in every sink.

    A name has one value per step. What a resumed run records once more at step 0 or at the step it resumed
    from, because it was killed between two parts of it, stays as it stands.
    """

    def __init__(self, records: Records, sinks: Sequence[Sink], step: int) -> None:
        """Go on after `records`, at `step`; `open_log` is the usual way."""
        self._records, self._sinks, self._step = records, sinks, step
        self._written: set[tuple[int, str, str]] = set()
        self._standing: set[tuple[int, str, str]] = set()
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

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Record numbers: Python's, numpy's or tensors of one element; NaN and infinities as such.

        Raises:
            ValueError: Something else, or a name that has a value at this step.
        """
        self._record(step, "scalars", values, to_scalar)

    def images(self, step: int, values: Mapping[str, Float[Tensor, "_ _ _"] | np.ndarray]) -> None:
        """Record images [3, h, w] or [1, h, w] of floats in 0..1, as PNG; clamped, rounded, NaN is black."""

        def save(name: str, image: Tensor | np.ndarray) -> str:
            path = f"images/{safe_name(name)}/{step:08d}.png"
            self._records.write_file(path, to_png(name, image))
            return path

        self._record(step, "images", values, save)

    def histograms(self, step: int, values: Mapping[str, Tensor | np.ndarray]) -> None:
        """Record the distribution of the numbers in arrays of any shape."""
        self._record(step, "histograms", values, to_histogram)

    def text(self, step: int, values: Mapping[str, str]) -> None:
        """Record Markdown; the text called `description` becomes the description of the MLflow run."""
        self._record(step, "text", values, lambda name, text: text)

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run by flat names; in MLflow a later change is a tag `resumed/NAME`."""
        self._describe("params", {name: to_plain(value) for name, value in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record labels of the run; a later value replaces an earlier one."""
        self._describe("tags", {name: to_plain(value) for name, value in values.items()})

    def dataset(self, name: str, digest: str, source: str, *, context: str = "train", **profile: Any) -> None:
        """Record a data set that is read: its digest, where it lies, what for, and facts such as num_rows."""
        value = {"digest": digest, "source": source, "context": context, "profile": to_plain(profile)}
        self._describe("input", {name: value})

    def artifacts(self, paths: Sequence[str]) -> None:
        """Record files, or folders, of the run folder by their relative paths; MLflow keeps a copy.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It lies outside the run folder.
        """
        sizes = {path: inside(self._records.folder, path).stat().st_size for path in paths}
        if sizes:
            self._write(self._step, "artifacts", sizes)

    def flush(self) -> None:
        """Return once all records would survive a power failure: the step before saving a state."""
        self._records.sync()

    def commit(self, step: int) -> None:
        """Declare final what is recorded: the state of `step` is saved, so a resume keeps it.

        Raises:
            ValueError: A later step is recorded.
        """
        if step < self._step:
            raise ValueError(f"commit: step must be at least {self._step}, the last recorded, got {step}")
        self.flush()
        for sink in self._sinks:
            sink.commit()

    def close(self, finished: bool = True) -> list[str]:
        """Commit if the run finished, end all sinks, and return what is left to do, a sentence each."""
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
        if names:
            self._write(step, kind, {name: convert(name, values[name]) for name in names})
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
