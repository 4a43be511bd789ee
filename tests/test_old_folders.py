"""A run and a sweep that an older version left behind still open, replay, resume, analyze and go on.

Perhaps they were made on another machine: results are compared to a tolerance, what was drawn to the bit.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from study_fixture import STEPS, logged_steps, read_records, run_fpatch
from sweeps import work

from fpatch.cli.main import main
from fpatch.core.schema import flatten
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run
from fpatch.runs.grid import evaluate_grid_run
from fpatch.runs.opening import open_run
from fpatch.runs.replaying import replay_run, replay_step
from fpatch.runs.training import resume, train
from fpatch.study.config import load_study, study_from_config
from fpatch.tune import Journal, read_plan

DATA = Path(__file__).parent / "recorded"
OLD = "/fpatch-old"
"""Where the study was when they were made."""
CLOSE = 1e-3
DEFAULTS = {
    "pipeline.vanish.label": None, "pipeline.suppress.num_detections": 50, "optimizer.library": "fpatch",
}  # fmt: skip
"""Settings whose defaults are others now; the older run has recorded its own."""


@pytest.fixture
def old(tmp_path):
    """A copy of all, whose configs hold its place."""
    for name in ("run", "sweep"):
        shutil.copytree(DATA / name, tmp_path / name)
    shutil.copytree(DATA / "study", tmp_path, dirs_exist_ok=True)
    for path in [tmp_path / "study.toml", *tmp_path.rglob("config.json"), tmp_path / "sweep/sweep.json"]:
        path.write_text(path.read_text().replace(OLD, str(tmp_path)))
    return tmp_path


def assert_close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=CLOSE)


def test_the_files_are_small_and_hold_no_code():
    files = [path for path in DATA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 300_000
    kinds = {".csv", ".json", ".jsonl", ".md", ".parquet", ".png", ".py", ".safetensors", ".toml"}
    assert {path.suffix for path in files} <= kinds
    assert [path.name for path in files if path.suffix == ".py"] == ["make.py"]


def test_the_config_makes_the_same_study(old):
    """Settings that the older version did not have have their defaults."""
    run, study = open_run(old / "run")
    recorded, here = flatten(run.read_json("config.json")), flatten(study.config)
    assert {name: here[name] for name in recorded} == recorded
    assert {name: here[name] for name in set(here) - set(recorded)} == {
        "pipeline.hit.goal": None,
        "pipeline.implant.angle_deg": [0.0, 0.0],
        "pipeline.implant.boxes": "all",
        "evaluate.portable": False,
        "objective.wrt": None,
        "optimizer.clip_norm": None,
        "optimizer.library": "fpatch",
        "optimizer.peak_momentum": None,
        "optimizer.rise_frac": 0.3,
        "optimizer.start_frac": 0.04,
        "train.local_statistics": False,
    }
    assert study.config == load_study(old / "study.toml", DEFAULTS).config
    assert study_from_config(study.config, old).config == study.config


def test_the_rows_replay(old):
    """What is drawn and composed is the logged bit for bit, as far as the processor is the recorded one."""
    run = Run.open(old / "run")
    for table in ("test", "validation-00000006"):
        replayed, changed = replay_run(run.folder, table=table)
        logged = run.load_table(table)
        assert replayed.largest < CLOSE
        for name in ("sample", "photograph"):
            assert replayed.columns[name].tolist() == logged[name].tolist()
        assert set(replayed.columns) >= {n for n in logged if n.startswith(("found/", "vanish/"))}
        said = [sentence for row in replayed.differences.values() for sentence in row]
        assert bool(changed) >= any("key/" in sentence for sentence in said)


@pytest.mark.parametrize("number", [1, 5])
def test_a_step_replays(old, number):
    replayed = replay_step(old / "run", number)
    assert replayed.start == (0 if number == 1 else 3)
    for name, (logged, found) in replayed.scalars.items():
        assert found == pytest.approx(logged, abs=CLOSE), name


def test_the_run_resumes_from_its_middle(old):
    run = Run.open(old / "run")
    expected, rates = run.load_params("last"), run.load_table("validation-00000006")
    checkpoints = run.folder / "checkpoints"
    for name in ("step-00000006", "last", "best"):
        (checkpoints / f"{name}.safetensors").unlink()  # whose memory the tensors above still are
    for name in ("last", "best"):
        shutil.copy(checkpoints / "step-00000003.safetensors", checkpoints / f"{name}.safetensors")
    middle = run.load_params("last")
    assert any((middle[n] - expected[n]).abs().max() > 10 * CLOSE for n in expected)
    resume(run.folder)
    assert_close(run.load_params("last"), expected)
    assert run.checkpoint_steps() == [0, 3, 6]
    assert logged_steps(run.folder) == list(range(1, STEPS + 1))
    again = run.load_table("validation-00000006")
    assert [name for name in again if name in rates] == list(rates)
    assert again["sample"].tolist() == rates["sample"].tolist()


def test_the_study_trains_the_same_patch(old):
    run = train(load_study(old / "study.toml", DEFAULTS))
    assert_close(run.load_params("last"), Run.open(old / "run").load_params("last"))
    losses = [
        [r["values"]["train/loss"] for r in read_records(folder) if "train/loss" in r.get("values", {})]
        for folder in (run.folder, old / "run")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=CLOSE)


def test_the_run_is_evaluated_again(old):
    run = Run.open(old / "run")
    before, recorded = run.load_table("test"), run.read_json("tables/test.summary.json")
    evaluate_run(run.folder)
    after = run.load_table("test")
    assert [name for name in after if name in before] == list(before)
    for name, column in before.items():
        assert after[name].dtype == column.dtype
        if column.dtype.kind == "f":
            np.testing.assert_allclose(after[name], column, rtol=0, atol=CLOSE, equal_nan=True)
        elif not name.startswith("digest/") and name != "path":
            assert after[name].tolist() == column.tolist(), name
    assert run.read_json("tables/test.summary.json").keys() >= recorded.keys()
    _, cells = evaluate_grid_run(run.folder, {"camera/exposure/stops": [-0.2, 0.2]})
    assert [cell.values["camera/exposure/stops"] for cell in cells] == [-0.2, 0.2]


def test_the_run_is_analyzed(old, capsys):
    """Four photographs are too few for importances; the figures need no more."""
    assert main(["analyze", str(old / "run"), "--metric", "best_score/delta/noise"]) == 0
    printed = capsys.readouterr().out
    for name in ("scatter-best_score-delta-noise.html", "training.gif"):
        assert f"{old / 'run/figures' / name}" in printed
        assert (old / "run/figures" / name).stat().st_size > 1000


# The sweep


def test_the_table_of_the_sweep_is_read(old, capsys):
    assert main(["sweep", "status", str(old / "sweep")]) == 0
    printed = capsys.readouterr().out
    assert "2 finished, 1 interrupted" in printed
    entries = Journal.open(old / "sweep").entries()
    assert [[p.step for p in entry.points] for entry in entries] == [[3, 6], [3, 6], [3]]
    for entry in entries[:2]:
        config = open_run(old / "sweep/trials" / entry.trial.name)[1].config
        assert config["optimizer"]["learning_rate"] == entry.trial.settings["optimizer.learning_rate"]


def check_went_on(journal):
    entries = journal.entries()
    assert [e.outcome.status for e in entries] == ["finished"] * 4, [e.outcome.error for e in entries]
    assert [[p.step for p in e.points] for e in entries] == [[3, 6]] * 4
    before = Journal.open(DATA / "sweep").entries()
    assert repr(entries[:2]) == repr(before[:2])  # with the NaN in them
    assert entries[2].trial == before[2].trial
    assert entries[2].points[0].value == pytest.approx(before[2].points[0].value, abs=CLOSE)
    assert logged_steps(journal.run_folder("0002")) == list(range(1, STEPS + 1))


def test_the_sweep_goes_on(old):
    """The trial that was stopped, and one more, in this process."""
    journal = Journal.open(old / "sweep")
    plan = read_plan(journal)
    work(journal, plan._replace(sweep=plan.sweep.__class__(num_trials=4, search="random")))
    check_went_on(journal)


@pytest.mark.slow
def test_the_sweep_goes_on_by_ray(old):
    done = run_fpatch("sweep", "resume", old / "sweep", "--num-trials", "4", cwd=old)
    assert done.returncode == 0, done.stderr
    check_went_on(Journal.open(old / "sweep"))
