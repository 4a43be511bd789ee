"""The cost of the records of a run: their share of the time of training the study of the demo.

The study runs as usual, with TensorBoard and MLflow (a SQLite file) beside the log on disk, and with the log
on disk alone, in turn. A clock runs in the functions that record: the log (scalars of each step, images and
histograms of each evaluation, their sinks, the order to the disk before a checkpoint), the pictures (what the
stages show and the figure, computed for the log alone), the tables, and the checkpoints. The share is that of
the run from its first step on, evaluations included. What comes once, before that step, is told apart, in
seconds (`once_s`): MLflow is imported then, and with the first run of a folder makes its database.

    python benchmarks/records.py [--repeats 11] [--small]
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from harness import Options, Record, quartiles, read_options

from fpatch.demo.study import Size, write_study
from fpatch.demo.victim import TinyDetector, save_victim
from fpatch.demo.world.scenes import cached_scenes
from fpatch.log import Log
from fpatch.runs import figures, logging, training, validating
from fpatch.runs.folder import Run
from fpatch.study.config import load_study

FULL = Size({"train": 64, "validation": 32, "test": 2}, ((128, 128),), 0, 1, 150, ())
SMALL = Size({"train": 4, "validation": 2, "test": 2}, ((64, 64),), 0, 1, 3, ())

RECORDING: Mapping[str, list[tuple[Any, str]]] = {
    "log": [
        (logging, "open_study_log"),
        (training, "log_study"),
        *(
            (Log, name)
            for name in ("scalars", "images", "histograms", "artifacts", "flush", "commit", "close")
        ),
    ],
    "pictures": [(validating, "view_first_block"), (figures, "make_figure")],
    "tables": [(Run, "save_evaluation")],
    "checkpoints": [(Run, "save_checkpoint")],
}
"""The functions that record, by what they leave; of nested ones the outermost counts."""


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Seconds spent in each group of functions from the first step on; before it ("once"); the run's."""
    seconds = dict.fromkeys((*RECORDING, "once"), 0.0)
    running: list[str] = []
    begun: list[float] = []

    def first_step(info: Any) -> Any:
        if not begun:
            begun.append(time.perf_counter())
        return step_scalars(info)

    step_scalars = training.step_scalars

    def timed(group: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            running.append(group)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                running.pop()
                if not running:
                    seconds[group if begun else "once"] += time.perf_counter() - start

        return wrapper

    with ExitStack() as stack:
        for group, functions in RECORDING.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, timed(group, getattr(owner, name))))
        stack.enter_context(patch.object(training, "step_scalars", first_step))
        yield seconds
        seconds["run"] = time.perf_counter() - begun[0]


def measure(folder: Path, size: Size, options: Options, record: Record) -> None:
    """Train with everything and with the log on disk alone, in turn."""
    scenes = cached_scenes(folder, 0, size.splits, size.sizes_hw, workers=1)
    save_victim(folder / "victim.safetensors", TinyDetector(generator=torch.Generator().manual_seed(0)))
    config = write_study(folder, "records", scenes, folder / "victim.safetensors", size, True, 0)
    sinks = {"disk, TensorBoard, MLflow": {}, "disk": {"log.tensorboard": False, "log.mlflow": False}}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sinks}
    for _ in range(2 if options.small else 1 + options.repeats):
        for name, settings in sinks.items():
            loaded = load_study(config, settings)
            with clocked() as seconds:
                training.train(loaded)
            found[name].append(seconds)
    for name, runs in found.items():
        first, *kept = runs
        percent = {
            f"{group}_percent": quartiles([100 * run[group] / run["run"] for run in kept])
            for group in RECORDING
        }
        seconds = {n: quartiles([run[n] for run in kept]) for n in ("run", "once")}
        record.add(
            f"{size.num_steps} steps, {name}",
            run_s=seconds["run"],
            once_s=seconds["once"],
            once_first_s=first["once"],
            **percent,
        )


def main(argv: list[str] | None = None) -> None:
    """The study of the demo, on few images."""
    options = read_options(__doc__, argv)
    record = Record("records", options)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), SMALL if options.small else FULL, options, record)


if __name__ == "__main__":
    main()
