"""Run folders: all files of a run, in formats without code (JSON, safetensors, Parquet, PNG).

    config.json  environment.json  data.json  records.jsonl  records.json
    checkpoints/{last,best,step-...}.safetensors
    tables/<split>[-<step>].{parquet,csv,objects.parquet,objects.csv,patches.safetensors,json}
    patch/<name>.png  figures/  images/
    tensorboard/  profile/

Every file is replaced atomically, so that a run killed at any moment can be resumed and replayed.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpatch.core.checks import check_kind
from fpatch.core.files import digest
from fpatch.core.inputs import check_encodable
from fpatch.core.names import typed
from fpatch.core.version import __version__
from fpatch.evaluation.evaluation import Evaluation
from fpatch.log.values import to_json, to_png
from fpatch.optim.step import TrainState
from fpatch.runs import checkpoints, files, tables
from fpatch.runs.files import FORMAT
from fpatch.runs.locks import LockedError, RunError, check_links, lock, new_folder
from fpatch.runs.places import to_relative
from fpatch.runtime.execution import Execution

_WRITTEN = (".json", ".jsonl", ".safetensors", ".parquet", ".csv", ".png", ".gif", ".html")
"""Suffixes of the files that are written atomically; a temporary file of another one is the user's."""


class Run:
    """A run folder: its paths, JSON files, checkpoints, tables and lock.

    Example:
        >>> import tempfile
        >>> from fpatch import Run
        >>> made = Run.create(tempfile.mkdtemp(), "tag", {"seed": 3}, {"execution": {}})
        >>> run = Run.open(made.folder)
        >>> run.read_json("config.json"), run.checkpoint_steps()
        ({'seed': 3}, [])
        >>> sorted(path.name for path in run.folder.iterdir())
        ['config.json', 'environment.json']
    """

    def __init__(self, folder: str | Path) -> None:
        """Refer to a run folder, which may not exist yet."""
        check_kind("Run(folder)", folder, (str, Path), "give the folder, such as run.folder")
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @staticmethod
    def create(
        root: str | Path,
        name: str,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        more: Mapping[str, bytes] | None = None,
    ) -> "Run":
        """Make `root/<time>-<name>/` with its config, its environment and further files.

        Paths in the config are recorded relative to the new folder, so that a project can be moved.

        Raises:
            OSError: If the folder cannot be written; nothing of it remains.
        """
        return Run.create_at(new_folder(Path(root), name), config, environment, more)

    @staticmethod
    def create_at(
        folder: str | Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        more: Mapping[str, bytes] | None = None,
    ) -> "Run":
        """Make a run folder of this name, or complete one that was killed at its start.

        Raises:
            OSError: If the folder cannot be written; no new file remains.
        """
        run = Run(folder)
        is_new = not run.folder.is_dir() or not any(run.folder.iterdir())
        run.folder.mkdir(parents=True, exist_ok=True)
        recorded = to_relative(config, run.folder)
        contents = {**(more or {}), "config.json": to_json(recorded)}  # which completes the folder, is last
        facts = {"format": FORMAT, "fpatch": __version__, "folder": str(run.folder.resolve()), **environment}
        written = ["environment.json", *contents]
        try:
            digests = {name: digest(data) for name, data in contents.items()}
            files.write_sealed(run.folder / "environment.json", facts | {"files": digests})
            for name, data in contents.items():
                files.write_file(run.folder / name, data)
        except OSError:
            for name in written:
                (run.folder / name).unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):
                    run.folder.rmdir()
            raise
        return run

    @staticmethod
    def open(folder: str | Path) -> "Run":
        """Open a run folder.

        Raises:
            RunError: If the folder is missing, incomplete, has the format of another version, or holds a
                link that leads out of it.
        """
        run = Run(folder)
        check_encodable(folder)
        if not run.folder.is_dir():
            if run.folder.suffix == ".toml":
                raise RunError(
                    f"{folder}: it is a study, not a run folder; train it first: fpatch train {typed(folder)}"
                )
            what = "it is a file, not a run folder" if run.folder.exists() else "no such run folder"
            raise RunError(f"{folder}: {what}; runs are listed by `ls runs/`")
        check_links(run.folder)
        for name in ("environment.json", "config.json"):
            if not (run.folder / name).is_file():
                inside = sorted(p.parent.name for p in run.folder.glob("*/environment.json"))
                hint = f"give one of the runs in it, e.g. {inside[-1]}" if inside else "train again"
                is_part = (run.folder.parent / "environment.json").is_file()
                hint = f"give its parent, {Path(folder).parent}" if is_part else hint
                raise RunError(
                    f"{folder} lacks {name}: it is no run folder, or was killed at its start; {hint}"
                )
        environment = run.read_json("environment.json", "format", "fpatch", "execution")
        if environment["format"] != FORMAT:
            raise RunError(
                f"{folder} was made by fpatch {environment['fpatch']}, in format {environment['format']!r}; "
                f"this is {__version__}, which reads format {FORMAT}; install fpatch from the source of its "
                f"tag v{environment['fpatch']} to use it, or train again"
            )
        return run

    @property
    def execution(self) -> Execution:
        """The execution in which the run started."""
        return files.read_execution(self.folder / "environment.json")

    @property
    def processes(self) -> int:
        """The number of processes that started the run."""
        return self.read_json("environment.json").get("processes", 1)

    def stretches(self) -> list[int]:
        """Return the numbers of processes that made its updates, in order."""
        return [self.processes, *(r["processes"] for r in self._resumed())]

    def processes_at(self, update: int) -> int:
        """Return the number of processes that made an update."""
        sizes = [r["processes"] for r in self._resumed() if r["step"] < update]
        return sizes[-1] if sizes else self.processes

    def note_processes(self, step: int, processes: int) -> None:
        """Record the number of processes from a step on, if it differs from that before."""
        resumed = [r for r in self._resumed() if r["step"] < step]  # later updates are made again
        if processes != (resumed[-1]["processes"] if resumed else self.processes):
            resumed.append({"step": step, "processes": processes})
        if resumed != self._resumed():
            self._write_environment(resumed=resumed)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace the config, and its digest in the environment."""
        data = to_json(config)
        recorded = self.read_json("environment.json").get("files", {})
        self._write_environment(files=recorded | {"config.json": digest(data)})
        files.write_file(self.folder / "config.json", data)

    def _write_environment(self, **changed: Any) -> None:
        facts = self.read_json("environment.json") | changed
        files.write_sealed(self.folder / "environment.json", facts)

    def _resumed(self) -> list[dict[str, int]]:
        """Return the changes of the number of processes, in the order of steps."""
        return self.read_json("environment.json").get("resumed", [])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for one writing process, and remove incomplete files of a killed one.

        Raises:
            LockedError: If another process holds the lock.
            RunError: If the folder holds a link, through which a write could leave it.
        """
        with lock(self.folder, LockedError, "written"):
            for path in self.folder.rglob("*.tmp"):
                if path.with_suffix("").suffix in _WRITTEN:
                    path.unlink()
            yield

    def path(self, name: str) -> Path:
        """Return a path in the folder, whose parents are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # -- JSON -----------------------------------------------------------------------------------------------

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON atomically; NaN becomes null."""
        files.write_json(self.folder / name, value)

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        """Read a JSON object, and check that it has these keys.

        Raises:
            RunError: If the file is no JSON, or lacks a key.
        """
        return files.read_json(self.folder / name, *keys)

    def write_image(self, name: str, image: Tensor) -> None:
        """Write an image [c, h, w] of floats in 0..1 as PNG, atomically."""
        files.write_file(self.folder / name, to_png(name, image))

    def write_patches(self, patches: Mapping[str, Any]) -> list[str]:
        """Write every patch as `patch/<name>.png`; return the names of the files."""
        images = {
            f"patch/{name}.png": patch for entries in patches.values() for name, patch in entries.items()
        }
        for name, patch in images.items():
            self.write_image(name, patch if patch.ndim == 3 else patch[0])
        return list(images)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def save_checkpoint(self, name: str, state: TrainState, **facts: Any) -> None:
        """Write a state as one file of tensors, with `facts` (JSON) and the step in its header."""
        checkpoints.save_checkpoint(self.folder, name, state, facts)

    def load_checkpoint(self, name: str, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Load a state with the structure of `like`, on its devices, and its facts.

        Raises:
            RunError: If it is missing, broken, or of another structure (with the first difference).
        """
        return checkpoints.load_checkpoint(self.folder, name, like)

    def checkpoint_step(self, name: str) -> int:
        """Return the number of updates that led to a checkpoint.

        Raises:
            RunError: If it is missing or broken.
        """
        return checkpoints.checkpoint_step(self.folder, name)

    def checkpoint_facts(self, name: str) -> dict[str, Any]:
        """Return the facts of a checkpoint, such as `best_step`; none before the first validation.

        Raises:
            RunError: If it is missing or broken.
        """
        return checkpoints.checkpoint_facts(self.folder, name)

    def load_params(self, name: str = "best", patches: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Load only the parameters of a checkpoint, such as to start another training.

        Args:
            name: The name of the checkpoint.
            patches: The patches to load; None: all, and the weights and buffers of trained networks.

        Returns:
            Tensors on the host, by patch or `path/name`.

        Raises:
            RunError: If the checkpoint is missing or broken, or lacks one of the patches.
        """
        return checkpoints.load_params(self.folder, name, patches)

    def checkpoint_steps(self) -> list[int]:
        """Return the steps of the numbered checkpoints, in order."""
        return checkpoints.checkpoint_steps(self.folder)

    def has_checkpoint(self, name: str) -> bool:
        """Return whether a checkpoint exists."""
        return checkpoints.has_checkpoint(self.folder, name)

    # -- tables --------------------------------------------------------------------------------------------

    def save_evaluation(self, name: str, evaluation: Evaluation, execution: Execution, **facts: Any) -> None:
        """Write the tables (Parquet and CSV), the patches shown and their manifest, atomically."""
        tables.save_evaluation(self.folder, name, evaluation, execution, facts)

    def load_table(self, name: str) -> dict[str, np.ndarray]:
        """Load the columns of a table.

        Raises:
            RunError: If the table is missing or broken.
        """
        return tables.load_table(self.folder, name)

    def load_objects(self, name: str) -> dict[str, np.ndarray]:
        """Load the columns of a table's objects; none if no metric wrote any.

        Raises:
            RunError: If the table is missing, or its objects are broken.
        """
        return tables.load_objects(self.folder, name)

    def load_conditions(self, name: str) -> dict[str, dict[str, Any]]:
        """Load the patches that an evaluation showed, by condition."""
        return tables.load_conditions(self.folder, name)

    def load_settings(self, name: str) -> dict[str, Any]:
        """Load the settings of an evaluation that are not those of the run, by dotted name."""
        return tables.load_settings(self.folder, name)

    def load_execution(self, name: str) -> Execution:
        """Load the execution of an evaluation."""
        return tables.load_execution(self.folder, name)


def describe_environment(seed: int, execution: Execution) -> dict[str, Any]:
    """Return the facts about this process that a run folder records."""
    return {
        "execution": execution._asdict(),
        "seed": seed,
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
