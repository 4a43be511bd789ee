"""Sweeps of the tiny study: here in this process, trial by trial, and in `test_ray_driver.py` on Ray."""

import csv
import dataclasses
import json
import math
import re
import shutil
import socket
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from study_fixture import STEPS, parameters, read_records
from sweeps import RATES, begin, make_plan, sweep_file, touchy_plan, work

from fpatch import tune
from fpatch.cli.main import main
from fpatch.core.schema import decode
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.training import resume, train
from fpatch.study.config import load_study, vary
from fpatch.study.setup import set_up
from fpatch.tune import Sweep, parse_space
from fpatch.tune.folder.journal import Journal, Outcome, Point, Trial
from fpatch.tune.next_trial import next_trial, trial_seed
from fpatch.tune.output.sweep_log import SweepLog
from fpatch.tune.plan import check_plan, plan_from_config, trial_study
from fpatch.tune.trials.ray_cluster import num_concurrent
from fpatch.tune.trials.trial import run_trial


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of four trials; not to be written to."""
    plan = make_plan(tmp_path_factory.mktemp("swept"), num_trials=4, study={"tensorboard": True})
    journal = begin(plan)
    log = SweepLog(journal, plan, lambda *_: None)
    work(journal, plan, log.notify)
    log.close(finished=True)
    return plan, journal


# What stands in the folder


def test_a_trial_is_an_ordinary_run(swept):
    plan, journal = swept
    for entry in journal.entries():
        run = Run.open(journal.run_folder(entry.trial.name))
        config = run.read_json("config.json")
        assert config["optimizer"]["learning_rate"] == entry.trial.settings["optimizer.learning_rate"]
        assert config["seed"] == entry.trial.seed == trial_seed(plan.study.seed, entry.trial.name)
        assert entry.outcome.status == "finished"
        assert [p.step for p in entry.points] == [3, STEPS]
        logged = [r["values"] for r in read_records(run.folder) if "validation/success/patch" in r["values"]]
        assert [p.value for p in entry.points] == [v["validation/success/patch"] for v in logged]
    assert len({e.trial.seed for e in journal.entries()}) == 4
    main(["replay", str(journal.run_folder("0001")), "--table", "validation-00000006", "--verify"])


def test_a_trial_alone_gives_the_same_bits(swept, tmp_path):
    """From its exported study, by `fpatch train`, without the sweep."""
    _, journal = swept
    path = tmp_path / "alone.toml"
    path.write_text(tune.export_trial(journal.folder, "0002"))
    run = train(load_study(path, {"log.runs": str(tmp_path / "runs")}))
    assert parameters(run) == parameters(Run(journal.run_folder("0002")))
    assert parameters(run) != parameters(Run(journal.run_folder("0001")))


def test_the_table_of_trials(swept):
    _, journal = swept
    table = pyarrow.parquet.read_table(journal.folder / "trials.parquet").to_pydict()
    with (journal.folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    entries = journal.entries()
    assert table["trial"] == [r["trial"] for r in rows] == ["0000", "0001", "0002", "0003"]
    assert table["success/patch"] == [e.value for e in entries]
    assert table["setting/optimizer.learning_rate"] == [
        e.trial.settings["optimizer.learning_rate"] for e in entries
    ]
    assert table["seed"] == [e.trial.seed for e in entries]
    assert set(table["status"]) == {"finished"}


def test_the_log_of_the_sweep(swept):
    _, journal = swept
    records = [r for r in read_records(journal.folder) if r["kind"] == "scalars"]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    values = [r["values"]["sweep/objective"] for r in records]
    assert sorted(values) == sorted(e.value for e in journal.entries())
    assert [r["values"]["sweep/best"] for r in records] == list(np.maximum.accumulate(values))


def test_tensorboard_shows_settings_beside_the_objective(swept):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    _, journal = swept
    for entry in journal.entries():
        events = EventAccumulator(str(journal.folder / "hparams" / entry.trial.name)).Reload()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        hparams = metadata.parse_session_start_info_plugin_data(content).hparams
        assert set(hparams) == {"optimizer.learning_rate"}
        assert hparams["optimizer.learning_rate"].number_value == pytest.approx(
            entry.trial.settings["optimizer.learning_rate"]
        )
        assert events.Scalars("success/patch")[0].value == pytest.approx(entry.value)


def test_figures(swept, tmp_path, monkeypatch):
    from fpatch.tune.output import figures
    from fpatch.tune.output.figures import plot_importance, plot_parallel

    plan, journal = swept
    with Image.open(journal.folder / "figures/parallel.png") as image:
        assert image.width > 300
    space = {"a": (0.0, 1.0), "kind": ["x", "y"], "b": {"low": 1, "high": 9, "when": {"kind": "y"}}}
    plan = plan._replace(space=parse_space(space))
    from fpatch import random
    from fpatch.tune.folder.journal import Entry

    drawn = plan.space.draw(random.key(0), 60)
    entries = [
        Entry(Trial(f"{i:04d}", s, 0), [Point(6, s["a"] ** 2, 0.1)], None) for i, s in enumerate(drawn)
    ]
    found = figures.importance(plan, entries)
    assert found.columns[0].column == "sample/a"
    with monkeypatch.context() as patched:
        patched.setattr(figures, "importance", lambda *_: found)
        plot_importance(tmp_path / "importance.png", plan, entries)
    plot_parallel(tmp_path / "parallel.png", plan, entries)
    same = [e._replace(points=[Point(6, 0.5, 0.1)]) for e in entries]
    plot_importance(tmp_path / "nothing.png", plan, same)
    plot_parallel(tmp_path / "flat.png", plan, same)
    assert len(list(tmp_path.glob("*.png"))) == 4


# Going on


@pytest.mark.parametrize("steps", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 9))])
def test_a_killed_sweep_goes_on_without_repeating_a_step(swept, tmp_path, steps):
    """Whatever the number of evaluations before the kill, all has the bits of an uninterrupted sweep."""
    _, whole = swept
    plan = make_plan(tmp_path, num_trials=4, study={"tensorboard": True})
    journal = begin(plan)
    work(journal, plan, steps=steps)
    trained = {n: Run(journal.run_folder(n)).checkpoint_steps() for n in journal.names()}
    log = SweepLog(journal, plan, lambda *_: None)
    work(journal, plan, log.notify)
    log.close(finished=True)
    assert [e.outcome.status for e in journal.entries()] == ["finished"] * 4
    for name in whole.names():
        assert parameters(Run(journal.run_folder(name))) == parameters(Run(whole.run_folder(name)))
        assert [p[:2] for p in journal.entry(name).points] == [p[:2] for p in whole.entry(name).points]
        steps_logged = [
            r["step"] for r in read_records(journal.run_folder(name)) if "train/loss" in r["values"]
        ]
        assert steps_logged == list(range(1, STEPS + 1))
    assert trained["0000"]


def test_a_torn_journal_is_read(tmp_path):
    journal = Journal(tmp_path)
    (tmp_path / "journal").mkdir()
    journal.add(Trial("0000", {"a": 1.5, "b": [1, 2]}, 7))
    for point in (Point(3, 0.5, math.nan), Point(6, 0.75, 0.1), Point(6, 0.8, 0.1), Point(3, 0.25, 0.2)):
        journal.add_point("0000", point)
    with (tmp_path / "journal/0000.points.jsonl").open("a") as file:
        file.write('[9, "0.')
    entry = journal.entry("0000")
    assert entry.trial == Trial("0000", {"a": 1.5, "b": [1, 2]}, 7)
    assert entry.points == [Point(3, 0.25, 0.2), Point(6, 0.8, 0.1)]
    assert entry.outcome is None
    journal.add_point("0000", Point(9, 0.85, 0.1))  # by who takes the trial up again
    assert journal.entry("0000").points[2:] == [Point(9, 0.85, 0.1)]
    journal.add_point("0000", Point(6, 0.8, 0.1))
    assert entry.observation(1.0).value is None
    journal.add_outcome("0000", Outcome("finished", 1.0, 2.0))
    assert (journal.entry("0000").observation(-1.0).value, journal.entry("0000").observation(1.0).error) == (
        -0.85,
        0.1,
    )
    journal.add_outcome("0000", Outcome("failed", 1.0, 2.0, "Error: x", "..."))
    assert math.isnan(journal.entry("0000").observation(1.0).value)


def test_trials_stand_in_their_order(tmp_path):
    """Beyond four digits, too: who goes on from another knows it by its place."""
    (tmp_path / "journal").mkdir()
    for name in ("9999", "10000", "0002"):
        Journal(tmp_path).add(Trial(name, {}, 7))
    assert Journal(tmp_path).names() == ["0002", "9999", "10000"]


def test_one_driver_at_a_time(swept):
    _, journal = swept
    with journal.locked(), pytest.raises(RunError, match="being run by another process"), journal.locked():
        pass


def test_a_changed_space_is_refused(swept, tmp_path):
    plan, journal = swept
    copy = Journal(shutil.copytree(journal.folder, tmp_path / "copy"))
    other = plan._replace(space=parse_space({"optimizer.learning_rate": (0.01, 0.5, "log")}))
    with pytest.raises(RunError, match=r"space.optimizer.learning_rate.high must be 0.3, .* got 0.5"):
        tune.resume_sweep(copy.folder, plan=other)
    other = plan._replace(study=vary(plan.study, {"train.batch_size": 5}))
    with pytest.raises(RunError, match=r"study.train.batch_size must be 4, .* got 5"):
        tune.resume_sweep(copy.folder, plan=other)
    copy.replace_config({**plan.config, "space": {"optimizer.learning_rate": {"low": 0.5, "high": 0.6}}})
    with pytest.raises(
        RunError, match=r"the space does not hold trial 0000, which has optimizer.learning_rate = 0.2"
    ):
        tune.resume_sweep(copy.folder)


def test_how_a_sweep_is_run_is_taken_from_the_plan_that_it_goes_on_with(tmp_path):
    """And recorded before anything else, since the workers read it there."""
    plan = make_plan(tmp_path, study={"num_steps": 3})
    journal = begin(plan)
    work(journal, plan)  # nothing is left to do
    storage = tmp_path / "storage"
    other = {"cpus": 0.5, "gpus": 0.0, "max_concurrent": 1, "retries": 5, "storage": storage.as_uri()}
    changed = plan._replace(sweep=dataclasses.replace(plan.sweep, **other))
    tune.resume_sweep(journal.folder, plan=changed)
    assert tune.read_plan(journal).sweep == changed.sweep
    assert (storage / journal.folder.name / "sweep.json").read_bytes() == (
        journal.folder / "sweep.json"
    ).read_bytes()
    tune.resume_sweep(journal.folder)
    assert tune.read_plan(journal).sweep == changed.sweep
    tune.resume_sweep(journal.folder, plan=changed, num_trials=2)
    assert tune.read_plan(journal).sweep.num_trials == 2


def test_how_a_sweep_cannot_be_run_is_refused_when_it_goes_on(swept, tmp_path):
    plan, journal = swept
    copy = Journal(shutil.copytree(journal.folder, tmp_path / "copy"))
    before = copy.config
    (tmp_path / "file").write_text("")
    blocked = f"{(tmp_path / 'file').as_uri()}/sweeps"
    for how, error, message in (
        ({"storage": blocked}, OSError, "cannot be written"),
        (
            {"pack": 2, "micro_batch_on_oom": True},
            ValueError,
            "sweep.pack = 2: sweep.micro_batch_on_oom needs",
        ),
    ):
        changed = plan._replace(sweep=dataclasses.replace(plan.sweep, **how))
        with pytest.raises(error, match=message):
            tune.resume_sweep(copy.folder, plan=changed)
    with copy.locked(), pytest.raises(RunError, match="being run by another process"):
        tune.resume_sweep(copy.folder, num_trials=9)
    assert copy.config == before


# Trials that fail


def test_a_trial_that_raises_stands_in_the_table_and_the_sweep_goes_on(tmp_path):
    space = {"pipeline.touchy.brightness": [1.0, 0.25, 0.75]}
    plan = touchy_plan(tmp_path, space=space, search="grid")
    journal = begin(plan)
    told = []
    log = SweepLog(journal, plan, lambda *words: told.append(words))
    work(journal, plan, log.notify)
    log.close(finished=True)
    entries = journal.entries()
    assert [e.outcome.status for e in entries] == ["finished", "failed", "finished"]
    assert entries[1].outcome.error == "RuntimeError: too dark to see"
    table = pyarrow.parquet.read_table(journal.folder / "trials.parquet").to_pydict()
    assert table["message"] == ["", "RuntimeError: too dark to see", ""]
    assert 'raise RuntimeError("too dark to see")' in table["traceback"][1]
    assert any("failed: RuntimeError: too dark to see" in note for *_, note in told)
    assert tune.find_entry(journal, plan).trial.name in ("0000", "0002")


def test_a_journal_that_is_not_the_record_of_its_runs_is_named(tmp_path):
    """The best trial, and the study that makes its patch, are what the run folders hold."""
    plan = make_plan(
        tmp_path, space={"optimizer.learning_rate": [0.0001, 0.2]}, search="grid", num_trials=None
    )
    journal = begin(plan)
    work(journal, plan)
    best, other = tune.find_entry(journal, plan), journal.entry("0000")
    assert (best.trial.name, other.value < best.value) == ("0001", True)
    for name, settings, said in (
        ("0001", {"optimizer.learning_rate": 0.0001}, "learning_rate must be 0.2, as when the run started"),
        ("0001", {"optimizer.learning_rate": 0.3}, "the space does not hold optimizer.learning_rate = 0.3"),
        ("0000", {"pipeline.victim.model.weights": "x"}, "the space does not hold"),
    ):
        trial = journal.entry(name).trial
        journal.add(trial._replace(settings=settings))
        with pytest.raises(RunError, match=re.escape(said)):
            tune.find_entry(journal, plan, name)
        with pytest.raises(RunError, match=re.escape(said)):
            tune.export_trial(journal.folder, name)
        journal.add(trial)
    journal.add_point("0000", Point(STEPS, best.value + 1, 0.0))
    with pytest.raises(RunError, match="but the run trials/0000 recorded"):
        tune.find_entry(journal, plan)
    journal.add_point("0000", Point(STEPS + 1, other.value, 0.0))
    with pytest.raises(RunError, match="but the run trials/0000 recorded nothing"):
        tune.find_entry(journal, plan, "0000")
    assert tune.find_entry(journal, plan, "0001").value == best.value
    shutil.rmtree(journal.run_folder("0000"))
    tune.find_entry(journal, plan)


def test_out_of_memory_several_processes_are_told_of_what_they_may_set(tmp_path):
    """`micro_batch_on_oom` is refused beside `processes`."""
    plan = touchy_plan(tmp_path, num_trials=1, processes=2)
    plan = plan._replace(study=vary(plan.study, {"pipeline.touchy.rows": 3}))
    journal = Journal.create(plan.study.log.runs, plan.study.name, plan.config)
    work(journal, plan)
    assert "\ntrain.micro_batch holds fewer rows in memory" in journal.entry("0000").outcome.traceback


@pytest.mark.parametrize("asked", [False, True])
def test_out_of_memory_is_met_with_fewer_rows_only_if_asked(tmp_path, asked):
    plan = touchy_plan(tmp_path, num_trials=1, micro_batch_on_oom=asked)
    plan = plan._replace(study=vary(plan.study, {"pipeline.touchy.rows": 3}))
    journal = Journal.create(plan.study.log.runs, plan.study.name, plan.config)
    work(journal, plan)
    (entry,) = journal.entries()
    assert entry.outcome.status == ("finished" if asked else "failed")
    assert entry.trial.micro_batch == (2 if asked else None)
    if asked:
        run = Run(journal.run_folder("0000"))
        assert run.read_json("config.json")["train"]["micro_batch"] == 2
        assert main(["replay", str(run.folder), "--step", "5", "--verify"]) == 0
    else:
        assert "micro_batch_on_oom = true holds fewer rows" in entry.outcome.traceback


# Stopping early, and populations


def test_what_is_behind_is_stopped_and_left_as_a_finished_run(tmp_path):
    space = {"optimizer.learning_rate": [0.2, 0.0001, 0.15, 0.3]}
    settings = {
        "halving": {"first": 3, "factor": 2.0},
        "objective": "success/drop/patch",
        "max_concurrent": 1,
    }
    plan = make_plan(tmp_path, space=space, search="grid", num_trials=None, **settings)
    journal = begin(plan)
    work(journal, plan)
    entries = journal.entries()
    assert [e.outcome.status for e in entries][:2] == ["finished", "stopped"]
    assert [p.step for p in entries[1].points] == [3]
    run = Run(journal.run_folder("0001"))
    assert run.checkpoint_steps() == [0, 2, 3]
    assert (run.folder / "patch/side.png").exists()
    again = resume(run.folder)  # by hand, such a run can be trained to its end
    assert again.checkpoint_steps()[-1] == STEPS


def test_a_member_that_is_never_replaced_trains_as_one_long_run(tmp_path):
    """Generations of three steps hand on the exact state."""
    plan = make_plan(
        tmp_path,
        search="population",
        num_trials=8,
        population={"size": 4, "every": 3},
        objective="success/drop/patch",
    )
    journal = begin(plan)
    work(journal, plan, steps=9)  # killed in the second generation
    work(journal, plan)
    entries = {e.trial.name: e for e in journal.entries()}
    assert [e.outcome.status for e in entries.values()] == ["finished"] * 8
    assert [e.trial.until for e in entries.values()] == [3] * 4 + [6] * 4
    chains = []
    for last in list(entries)[4:]:
        chain = [entries[last]]
        while (parent := chain[-1].trial.parent) is not None:
            chain.append(entries[parent])
        chains.append(chain)
    steady = [c for c in chains if len({json.dumps(e.trial.settings) for e in c}) == 1]
    replaced = [c for c in chains if c not in steady]
    assert steady
    assert replaced
    first, last = steady[0][-1].trial, steady[0][0].trial
    whole = train(trial_study(plan, first, tmp_path / "whole"))
    assert parameters(Run(journal.run_folder(last.name))) == parameters(whole)
    child = replaced[0][0].trial
    like = set_up(trial_study(plan, child, tmp_path)).initial
    start, _ = Run(journal.run_folder(child.name)).load_checkpoint("step-00000003", like)
    end, _ = Run(journal.run_folder(child.parent)).load_checkpoint("last", like)
    assert all(torch.equal(start.params[n], end.params[n]) for n in end.params)
    assert torch.equal(start.key, end.key)
    with pytest.raises(ValueError, match="no study alone makes its patch"):
        tune.export_trial(journal.folder, last.name)


def test_a_population_needs_states_that_fit(tmp_path):
    settings = {"search": "population", "num_trials": 8, "population": {"size": 4, "every": 3}}
    plan = make_plan(tmp_path, space={"optimizer.name": ["adam", "sgd"]}, **settings)
    with pytest.raises(tune.SpaceError, match=r"space.optimizer.name changes the form of the optimizer"):
        check_plan(plan)
    plan = plan._replace(space=parse_space({"train.num_steps": (4, 9, "int")}))
    with pytest.raises(tune.SpaceError, match=r"train.num_steps must be fixed"):
        check_plan(plan)


# What is refused before anything starts


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({"optimizer.learning_rat": (0, 1)}, {}, "optimizer.learning_rat = .*did you mean 'learning_rate'"),
        ({"optimiser.learning_rate": (0, 1)}, {}, "there is no 'optimiser'; did you mean 'optimizer'"),
        ({"pipeline.implnt.scale.high": (0, 1)}, {}, "there is no 'implnt'; did you mean 'implant'"),
        ({"weights.vansh": (0, 1)}, {}, "space.weights.vansh: .* no loss .* did you mean 'vanish'"),
        (
            {"optimizer.learning_rate": (-1, 1)},
            {},
            r"learning_rate = -1.0: .*must be between 1e-12 and .*, got -1.0",
        ),
        ({"optimizer.name": ["adam", "sdg"]}, {}, r"space.optimizer.name = 'sdg': .*expected one of"),
        ({"train.batch_size": (2, 4)}, {}, "expected a whole number, got 2.0"),
        (
            {**RATES, "train.num_stps": 9},
            {},
            "space: train: unknown key 'num_stps'; did you mean 'num_steps'",
        ),
        ({**RATES, "train.num_steps": -3}, {}, "space: train.num_steps must be at least 1, got -3"),
        ({"pipeline.implant.scale": (0.5, 1.0)}, {}, r"space.pipeline.implant.scale = 0.5: "),
        (RATES, {"objective": "success/pach"}, "no scalar 'success/pach'; did you mean 'success/patch'"),
        (RATES, {"search": "grid", "grid_points": 2}, "the grid has 2 points, got 3"),
        (RATES, {"num_trials": None}, "num_trials is required with search = 'random'"),
        (RATES, {"num_trials": 0}, "sweep.num_trials must be at least 1"),
        (RATES, {"search": "tpee"}, "sweep.search: expected one of"),
        (RATES, {"serach": "tpe"}, "unknown key 'serach'; did you mean 'search'"),
        (RATES, {"mode": "maximum"}, "sweep.mode: expected one of 'max', 'min'"),
        (RATES, {"population": {"size": 4, "every": 3}}, "belongs to search = 'population'"),
        (RATES, {"search": "population"}, "belongs to search = 'population'"),
        (
            RATES,
            {"search": "population", "num_trials": 9, "population": {"size": 4, "every": 3}},
            r"sweep.num_trials must be at most 8, got 9: train.num_steps = 6 in generations of 4 trials",
        ),
        (RATES, {"gpus": 2}, "a process uses one GPU, got 2; .* set sweep.processes = 2 and sweep.gpus = 1"),
        (RATES, {"gpus": 1.5}, "got 1.5; .* set sweep.processes = 2 and sweep.gpus = 1"),
        (RATES, {"cpus": 0}, "sweep.cpus must be above 0 if sweep.gpus is 0"),
        (RATES, {"processes": 0}, "sweep.processes must be at least 1"),
        (RATES, {"processes": 2, "pack": 2}, "sweep.processes = 2: a pack has one process"),
        (RATES, {"processes": 2, "gpus": 0.5}, "cannot share a GPU, got sweep.gpus = 0.5"),
        (RATES, {"processes": 2, "micro_batch_on_oom": True}, "leave out sweep.micro_batch_on_oom"),
        (
            {**RATES, "device": "cuda"},
            {"processes": 2},
            'sweep.processes = 2: .* sweep.gpus = 0, got device = "cuda"; set sweep.gpus = 1',
        ),
        (RATES, {"processes": 5}, "sweep.processes = 5: .* got train.batch_size = 4; lower"),
        (RATES, {"halving": {"first": 0}}, "sweep.halving.first must be at least 1"),
        (RATES, {"halving": {"first": 4}}, r"Halving\(first=4.* stops no trial.*num_steps = 6.*every = 3"),
    ],
)
def test_bad_plans_are_refused(tmp_path, space, settings, message):
    with pytest.raises(ValueError, match=message):
        begin(make_plan(tmp_path, space, **settings))
    assert not (tmp_path / "runs").exists()


def test_both_ends_of_a_range_may_lie_beyond_those_of_the_study(tmp_path):
    """Each with the other is right, and neither with what the study has."""
    scale = "pipeline.affine.angle_deg"
    space = {f"{scale}.low": (4.0, 6.0), f"{scale}.high": (6.0, 9.0)}
    check_plan(make_plan(tmp_path, space))
    with pytest.raises(tune.SpaceError, match=rf"space.{scale}.low = 6.0: .*must be \(low, high\)"):
        check_plan(make_plan(tmp_path, {f"{scale}.low": (2.0, 6.0)}))


@pytest.mark.parametrize(("settings", "device"), [({"gpus": 0.0}, "cpu"), ({"gpus": 1.0}, "auto")])
def test_processes_of_a_trial_without_gpus_run_on_the_cpu(tmp_path, settings, device):
    """On a machine with a GPU, too: all would take the same, which NCCL refuses."""
    plan = make_plan(tmp_path, processes=2, **settings)
    assert plan.study.device == "auto"
    assert trial_study(plan, Trial("0000", {}, 1), tmp_path).device == device


def test_more_gpus_than_there_are_are_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    path = sweep_file(tmp_path)
    assert main(["sweep", str(path), "--sweep.gpus", "1", "--sweep.processes", "2"]) == 2
    assert (
        "a trial needs 2 GPUs in all, and this machine has 1; set sweep.gpus = 0" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


def test_an_address_where_nobody_listens_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    """Ray would try for minutes."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{deaf.getsockname()[1]}"
        path = sweep_file(tmp_path)
        for address, given in ((place, ""), ("auto", place)):
            monkeypatch.setenv("RAY_ADDRESS", given)
            assert main(["sweep", str(path), "--sweep.address", address]) == 2
            said = capsys.readouterr().err
            assert "sweep.address: no Ray cluster answers at " in said
            assert f"{place.partition(':')[2]}': [Errno" in said
    assert not (tmp_path / "runs").exists()


