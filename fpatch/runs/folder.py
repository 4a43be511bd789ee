"""Run folders: everything that a run leaves, in formats that hold no code (JSON, safetensors, Parquet, PNG).

    config.json  environment.json  records.jsonl  checkpoints/{last,best,step-...}.safetensors
    tables/<split>[-<step>].{parquet,csv,objects.parquet,objects.csv,patches.safetensors,json}
    patch/<name>.png  figures/  images/
    tensorboard/  profile/

Every file is replaced whole or not at all, so that a run killed at any moment can be resumed and replayed.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optree
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.files import write_atomic
from fpatch.core.version import __version__
from fpatch.evaluation.evaluation import Evaluation
from fpatch.log.values import to_json, to_png
from fpatch.optim.step import TrainState
from fpatch.runs.checkpoints import state_bytes, unshared
from fpatch.runs.locks import LockedError, RunError, lock, new_folder
from fpatch.runs.tables import read_table, write_table
from fpatch.runtime.execution import Execution

FORMAT = 1
"""Version of the layout of a run folder; a reader refuses another one."""


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
        return self._read_execution("environment.json")

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

    # -- JSON -----------------------------------------------------------------------------------------------

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON, atomically; NaN becomes null."""
        self._write(name, to_json(value))

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        """Read a JSON object that has these keys.

        Raises:
            RunError: If it is broken.
        """
        path = self.folder / name
        try:
            value = json.loads(path.read_text())
        except ValueError as error:
            raise RunError(f"{path} is broken ({error}); restore it, or train again") from error
        missing = [key for key in keys if not isinstance(value, dict) or key not in value]
        if missing:
            raise RunError(f"{path} is broken (it lacks {missing[0]!r}); restore it, or train again")
        return value

    def write_image(self, name: str, image: Tensor) -> None:
        """Write an image [c, h, w] of floats in 0..1 as PNG, atomically."""
        self._write(name, to_png(name, image))

    def write_patches(self, patches: Mapping[str, Any]) -> None:
        """Write every patch as `patch/<name>.png`."""
        for entries in patches.values():
            for name, patch in entries.items():
                self.write_image(f"patch/{name}.png", patch if patch.ndim == 3 else patch[0])

    # -- checkpoints ---------------------------------------------------------------------------------------

    def save_checkpoint(self, name: str, state: TrainState, **facts: Any) -> None:
        """Write a state as one file of tensors; `facts` (JSON) and the step stand in its header."""
        metadata = {"step": str(state.step), "format": str(FORMAT), "facts": json.dumps(facts)}
        self._write(f"checkpoints/{name}.safetensors", state_bytes(state, metadata))

    def load_checkpoint(self, name: str, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """A state with the structure of `like`, on its devices, and its facts.

        Raises:
            RunError: If it is missing, broken, or of another structure (with the first difference).
        """
        tensors, metadata = self._read_tensors(f"checkpoints/{name}.safetensors")
        leaves, tree = optree.tree_flatten(like.opt_state)
        expected = {f"params/{n}": v for n, v in like.params.items()} | {"key": like.key}
        expected |= {f"opt/{i}": leaf for i, leaf in enumerate(leaves)}
        for n, v in expected.items():
            found = None if n not in tensors else list(tensors[n].shape)
            if found != list(v.shape):
                raise RunError(
                    f"checkpoint {name!r} of {self.folder}: {n} has shape {found}, the config asks for "
                    f"{list(v.shape)}; resume with the config of the run"
                )
            tensors[n] = tensors[n].to(v.device)
        params = {n: tensors[f"params/{n}"] for n in like.params}
        opt_state: Any = optree.tree_unflatten(tree, [tensors[f"opt/{i}"] for i in range(len(leaves))])
        return TrainState(params, opt_state, int(metadata["step"]), tensors["key"]), json.loads(
            metadata["facts"]
        )

    def checkpoint_step(self, name: str) -> int:
        """Updates that had been made when a checkpoint was written.

        Raises:
            RunError: If it is missing or broken.
        """
        return int(self._read_tensors(f"checkpoints/{name}.safetensors")[1]["step"])

    def load_params(self, name: str = "best", patches: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The patch parameters of a checkpoint without the rest of its state, to begin another training with.

        Args:
            name: Of the checkpoint.
            patches: Names of those to load; None: all.

        Returns:
            Tensors on the host, by patch.

        Raises:
            RunError: If the checkpoint is missing or broken, or lacks one of the patches.
        """
        tensors, _ = self._read_tensors(f"checkpoints/{name}.safetensors")
        params = {n.removeprefix("params/"): t for n, t in tensors.items() if n.startswith("params/")}
        for patch in patches or ():
            if patch not in params:
                known = nearest(patch, params)
                raise RunError(f"checkpoint {name!r} of {self.folder} has no patch {patch!r}; {known}")
        return params if patches is None else {patch: params[patch] for patch in patches}

    def checkpoint_steps(self) -> list[int]:
        """Steps of the numbered checkpoints."""
        return sorted(int(p.stem[5:]) for p in (self.folder / "checkpoints").glob("step-*.safetensors"))

    def has_checkpoint(self, name: str) -> bool:
        """Whether there is a checkpoint of that name."""
        return (self.folder / f"checkpoints/{name}.safetensors").is_file()

    # -- tables --------------------------------------------------------------------------------------------

    def save_evaluation(self, name: str, evaluation: Evaluation, execution: Execution) -> None:
        """Write the tables (Parquet and CSV), the patches shown and the execution, all or nothing."""
        patches = {
            f"{condition}/{value}/{patch}": tensor
            for condition, patches in evaluation.conditions.items()
            for value, entries in patches.items()
            for patch, tensor in entries.items()
        }
        files = {
            **write_table("", evaluation.table),
            **(write_table("objects.", evaluation.objects) if evaluation.objects else {}),
            "patches.safetensors": save(unshared(patches)),
        }
        for suffix, data in files.items():  # a full disk is met here, while an older evaluation still stands
            self._write(f"tables/{name}.{suffix}.tmp", data)
        for stale in ("json", "objects.parquet", "objects.csv"):
            self.path(f"tables/{name}.{stale}").unlink(missing_ok=True)
        for suffix in files:
            path = self.folder / f"tables/{name}.{suffix}"
            path.with_name(f"{path.name}.tmp").replace(path)
        rows = len(evaluation.table["image_id"])
        facts = {"execution": execution._asdict(), "rows": rows, "patches": list(patches)}
        self.write_json(f"tables/{name}.json", facts)

    def load_table(self, name: str) -> dict[str, np.ndarray]:
        """The columns of a table.

        Raises:
            RunError: If there is none of that name, or it is broken.
        """
        return read_table(self._find_table(name))

    def load_objects(self, name: str) -> dict[str, np.ndarray]:
        """The columns of a table's objects; none if no metric wrote any.

        Raises:
            RunError: If there is no table of that name, or its objects are broken.
        """
        path = self._find_table(name).with_suffix(".objects.parquet")
        return read_table(path) if path.is_file() else {}

    def _find_table(self, name: str) -> Path:
        path = self.folder / f"tables/{name}.parquet"
        if not path.with_suffix(".json").is_file() or not path.is_file():
            tables = (self.folder / "tables").glob("*.parquet")
            known = [p.stem for p in tables if p.with_suffix(".json").is_file()]
            there = f"tables: {', '.join(sorted(known))}; " if known else ""
            raise RunError(
                f"{self.folder} has no table {name!r}; {there}`fpatch evaluate {self.folder}` makes 'test'"
            )
        return path

    def load_conditions(self, name: str) -> dict[str, dict[str, Any]]:
        """The patches that an evaluation showed, by condition."""
        tensors, _ = self._read_tensors(f"tables/{name}.patches.safetensors")
        conditions: dict[str, dict[str, Any]] = {}
        # the file sorts them by name, but the last bit of a sum over patches depends on their order
        for path in self.read_json(f"tables/{name}.json", "patches")["patches"]:
            condition, value, patch = path.split("/", 2)
            conditions.setdefault(condition, {}).setdefault(value, {})[patch] = tensors[path]
        return conditions

    def load_execution(self, name: str) -> Execution:
        """How an evaluation was run."""
        return self._read_execution(f"tables/{name}.json")

    def _read_execution(self, name: str) -> Execution:
        recorded = self.read_json(name, "execution")["execution"]
        try:
            return Execution(**recorded)
        except TypeError as error:
            what = "the execution is not as this version records it; train or evaluate again"
            raise RunError(f"{self.folder / name}: {what}") from error

    # -- the rest ------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one writing process, and clear away what a killed one left half-written.

        Raises:
            HeldError: If another process holds it.
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

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self.path(name), data)

    def _read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        path = self.folder / name
        if not path.is_file():
            known = [p.name.removesuffix(".safetensors") for p in path.parent.glob("*.safetensors")]
            there = ", ".join(sorted(known)) or "nothing"
            hint = f"; if the run was stopped: fpatch resume {self.folder}" if "last" in known else ""
            raise RunError(f"{self.folder} lacks {name}; there is: {there}{hint}")
        try:
            with safe_open(path, framework="pt") as file:
                return {n: file.get_tensor(n) for n in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RunError(
                f"{path} is broken ({error}); restore it, or put a copy of an older one in its place"
            ) from error


def describe_environment(seed: int, execution: Execution) -> dict[str, Any]:
    """What a run folder records about where it was made."""
    return {
        "execution": execution._asdict(),
        "seed": seed,
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
