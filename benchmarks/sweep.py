"""Trials per minute: one process per trial, one process for all of them in turn, and packed in one step.

The trials are short runs of the demo's study against an untrained detector, which differ in seed and learning
rate; each leaves its run folder, log and checkpoints. A process takes one after another what it is given, on
one thread, and the times hold its start, as when a sweep has one place. Ray is not in them.

    python benchmarks/sweep.py [--repeats 3] [--small]
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import Options, Record, interleave, quartiles, read_options

from fpatch.demo.study import Size, write_study
from fpatch.demo.victim import TinyDetector, save_victim
from fpatch.demo.world.scenes import write_scenes
from fpatch.study.config import load_study
from fpatch.tune import Journal, parse_space
from fpatch.tune.plan import Plan
from fpatch.tune.settings import Sweep
from fpatch.tune.trials.dispatcher import Dispatcher
from fpatch.tune.trials.pack import run_trials

WORKLOADS = [(8, 96, 20, 4), (8, 96, 100, 4)]
"""Trials, side of the images, updates of each trial, and rows of an update."""

PROCESS = """
import sys
from fpatch.tune.trials.pack import run_trials

for name in sys.argv[2:]:
    list(run_trials(sys.argv[1], name))
"""


def make_plan(folder: Path, num_trials: int, side: int, num_steps: int, rows: int) -> Plan:
    """The sweep, its images and its victim, in a folder."""
    splits = {"train": 32, "validation": 16, "test": 2}
    scenes = write_scenes(folder / "scenes", 0, splits, ((side, side),), workers=1)
    save_victim(folder / "victim.safetensors", TinyDetector(generator=torch.Generator().manual_seed(0)))
    size = Size(splits, ((side, side),), 0, 1, 3 * num_steps, ())
    path = write_study(folder / "runs", "trial", scenes, folder / "victim.safetensors", size, False, 0)
    study = load_study(
        path, {"train.batch_size": rows, "train.num_steps": num_steps, "evaluate.every": num_steps}
    )
    space = parse_space({"optimizer.learning_rate": (0.02, 0.2, "log")})
    return Plan(study, space, Sweep(num_trials=num_trials, search="random"))


def begin(plan: Plan, pack: int) -> tuple[Journal, list[str]]:
    """A new sweep whose trials are all noted, and the names of those that lead a pack."""
    journal = Journal.create(plan.study.log.runs, plan.study.name, plan.config)
    dispatcher = Dispatcher(journal, plan, lambda name: None, pack)
    return journal, [name for name in iter(dispatcher.take, None) if name is not None]


def run_all(journal: Journal, names: Sequence[str], options: Options) -> None:
    """Train in one process: a new one, except in the short form."""
    if options.small:
        for name in names:
            list(run_trials(journal.folder, name))
    else:
        command = [sys.executable, "-c", PROCESS, str(journal.folder), *names]
        subprocess.run(command, check=True)
    for entry in journal.entries():
        if entry.trial.name in names:
            assert entry.outcome is not None
            assert entry.outcome.status == "finished", entry.outcome.traceback


def measure(num_trials: int, side: int, num_steps: int, rows: int, options: Options, record: Record) -> None:
    """One kind of trial."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), num_trials, side, num_steps, rows)

        def process_each() -> None:
            journal, names = begin(plan, 1)
            for name in names:
                run_all(journal, [name], options)

        def process_for_all(pack: int) -> Callable[[], None]:
            def run() -> None:
                journal, names = begin(plan, pack)
                run_all(journal, names, options)

            return run

        ways = {
            "process each": process_each,
            "one process": process_for_all(1),
            "packed": process_for_all(num_trials),
        }
        times = interleave(ways, options.repeats, warmup=0)
    name = f"{num_trials} trials of {num_steps} steps, {rows} x {side} x {side}"
    per_minute = {n: quartiles([60 * num_trials / s for s in times.seconds[n]]) for n in ways}
    record.add(
        name,
        **{f"{n} per minute": value for n, value in per_minute.items()},
        **{f"{n} / packed": times.ratio(n, "packed") for n in ways if n != "packed"},
    )


def main(argv: list[str] | None = None) -> None:
    """Every kind of trial."""
    options = read_options(__doc__, argv)
    record = Record("sweep", options)
    for workload in [(2, 64, 2, 2)] if options.small else WORKLOADS:
        measure(*workload, options, record)


if __name__ == "__main__":
    main()
