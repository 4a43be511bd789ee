"""The journal of a sweep: its plan, trials and results, in small files that are replaced atomically.

    sweep.json                 the study, the space and how it is searched
    journal/0003.json          a trial: its settings and its seed, written before it starts
    journal/0003.points.jsonl  its evaluations, each written before the checkpoint of its step
    journal/0003.stop          present if the trial should stop early
    journal/0003.outcome.json  how it ended
    trials/0003/               its run folder
    trials.csv trials.parquet figures/ tensorboard/    made from these

A sweep has no other state: a reader knows the remaining work, also after a kill at any moment.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

from fpatch.core.checks import check_kind, nearest, shown
from fpatch.core.files import AppendFile, write_atomic
from fpatch.core.inputs import check_encodable, parse_json, read_text
from fpatch.core.schema import decode
from fpatch.core.version import __version__
from fpatch.runs.imports import forbid_imports
from fpatch.runs.locks import LockedError, RunError, check_links, is_held, lock, new_folder
from fpatch.runs.places import Places, to_relative
from fpatch.tune.search.proposers import Observation

FORMAT = 1
"""Version of the layout; a reader refuses another one."""


_NAME = re.compile("[0-9]+")
"""The names of trials, which are also those of their folders."""

_CUT = re.compile(r'(\[[-+\w., "]*)?\s*')
"""A line of evaluations that a kill cut off."""


class Trial(NamedTuple):
    """A trial as proposed, before it runs.

    Attributes:
        name: Its number with leading zeros.
        settings: Varied values by dotted name.
        seed: Seed of its study.
        parent: Name of the trial whose last state it starts with; None: the study's initial state.
        until: Training steps after which it ends; None: `train.num_steps` of its study.
        micro_batch: Rows in memory at a time, lowered after running out of memory; None: as in its study.
        pack: Names of all trials trained together, in the order that the last bits depend on; None: the
            trial is trained alone.
    """

    name: str
    settings: dict[str, Any]
    seed: int
    parent: str | None = None
    until: int | None = None
    micro_batch: int | None = None
    pack: list[str] | None = None

    @property
    def together(self) -> list[str]:
        """Names of the trials in its pack; its own name if it is trained alone."""
        return self.pack or [self.name]


class Point(NamedTuple):
    """An evaluation: the step, the objective and its standard error (NaN if unknown)."""

    step: int
    value: float
    error: float


class Outcome(NamedTuple):
    """How a trial ended.

    Attributes:
        status: "finished", "stopped" early, or "failed" with an error.
        time: Seconds since the epoch.
        seconds: Duration in the process that ended it.
        error: Type and message of the error.
        traceback: The whole traceback.
    """

    status: Literal["finished", "stopped", "failed"]
    time: float
    seconds: float
    error: str = ""
    traceback: str = ""


class Entry(NamedTuple):
    """A trial, its evaluations, and its outcome, which is None until the trial ends."""

    trial: Trial
    points: list[Point]
    outcome: Outcome | None

    @property
    def value(self) -> float:
        """The objective at the last evaluation; NaN without an evaluation or after a failure."""
        failed = self.outcome is not None and self.outcome.status == "failed"
        return self.points[-1].value if self.points and not failed else math.nan

    @property
    def error(self) -> float:
        """The standard error of the last evaluation; NaN if unknown."""
        return self.points[-1].error if self.points else math.nan

    def observation(self, sign: float) -> Observation:
        """The trial as a search sees it, with the objective times `sign`."""
        if self.outcome is None:
            return Observation(self.trial.settings)
        return Observation(self.trial.settings, sign * self.value, self.error)


class Journal:
    """The folder of a sweep.

    Example:
        >>> import tempfile
        >>> from fpatch.tune import Journal
        >>> from fpatch.tune.folder.journal import Point, Trial
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     journal = Journal.create(folder, "tiny", {})
        ...     journal.add(Trial("0000", {"optimizer.learning_rate": 0.1}, seed=7))
        ...     journal.add_point("0000", Point(step=100, value=0.75, error=0.02))
        ...     entry = journal.entry("0000")
        >>> entry.value, entry.error, entry.outcome
        (0.75, 0.02, None)
    """

    def __init__(self, folder: str | Path) -> None:
        """Refer to a folder, which may not exist yet."""
        check_kind("Journal(folder)", folder, (str, Path), "give the folder, such as journal.folder")
        self.folder = Path(folder)

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"Journal({str(self.folder)!r})"

    @staticmethod
    def create(root: str | Path, name: str, config: Mapping[str, Any]) -> "Journal":
        """Make `root/<time>-<name>-sweep/`.

        Raises:
            OSError: If the folder cannot be written.
        """
        journal = Journal(new_folder(Path(root).resolve(), f"{name}-sweep"))
        for part in ("journal", "trials"):
            (journal.folder / part).mkdir()
        journal.replace_config(config)
        return journal

    @staticmethod
    def open(folder: str | Path) -> "Journal":
        """Open the folder of an existing sweep.

        Raises:
            RunError: If the folder is no sweep, has another format, or holds a link that leads out of it; or
                if Python searches it for modules.
        """
        journal = Journal(folder)
        if "\0" in str(folder) or not (journal.folder / "sweep.json").exists():
            raise RunError(
                f"{folder} lacks sweep.json, so it is not the folder of a sweep; their names end in -sweep"
            )
        check_encodable(folder)
        check_links(journal.folder)
        for part in ("journal", "trials"):
            if not (journal.folder / part).is_dir():
                raise RunError(f"{folder} lacks the folder {part}; restore it, or start a new sweep")
        forbid_imports(journal.folder)
        if journal.config["format"] != FORMAT:
            raise RunError(
                f"{folder} must have format {FORMAT}, got {journal.config['format']!r} of fpatch "
                f"{journal.config['fpatch']}; this is {__version__}, so install that version"
            )
        return journal

    def replace_config(self, config: Mapping[str, Any]) -> None:
        """Write `sweep.json`; paths of the study are recorded relative to the folder."""
        facts = {"format": FORMAT, "fpatch": __version__, "folder": str(self.folder.resolve()), **config}
        if isinstance(facts.get("study"), Mapping):
            facts["study"] = to_relative(facts["study"], self.folder)
        write_atomic(self.folder / "sweep.json", _encode(facts))

    @property
    def config(self) -> dict[str, Any]:
        """The JSON values in `sweep.json`, with the paths of the files that are here."""
        config = _read_json(self.folder / "sweep.json")
        for key in ("study", "space", "sweep", "format", "fpatch"):
            value = config.get(key)
            if value is None or (key in ("study", "space", "sweep") and not isinstance(value, Mapping)):
                raise _broken(self.folder / "sweep.json", f"it lacks {key!r}")
        if not isinstance(config.get("folder"), str | None):
            raise _broken(self.folder / "sweep.json", f"'folder' must be text, got {shown(config['folder'])}")
        return config | {"study": self._here(config)}

    def _here(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recorded study with the paths of a folder that may have moved."""
        made_in = config.get("folder")
        study = Places(self.folder, made_in, None).config(config["study"], {})
        if made_in is None or not isinstance(log := study.get("log"), Mapping):
            return study
        was, now = Path(made_in).parent, self.folder.resolve().parent
        moved = {str(was): str(now), f"sqlite:///{was / 'mlflow.db'}": f"sqlite:///{now / 'mlflow.db'}"}
        return study | {"log": {n: moved.get(v, v) if isinstance(v, str) else v for n, v in log.items()}}

    def run_folder(self, name: str) -> Path:
        """The run folder of a trial."""
        return self.folder / "trials" / name

    def add(self, trial: Trial) -> None:
        """Write a trial, before it starts."""
        write_atomic(self._path(trial.name, "json"), _encode(trial._asdict()))

    def add_point(self, name: str, point: Point) -> None:
        """Append an evaluation."""
        line = json.dumps([point.step, repr(float(point.value)), repr(float(point.error))])
        file = AppendFile(self._path(name, "points.jsonl"))
        file.write(f"\n{line}\n".encode())  # a line of its own, whatever a kill left before it
        file.close()

    def add_outcome(self, name: str, outcome: Outcome) -> None:
        """Write how a trial ended."""
        write_atomic(self._path(name, "outcome.json"), _encode(outcome._asdict()))

    def stop(self, name: str) -> None:
        """Request that a trial stops after its last evaluation."""
        write_atomic(self._path(name, "stop"), b"")

    def is_stopped(self, name: str) -> bool:
        """Return whether `stop` was called for a trial."""
        return self._path(name, "stop").exists()

    def names(self) -> list[str]:
        """Names of all trials, in order."""
        paths = (self.folder / "journal").glob("*.json")
        return sorted((path.stem for path in paths if _NAME.fullmatch(path.stem)), key=int)

    def entry(self, name: str) -> Entry:
        """Read a trial, its evaluations and its outcome.

        Raises:
            RunError: If the trial has another name than its file, or names one that no sweep gives.
        """
        path = self._path(name, "json")
        trial = _read_record(Trial, path)
        if trial.name != name or not all(
            _NAME.fullmatch(str(n)) for n in (*trial.together, trial.parent or name)
        ):
            raise RunError(f"{path}: its names must be numbers such as {name}; restore it")
        points: dict[int, Point] = {}  # a resumed trial evaluates some steps again: the last line wins
        with suppress(FileNotFoundError):
            for line in self._lines(name):
                if not _CUT.fullmatch(line):
                    point = _read_point(self._path(name, "points.jsonl"), line)
                    points[point.step] = point
        outcome = None
        with suppress(FileNotFoundError):
            outcome = _read_record(Outcome, self._path(name, "outcome.json"))
        return Entry(trial, [points[step] for step in sorted(points)], outcome)

    def entries(self) -> list[Entry]:
        """Read all trials, in order."""
        return [self.entry(name) for name in self.names()]

    def _lines(self, name: str) -> list[str]:
        """Read the lines of the evaluations of a trial."""
        path = self._path(name, "points.jsonl")
        try:
            return read_text(path).splitlines(keepends=True)
        except ValueError as error:
            raise _broken(path, str(error).removeprefix(f"{path}: ")) from error

    @property
    def is_locked(self) -> bool:
        """True if a process runs the sweep now."""
        return is_held(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the sweep for one process.

        Raises:
            LockedError: If another process holds the lock.
            RunError: If the folder holds a link, through which a write could leave it.
        """
        with lock(self.folder, LockedError, "run"):
            yield

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / "journal" / f"{name}.{suffix}"


def _broken(path: Path, what: str) -> RunError:
    return RunError(f"{path} is broken ({what}); restore it, or start a new sweep")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        raise _broken(path, str(error).removeprefix(f"{path}: ")) from error
    if not isinstance(value, dict):
        raise _broken(path, f"it must be an object, got {shown(value)}")
    return value


def _read_record(kind: Any, path: Path) -> Any:
    """Read a named tuple, checked against its types."""
    values, hints = _read_json(path), get_type_hints(kind)
    try:
        for name in values:
            if name not in hints:
                raise ValueError(f"unknown key {name!r}; {nearest(name, hints)}")
        return kind(**{name: decode(hints[name], value, name) for name, value in values.items()})
    except TypeError as error:
        raise _broken(path, f"it must hold {', '.join(hints)}") from error
    except ValueError as error:
        raise _broken(path, str(error)) from error


def _read_point(path: Path, line: str) -> Point:
    """Read an evaluation; a value that is not finite is none."""
    try:
        step, value, error = parse_json(line)
        found = (float(decode(str, text, name)) for text, name in ((value, "value"), (error, "error")))
        point = Point(decode(int, step, "step"), *(x if math.isfinite(x) else math.nan for x in found))
        if point.step < 0 or point.error < 0:
            raise ValueError("no evaluation has such a step or error")
        return point
    except (ValueError, TypeError) as error:
        raise _broken(path, f'a line must be [step, "value", "error"], got {line.strip()!r:.80}') from error


def _encode(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
