"""Run folders: everything that a run leaves, in formats that hold no code (JSON, safetensors, Parquet, PNG).

    config.json  environment.json  records.jsonl  checkpoints/{last,best,step-...}.safetensors
    tables/<split>[-<step>].{parquet,csv,objects.parquet,objects.csv,patches.safetensors,json}
    patch/<name>.png  figures/  images/
    tensorboard/  profile/

Every file is replaced whole or not at all, so that a run killed at any moment can be resumed and replayed.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpatch.core.version import __version__
from fpatch.evaluation.evaluation import Evaluation
from fpatch.log.values import to_png
from fpatch.optim.step import TrainState
from fpatch.runs import checkpoints, files, tables
from fpatch.runs.files import FORMAT
from fpatch.runs.locks import LockedError, RunError, lock, new_folder
from fpatch.runtime.execution import Execution


class Run:
    """A run folder."""

    def __init__(self, folder: str | Path) -> None:
        """Refer to a run folder, which need not exist yet."""
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @staticmethod
    def create(
        root: str | Path, name: str, config: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> "Run":
        """Make `root/<time>-<name>/` with its config and environment.

        Raises:
            OSError: If it cannot be written; nothing is left of it.
        """
        return Run.create_at(new_folder(Path(root), name), config, environment)

    @staticmethod
    def create_at(folder: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> "Run":
        """Make a run folder of this name, or complete one whose start was cut off.

        Raises:
            OSError: If it cannot be written; nothing is left of it.
        """
        run = Run(folder)
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            run.write_json("environment.json", {"format": FORMAT, "fpatch": __version__, **environment})
            run.write_json("config.json", config)
        except OSError:
            shutil.rmtree(run.folder)
            raise
        return run

    @staticmethod
    def open(folder: str | Path) -> "Run":
        """A run folder that exists.

        Raises:
            RunError: If it is no run folder, incomplete, or made by another version.
        """
        run = Run(folder)
        if not run.folder.is_dir():
            raise RunError(f"{folder}: no such run folder; runs are listed by `ls runs/`")
        for name in ("environment.json", "config.json"):
            if not (run.folder / name).is_file():
                inside = sorted(p.parent.name for p in run.folder.glob("*/environment.json"))
                hint = f"give one of the runs in it, e.g. {inside[-1]}" if inside else "train again"
                raise RunError(
                    f"{folder} lacks {name}: it is no run folder, or its start was cut off; {hint}"
                )
        environment = run.read_json("environment.json", "format", "fpatch", "execution")
        if environment["format"] != FORMAT:
            raise RunError(
                f"{folder} was made by fpatch {environment['fpatch']}, in format {environment['format']!r}; "
                f"this is {__version__}, which reads format {FORMAT}: pip install "
                f"fpatch=={environment['fpatch']} to use it, or train again"
            )
        return run

    @property
    def execution(self) -> Execution:
        """How it was trained."""
        return files.read_execution(self.folder / "environment.json")

    @property
    def processes(self) -> int:
        """How many began it together."""
        return self.read_json("environment.json").get("processes", 1)

    def stretches(self) -> list[int]:
        """How many made its updates, one number after the other."""
        return [self.processes, *(r["processes"] for r in self._resumed())]

    def processes_at(self, update: int) -> int:
        """How many made an update together."""
        sizes = [r["processes"] for r in self._resumed() if r["step"] < update]
        return sizes[-1] if sizes else self.processes

    def note_processes(self, step: int, processes: int) -> None:
        """Record how many go on from a step, where those before were another number."""
        resumed = [r for r in self._resumed() if r["step"] < step]  # what came later is undone
        if processes != (resumed[-1]["processes"] if resumed else self.processes):
            resumed.append({"step": step, "processes": processes})
        if resumed != self._resumed():
            self.write_json("environment.json", self.read_json("environment.json") | {"resumed": resumed})

    def _resumed(self) -> list[dict[str, int]]:
        """Where another number of processes went on, in the order of steps."""
        return self.read_json("environment.json").get("resumed", [])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one writing process, and clear away what a killed one left half-written.

        Raises:
            LockedError: If another process holds it.
        """
        with lock(self.folder, LockedError, "written"):
            for path in self.folder.rglob("*.tmp"):
                path.unlink()
            yield

    def path(self, name: str) -> Path:
        """A path in the folder whose parents exist."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # -- JSON -----------------------------------------------------------------------------------------------

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON atomically; NaN becomes null."""
        files.write_json(self.folder / name, value)

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        """Read a JSON object that must have these keys.

        Raises:
            RunError: If the file is no JSON, or lacks a key.
        """
        return files.read_json(self.folder / name, *keys)

    def write_image(self, name: str, image: Tensor) -> None:
        """Write an image [c, h, w] of floats in 0..1 as PNG, atomically."""
        files.write_file(self.folder / name, to_png(name, image))

    def write_patches(self, patches: Mapping[str, Any]) -> None:
        """Write every patch as `patch/<name>.png`."""
        for entries in patches.values():
            for name, patch in entries.items():
                self.write_image(f"patch/{name}.png", patch if patch.ndim == 3 else patch[0])

    # -- checkpoints ---------------------------------------------------------------------------------------

    def save_checkpoint(self, name: str, state: TrainState, **facts: Any) -> None:
        """Write a state as one file of tensors; `facts` (JSON) and the step stand in its header."""
        checkpoints.save_checkpoint(self.folder, name, state, facts)

    def load_checkpoint(self, name: str, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Load a state with the structure of `like`, on its devices, and its facts.

        Raises:
            RunError: If it is missing, broken, or of another structure (with the first difference).
        """
        return checkpoints.load_checkpoint(self.folder, name, like)

    def checkpoint_step(self, name: str) -> int:
        """The number of updates made when a checkpoint was written.

        Raises:
            RunError: If it is missing or broken.
        """
        return checkpoints.checkpoint_step(self.folder, name)

    def load_params(self, name: str = "best", patches: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Load the patch parameters of a checkpoint alone, to begin another training with.

        Args:
            name: Of the checkpoint.
            patches: Names of those to load; None: all.

        Returns:
            Tensors on the host, by patch.

        Raises:
            RunError: If the checkpoint is missing or broken, or lacks one of the patches.
        """
        return checkpoints.load_params(self.folder, name, patches)

    def checkpoint_steps(self) -> list[int]:
        """The steps of the numbered checkpoints, in order."""
        return checkpoints.checkpoint_steps(self.folder)

    def has_checkpoint(self, name: str) -> bool:
        """Whether there is a checkpoint of that name."""
        return checkpoints.has_checkpoint(self.folder, name)

    # -- tables --------------------------------------------------------------------------------------------

    def save_evaluation(self, name: str, evaluation: Evaluation, execution: Execution) -> None:
        """Write the tables (Parquet and CSV), the patches shown and the execution, all or nothing."""
        tables.save_evaluation(self.folder, name, evaluation, execution)

    def load_table(self, name: str) -> dict[str, np.ndarray]:
        """Load the columns of a table.

        Raises:
            RunError: If there is none of that name, or it is broken.
        """
        return tables.load_table(self.folder, name)

    def load_objects(self, name: str) -> dict[str, np.ndarray]:
        """Load the columns of a table's objects; none if no metric wrote any.

        Raises:
            RunError: If there is no table of that name, or its objects are broken.
        """
        return tables.load_objects(self.folder, name)

    def load_conditions(self, name: str) -> dict[str, dict[str, Any]]:
        """Load the patches that an evaluation showed, by condition."""
        return tables.load_conditions(self.folder, name)

    def load_execution(self, name: str) -> Execution:
        """Load the execution of an evaluation."""
        return tables.load_execution(self.folder, name)


def describe_environment(seed: int, execution: Execution) -> dict[str, Any]:
    """What a run folder records about where it was made."""
    return {
        "execution": execution._asdict(),
        "seed": seed,
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
