"""The folder of a sweep: all that it is and has found, in small files that are replaced whole or not at all.

    sweep.json                 the study, the space and how it is searched
    journal/0003.json          a trial: its settings and its seed, written before it starts
    journal/0003.points.jsonl  its evaluations, each written before the state that led to it is saved
    journal/0003.stop          that it is not worth more steps
    journal/0003.outcome.json  how it ended
    trials/0003/               its run folder
    trials.csv trials.parquet figures/ tensorboard/    made from these

Whoever reads it, after a kill at any moment too, knows what is left to do: there is no other state.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fpatch.core.files import write_atomic
from fpatch.core.version import __version__
from fpatch.runs.locks import RunError, lock, new_folder
from fpatch.tune.search.proposers import Observation

FORMAT = 1
"""Version of the layout; a reader refuses another one."""


class Trial(NamedTuple):
    """What is tried.

    Attributes:
        name: Its number with leading zeros.
        settings: Varied values by dotted name.
        seed: Of the study.
        parent: The trial whose last state it starts with; None: the study's own beginning.
        until: Updates after which it ends; None: those of the study.
        micro_batch: Rows in memory at a time, after running out of it; None: those of the study.
        pack: Names of the trials that are trained together, this one among them, in their order, on which
            the last bits depend; None: it is trained alone.
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
        """Names of the trials that are trained with this one; its own, if it is trained alone."""
        return self.pack or [self.name]


class Point(NamedTuple):
    """An evaluation: the step, the objective and its standard error (NaN if that is not known)."""

    step: int
    value: float
    error: float


class Outcome(NamedTuple):
    """How a trial ended.

    Attributes:
        status: "finished"; "stopped" for others being better; "failed" by an error.
        time: Seconds since the epoch.
        seconds: What it took in the process that ended it.
        error: The last sentence of the error.
        traceback: All of it.
    """

    status: Literal["finished", "stopped", "failed"]
    time: float
    seconds: float
    error: str = ""
    traceback: str = ""


class Entry(NamedTuple):
    """A trial and what is known of it; `outcome` is None while it is not done."""

    trial: Trial
    points: list[Point]
    outcome: Outcome | None

    @property
    def value(self) -> float:
        """The objective at the last evaluation; NaN for a trial without one, or that failed."""
        failed = self.outcome is not None and self.outcome.status == "failed"
        return self.points[-1].value if self.points and not failed else math.nan

    @property
    def error(self) -> float:
        """The standard error of the last evaluation; NaN where that is not known."""
        return self.points[-1].error if self.points else math.nan

    def seen(self, sign: float) -> Observation:
        """What a search may know: the objective times `sign`."""
        if self.outcome is None:
            return Observation(self.trial.settings)
        return Observation(self.trial.settings, sign * self.value, self.error)


class Journal:
    """The folder of a sweep."""

    def __init__(self, folder: str | Path) -> None:
        """Refer to the folder of a sweep, which need not exist yet."""
        self.folder = Path(folder)

    def __repr__(self) -> str:
        """As it is opened."""
        return f"Journal({str(self.folder)!r})"

    @staticmethod
    def create(root: str | Path, name: str, config: Mapping[str, Any]) -> "Journal":
        """Make `root/<time>-<name>-sweep/`.

        Raises:
            OSError: If it cannot be written.
        """
        journal = Journal(new_folder(Path(root).resolve(), f"{name}-sweep"))
        for part in ("journal", "trials"):
            (journal.folder / part).mkdir()
        journal.replace_config(config)
        return journal

    @staticmethod
    def open(folder: str | Path) -> "Journal":
        """A sweep that exists.

        Raises:
            RunError: If it is none, or made by another version.
        """
        journal = Journal(folder)
        if not (journal.folder / "sweep.json").is_file():
            raise RunError(f"{folder} lacks sweep.json: it is no folder of a sweep; sweeps end in -sweep")
        if journal.config["format"] != FORMAT:
            raise RunError(
                f"{folder} was made by fpatch {journal.config['fpatch']}, in format "
                f"{journal.config['format']!r}; this is {__version__}, which reads format {FORMAT}"
            )
        return journal

    def replace_config(self, config: Mapping[str, Any]) -> None:
        """Write `sweep.json`."""
        facts = {"format": FORMAT, "fpatch": __version__, **config}
        write_atomic(self.folder / "sweep.json", _encode(facts))

    @property
    def config(self) -> dict[str, Any]:
        """What `create` was given."""
        path = self.folder / "sweep.json"
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise RunError(f"{path} is broken ({error}); restore it, or start the sweep again") from error

    def run_folder(self, name: str) -> Path:
        """Where a trial is trained."""
        return self.folder / "trials" / name

    def add(self, trial: Trial) -> None:
        """Note a trial before it starts."""
        write_atomic(self._path(trial.name, "json"), _encode(trial._asdict()))

    def add_point(self, name: str, point: Point) -> None:
        """Note an evaluation."""
        line = json.dumps([point.step, repr(float(point.value)), repr(float(point.error))])
        with self._path(name, "points.jsonl").open("a") as file:
            file.write(f"\n{line}\n")  # a line of its own, whatever a kill left before it

    def add_outcome(self, name: str, outcome: Outcome) -> None:
        """Note how a trial ended."""
        write_atomic(self._path(name, "outcome.json"), _encode(outcome._asdict()))

    def stop(self, name: str) -> None:
        """Tell a trial to end after its present evaluation."""
        write_atomic(self._path(name, "stop"), b"")

    def is_stopped(self, name: str) -> bool:
        """Whether a trial was told to end."""
        return self._path(name, "stop").exists()

    def names(self) -> list[str]:
        """Of all trials, in their order."""
        paths = (self.folder / "journal").glob("*.json")
        return sorted((path.stem for path in paths if path.stem.isdigit()), key=int)

    def entry(self, name: str) -> Entry:
        """What is known of a trial."""
        trial = Trial(**json.loads(self._path(name, "json").read_text()))
        points: dict[int, Point] = {}  # what a resumed trial evaluated once more replaces what it was
        with suppress(FileNotFoundError):
            for line in self._path(name, "points.jsonl").read_text().splitlines(keepends=True):
                if line.endswith("]\n"):  # or a kill tore it
                    step, value, error = json.loads(line)
                    points[step] = Point(step, float(value), float(error))
        outcome = None
        with suppress(FileNotFoundError):
            outcome = Outcome(**json.loads(self._path(name, "outcome.json").read_text()))
        return Entry(trial, [points[step] for step in sorted(points)], outcome)

    def entries(self) -> list[Entry]:
        """What is known of all trials, in their order."""
        return [self.entry(name) for name in self.names()]

    @property
    def is_held(self) -> bool:
        """Whether a driver runs it now."""
        try:
            with self.locked():
                return False
        except RunError:
            return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep for one driver.

        Raises:
            RunError: If another process holds it.
        """
        with lock(self.folder, RunError, "run"):
            yield

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / "journal" / f"{name}.{suffix}"


def _encode(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