def test_places_are_counted_as_ray_counts_them(tmp_path):
    """In parts of a device that are no binary fractions, too."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 0.3}},
        {"Alive": False, "Resources": {"CPU": 9.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert num_concurrent(make_plan(tmp_path, cpus=0.2), ray) == 5
    assert num_concurrent(make_plan(tmp_path, cpus=0.1, gpus=0.1), ray) == 3


def test_a_study_without_validation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a sweep needs a validation split"):
        begin(make_plan(tmp_path, study={"validation": False}))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = sweep_file(tmp_path, runs=str(tmp_path / "file/runs"))
    assert main(["sweep", str(path)]) == 2
    assert "log.runs: " in (said := capsys.readouterr().err)
    assert f"file/runs cannot be written: {tmp_path / 'file'} is no folder; choose another" in said


# On the command line


def test_a_file_is_read(tmp_path):
    path = sweep_file(tmp_path)
    plan = tune.load_plan(path, {"sweep.num_trials": 5, "train.num_steps": 4})
    assert (plan.sweep.num_trials, plan.study.train.num_steps) == (5, 4)
    assert dict(plan.space.varied) == dict(parse_space(RATES).varied)
    nested = {"sweep.halving.first": 3, "sweep.population": False}
    assert tune.load_plan(path, nested).sweep.halving == tune.Halving(3)
    with pytest.raises(ValueError, match=r"sweep.halving: unknown key 'frst'; did you mean 'first'"):
        tune.load_plan(path, {"sweep.halving.frst": 3})
    with pytest.raises(ValueError, match=r"study.toml: 2 errors\n  unknown section 'space'"):
        load_study(path)
    for name, wrong, message in (
        ("space", "spac", "unknown section 'spac'; did you mean 'space'"),
        ("optimizer", "optimiser", "unknown section 'optimiser'; did you mean 'optimizer'"),
        ("sweep", "log.extra", r"a sweep needs the section \[sweep\]; add it"),
    ):
        broken = tmp_path / "broken.toml"
        broken.write_text(path.read_text().replace(f"[{name}]", f"[{wrong}]"))
        with pytest.raises(ValueError, match=rf"broken.toml: {message}"):
            tune.load_plan(broken)


def test_the_page_on_sweeps_is_right():
    text = (Path(__file__).parents[2] / "docs/how-to/sweeps.md").read_text()
    raw = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    assert len(parse_space(raw["space"], toml=True).varied) == 6
    assert decode(Sweep, raw["sweep"], "sweep").halving == tune.Halving(50, 3.0)


def test_live_objects_are_handed_on(tmp_path):
    """A victim made in code: the same as that from the file."""
    from study_fixture import load_tiny

    plan = make_plan(tmp_path, num_trials=1)
    config = json.loads(json.dumps(plan.config))
    model = load_tiny(str(tmp_path / "tiny.safetensors"))
    config["study"]["pipeline"]["victim"]["model"] = {"live": "study_fixture:Tiny"}
    resources = {"victim/model": model}
    live = plan_from_config(config, resources)
    check_plan(live, resources)
    found = []
    for name, some in (("file", plan), ("live", live)):
        journal = Journal.create(tmp_path / name, name, some.config)
        journal.add(next_trial(some, []))
        list(run_trial(journal.folder, "0000", resources if name == "live" else None))
        found.append(parameters(Run(journal.run_folder("0000"))))
    assert found[0] == found[1]


def test_commands_that_look_at_a_sweep(swept, capsys, tmp_path):
    _, journal = swept
    best = max(journal.entries(), key=lambda e: e.value)
    assert main(["sweep", "status", str(journal.folder)]) == 0
    said = capsys.readouterr().out
    assert "4 finished" in said
    for entry in journal.entries():
        assert f"{entry.trial.settings['optimizer.learning_rate']:.4g}" in said
    assert main(["sweep", "best", str(journal.folder)]) == 0
    assert f"fpatch evaluate {journal.run_folder(best.trial.name)}" in capsys.readouterr().out
    assert main(["sweep", "export", str(journal.folder), "--out", str(tmp_path / "best.toml")]) == 0
    exported = load_study(tmp_path / "best.toml")
    assert exported.optimizer.learning_rate == best.trial.settings["optimizer.learning_rate"]
    for words, message in (
        (["status"], "the folder of a sweep must follow"),
        (["status", str(tmp_path)], "lacks sweep.json"),
        (["export", str(journal.folder), "--trial", "0009"], "has no trial '0009'"),
        (["sttus.toml"], "no such config file"),
        (["stauts", str(journal.folder)], "there is no 'stauts'; did you mean 'status'?"),
        (["study.toml", "--num-trials", "9"], "study.toml takes no --num-trials; set --sweep.num_trials"),
        (["best", str(journal.folder), "--trial", "0001"], "fpatch sweep best takes no --trial"),
        (
            ["resume", str(journal.folder), "--sweep.cpus", "2"],
            "takes no --sweep.cpus; only resume --config",
        ),
        (["a.toml", "b.toml"], "a sweep is one file, got 'b.toml', too"),
    ):
        capsys.readouterr()
        assert main(["sweep", *words]) == 2
        assert message in capsys.readouterr().err
