"""Sweeps of the tiny study in one process, and on Ray by the command line."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from study_fixture import make_study, parameters, read_records

from fpatch import tune
from fpatch.core.schema import decode
from fpatch.graph.stage import define, deterministic
from fpatch.runs.folder import Run
from fpatch.study.config import load_study
from fpatch.tune import Sweep, parse_space
from fpatch.tune.folder.journal import Journal
from fpatch.tune.plan import Plan, check_plan
from fpatch.tune.trials.dispatcher import Dispatcher
from fpatch.tune.trials.pack import run_trials

RATES = {"optimizer.learning_rate": (0.01, 0.3, "log")}


def make_plan(folder: Path, space=None, **settings) -> Plan:
    """A plan for the tiny study, measured once per photograph, in whose folder the sweep will be."""
    study = load_study(make_study(folder, **{"num_draws": 1} | settings.pop("study", {})))
    sweep = decode(Sweep, {"num_trials": 3, "search": "random", **settings}, "sweep")
    return Plan(study, parse_space(space or RATES), sweep)


def begin(plan: Plan) -> Journal:
    check_plan(plan)
    return Journal.create(plan.study.log.runs, plan.study.name, plan.config)


def work(journal: Journal, plan: Plan, notify=lambda name: None, steps: int = 10**9, pack: int = 1) -> None:
    """What Ray does, in this process: evaluations in turn over the trials that run; then as if killed."""
    dispatcher = Dispatcher(journal, plan, notify, pack)
    running = {}
    while True:
        while (name := dispatcher.take()) is not None:
            running[name] = run_trials(journal.folder, name)
        if not running:
            assert dispatcher.exhausted
            return
        for name, news in list(running.items()):
            if steps == 0:
                return
            steps -= 1
            evaluated = next(news, None)
            if evaluated is None:
                del running[name]
                dispatcher.handle_end(name)
            else:
                dispatcher.handle_evaluation(evaluated[0])


@dataclass(frozen=True)
class Touchy:
    """Raise where the weight of vanishing is more than this; run out of memory with more rows than that."""

    brightness: float = 9.0
    rows: int = 99


def apply_touchy(config, params, sample, values):
    if len(values["image"]) > config.rows:
        raise torch.OutOfMemoryError("no memory for so many rows")
    if config.brightness < 0.5 and params["side"].mean() != 0 and len(values["image"]) == 4:
        raise RuntimeError("too dark to see")
    return {"touchy": 0.0 * values["image"].mean((1, 2, 3))}


touchy = define(
    "touchy", Touchy, deterministic, apply_touchy, reads=("image",), writes=("touchy",), role="loss"
)


def touchy_plan(folder: Path, **settings) -> Plan:
    plan = make_plan(folder, **settings)
    path = folder / "study.toml"
    text = path.read_text().replace(
        "[pipeline.vanish]", '[pipeline.touchy]\nstage = "sweeps:touchy"\n[pipeline.vanish]'
    )
    path.write_text(text)
    return plan._replace(study=load_study(path))


def sweep_file(folder: Path, sweep: str = 'num_trials = 2\nsearch = "random"', **settings) -> Path:
    """A study with a sweep, each of whose trials is trained by itself unless `pack` is given."""
    path = make_study(folder, **{"num_draws": 1} | settings)
    if "pack = " not in sweep:
        sweep += "\npack = 1"
    path.write_text(
        f'{path.read_text()}\n[space]\noptimizer.learning_rate = {{low = 0.01, high = 0.3, scale = "log"}}\n'
        f"[sweep]\n{sweep}\n"
    )
    return path


LONG = {"num_steps": 60, "every": 10}
"""Long enough to be killed in."""


def the_sweep(folder: Path) -> Journal:
    (found,) = (folder / "runs").glob("*-sweep")
    return Journal(found)


def wait_until(holds: Callable[[], bool], process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained_here(folder: Path, settings: dict, sweep: str, pack: int = 1) -> Journal:
    """The same sweep in this process, without Ray."""
    plan = tune.load_plan(sweep_file(folder, sweep, **settings))
    journal = Journal.create(plan.study.log.runs, plan.study.name, plan.config)
    work(journal, plan, pack=pack)
    return journal


def assert_same(journal: Journal, whole: Journal, num_steps: int) -> None:
    """Every trial has the settings and the bits of an undisturbed sweep, and each step once."""
    assert journal.names() == whole.names()
    for name in whole.names():
        entry, expected = journal.entry(name), whole.entry(name)
        assert entry.outcome is not None
        assert entry.outcome.status == "finished", entry.outcome.traceback
        assert entry.trial == expected.trial
        assert [p[:2] for p in entry.points] == [p[:2] for p in expected.points]
        run = Run(journal.run_folder(name))
        assert parameters(run) == parameters(Run(whole.run_folder(name)))
        steps = [r["step"] for r in read_records(run.folder) if "train/loss" in r["values"]]
        assert steps == list(range(1, num_steps + 1))


CALLS: list[int] = []


@dataclass(frozen=True)
class Weak:
    """Raise in the second of several processes, at its third step."""


def apply_weak(config, params, sample, values):
    CALLS.append(len(values["image"]))
    if dist.is_initialized() and dist.get_rank() == 1 and len(CALLS) == 3:
        raise RuntimeError("the second is too weak")
    return {"weak": 0.0 * values["image"].mean((1, 2, 3))}


weak = define("weak", Weak, deterministic, apply_weak, reads=("image",), writes=("weak",), role="loss")
