"""A resume goes on only from what belongs together, is told otherwise, and deletes nothing."""

import contextlib
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from log_stores import killed_in_fork
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from study_fixture import STEPS, logged_steps, make_study, parameters

from fpatch.cli.main import main
from fpatch.core.files import set_aside
from fpatch.log import mlflow as mlflow_sink
from fpatch.log import open_log
from fpatch.log.sealed import SEAL, seal
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run
from fpatch.runs.grid import evaluate_grid_run
from fpatch.runs.locks import RunError
from fpatch.runs.manifest import check_files
from fpatch.runs.opening import open_run
from fpatch.runs.record import changed_sources, describe_sources, edited_sources
from fpatch.runs.standing import check_standing, go_back
from fpatch.runs.training import resume, train, train_in
from fpatch.runs.verifying import verify_run
from fpatch.study.config import load_study, vary
from fpatch.study.setup import set_up


def checkpoint(run: Run, name: str) -> Path:
    return run.folder / f"checkpoints/{name}.safetensors"


def contents(run: Run) -> list[bytes]:
    """All that stands in the folder, wherever it was moved."""
    return [p.read_bytes() for p in run.folder.rglob("*") if p.is_file()]


def cut_records(run: Run) -> None:
    path = run.folder / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-9]))


def edit_record(run: Run) -> None:
    path = run.folder / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"train/loss": 0.', b'"train/loss": 1.', 1))


def older_last(run: Run) -> None:
    shutil.copy(checkpoint(run, "step-00000002"), checkpoint(run, "last"))


def older_last_alone(run: Run) -> None:
    """As if only the numbered checkpoint before it were kept."""
    older_last(run)
    for step in (4, 6):
        checkpoint(run, f"step-{step:08d}").unlink()


def older_best(run: Run) -> None:
    shutil.copy(checkpoint(run, "step-00000000"), checkpoint(run, "best"))


DAMAGE = {
    "last is lost": (lambda run: checkpoint(run, "last").unlink(), "last.safetensors, though it has been"),
    "records are cut": (cut_records, "records.jsonl was cut or edited"),
    "a record is edited": (edit_record, "records.jsonl was cut or edited"),
    "records are lost": (lambda run: (run.folder / "records.jsonl").unlink(), "records.jsonl is missing"),
    "an older last": (older_last, "checkpoint 'last' is of step 2, but there is one of step 6"),
    "an older last alone": (older_last_alone, "is of step 2, but records were committed at step 6"),
    "an older best": (older_best, "checkpoint 'best' is of step 0, and not the state of step"),
    "best is lost": (lambda run: checkpoint(run, "best").unlink(), "checkpoints/best.safetensors is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_belong_together_is_refused_and_then_told(run, capsys, case):
    damage, said = DAMAGE[case]
    expected = parameters(run), parameters(run, "best")
    damage(run)
    before = contents(run)
    assert main(["resume", str(run.folder)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert f"fpatch resume {run.folder} --from " in message
    assert sorted(contents(run)) == sorted(before)
    assert main(["resume", str(run.folder), "--from", "step-00000002"]) == 0
    assert (parameters(run), parameters(run, "best")) == expected
    assert logged_steps(run.folder) == list(range(1 if case != "records are lost" else 3, STEPS + 1))
    assert main(["resume", str(run.folder)]) == 0
    if case in ("records are lost", "an older last alone"):
        evaluate_run(run.folder)
        assert verify_run(run.folder).is_proved


def test_going_back_moves_everything_later_aside(run):
    evaluate_grid_run(run.folder, {"camera/exposure/stops": [0.0]}, checkpoint="last")
    later = {
        p.relative_to(run.folder): p.read_bytes()
        for p in run.folder.rglob("*.*")
        if p.is_file() and ("00000006" in p.name or "-last-grid-" in p.name)
    }
    assert len(later) > 12
    resume(run.folder, checkpoint="step-00000004")
    asides = sorted((run.folder / "aside").iterdir())
    there = {p.relative_to(a): p.read_bytes() for a in asides for p in a.rglob("*") if p.is_file()}
    assert {name: there.get(name) for name in later} == later
    lines = [json.loads(line) for line in there[Path("records.jsonl")].splitlines()]
    assert {line["step"] for line in lines} == {5, 6}


@pytest.mark.slow
def test_going_back_that_is_killed_is_refused_or_whole(trained, tmp_path):
    """At every third write: a resume took half of it as done, without the checkpoint beside `last`."""
    outcomes = []
    for moment in itertools.count(0, 3):
        run = Run(shutil.copytree(trained.folder, tmp_path / f"{moment}"))
        if not killed_in_fork(lambda run=run: go_back(run, "step-00000002"), moment):
            break
        refused = None
        with contextlib.suppress(RunError):
            refused = True
            check_standing(run)
            refused = False
        if refused:
            with pytest.raises(RunError, match=f"fpatch resume {run.folder} --from last$"):
                check_standing(run)
            go_back(run, "last")
        check_standing(run)
        assert check_files(run).damage == []
        outcomes.append((refused, run.checkpoint_step("last")))
    in_order = [(False, STEPS), (True, 2), (False, 2)]
    assert set(in_order[:2]) <= set(outcomes)
    assert outcomes == sorted(outcomes, key=in_order.index)


@pytest.mark.parametrize("checkpoint", ["last", "step-00000002"])
def test_a_number_in_the_name_of_a_table_is_not_its_step(run, checkpoint):
    """`validation-last-seed-4` is no validation at step 4."""
    evaluate_run(run.folder, "validation", checkpoint, settings={"seed": 4})
    table = f"tables/validation-{checkpoint}-seed-4.parquet"
    assert (run.folder / table).is_file()
    go_back(run, "step-00000004")
    assert (run.folder / table).is_file() == (checkpoint != "last")


def test_a_kill_before_last_is_saved_is_no_damage(run):
    """The numbered checkpoint is there, its `last` and the commit are not."""
    go_back(run, "step-00000002")
    aside = next(p for p in run.folder.glob("aside/*/checkpoints/step-00000004.safetensors"))
    shutil.copy(aside, checkpoint(run, "step-00000004"))
    resume(run.folder)
    assert run.checkpoint_steps() == [0, 2, 4, 6]


def test_a_sweep_goes_back_by_itself_and_says_so(run, caplog):
    """Its journal chose the state; a fetched copy may hold later files."""
    expected = parameters(run)
    older_last(run)
    list(train_in(run.folder, open_run(run.folder)[1]))
    assert "an older file stands in its place" in caplog.text
    assert parameters(run) == expected
    assert list(run.folder.glob("aside/*/checkpoints/step-00000006.safetensors"))


# What the run was made from


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("optimizer", "learning_rate"), 0.2, "optimizer.learning_rate must be 0.1"),
        (("seed",), 4, "seed must be 3"),
        (("data", "size"), [96, 128], r"data.size must be \[48, 64\]"),
        (("objective", "weights", "vanish"), 2.0, "objective.weights.vanish must be 1.0"),
        (("data", "classes"), ["vehicle"], "data.classes must be None"),
        (("train", "num_steps"), 9, "train.num_steps must be 6"),
    ],
)
def test_other_settings_are_refused_by_a_resume_and_accepted_where_told(run, caplog, place, value, said):
    config = run.read_json("config.json")
    target = config
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    run.write_json("config.json", config)
    with pytest.raises(RunError, match=said):
        resume(run.folder)
    if place[0] == "train":
        resume(run.folder, checkpoint="last")
        assert "train.num_steps: 6 was recorded, 9 is here" in caplog.text
        resume(run.folder)
        assert logged_steps(run.folder) == list(range(1, 10))


def test_changed_sources_are_said_by_a_resume(run, caplog):
    facts = run.read_json("environment.json")
    facts["sources"]["modules"]["study_fixture"] = "0" * 32
    facts["sources"]["fpatch"] |= {"optim": "0" * 32, "runs": "0" * 32}
    facts["sources"]["fpatch"]["cli"] = "0" * 32
    (run.folder / "environment.json").write_bytes(seal(facts))
    resume(run.folder)
    assert "module study_fixture: the source is not the recorded one" in caplog.text
    assert "fpatch/optim, fpatch/runs: the source is not the recorded one" in caplog.text
    assert "fpatch/cli" not in caplog.text  # on which no patch depends


def test_modules_beside_a_study_are_recorded_with_those_they_import(tmp_path, monkeypatch):
    path = make_study(tmp_path)
    (tmp_path / "their_helper.py").write_text("GAIN = 1.0\n")
    (tmp_path / "their_stage.py").write_text(
        "import json\nfrom study_fixture import load_tiny\nfrom their_helper import GAIN\n"
        "from fpatch import define_loader\n"
        "def load(weights):\n    return load_tiny(weights)\n"
        'other = define_loader("other", load)\n'
    )
    path.write_text(path.read_text().replace("study_fixture:tiny", "their_stage:other"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = describe_sources(load_study(path))["modules"]
    assert set(before) == {"their_stage", "their_helper", "study_fixture"}
    (tmp_path / "their_helper.py").write_text("GAIN = 20.0\n")
    assert describe_sources(load_study(path))["modules"] == before  # what was imported runs
    assert edited_sources(load_study(path)) == [
        "module their_helper: edited after the import; start Python again"
    ]
    importlib.reload(sys.modules["their_helper"])
    after = describe_sources(load_study(path))["modules"]
    assert {n for n in after if after[n] != before[n]} == {"their_helper"}
    assert edited_sources(load_study(path)) == []


def test_files_that_a_stage_of_the_user_names_are_recorded(tmp_path, monkeypatch):
    path = make_study(tmp_path)
    (tmp_path / "tinted.py").write_text(
        "from dataclasses import dataclass\nfrom fpatch import define\n"
        "from fpatch.graph.stage import deterministic\n"
        "@dataclass(frozen=True)\nclass Tint:\n    curves: tuple[str, ...] = ()\n"
        "def apply(config, patch_params, sample, values):\n    return {'image': values['image']}\n"
        "tint = define('tint', Tint, deterministic, apply, reads=('image',), writes=('image',))\n"
    )
    node = '[pipeline.tint]\nstage = "tinted:tint"\ncurves = ["red.txt", "blue.txt"]\n[pipeline.victim]'
    path.write_text(path.read_text().replace("[pipeline.victim]", node))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("red.txt", "blue.txt"):
        (tmp_path / name).write_text("1")
    study = load_study(path)
    recorded = describe_sources(study)
    assert set(recorded["files"]) == {"red.txt", "blue.txt"}
    (tmp_path / "red.txt").write_text("2")
    assert changed_sources(recorded, study) == ["file red.txt: the content is not the recorded one"]
    (tmp_path / "red.txt").unlink()
    assert changed_sources(recorded, study) == ["file red.txt: the content is missing"]
    del recorded["files"]
    assert changed_sources(recorded, study) == []  # a run of an older version


# Headers of checkpoints


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": None}, "its header lacks 'step'"),
        ({"format": None}, "its header lacks 'format'"),
        ({"facts": None}, "its header lacks 'facts'"),
        ({"format": "9"}, "its format must be '1', got '9'"),
        ({"step": "-5"}, "its step must be a whole number from 0, got '-5'"),
        ({"step": "1.5"}, "its step must be a whole number from 0, got '1.5'"),
        ({"facts": "[1]"}, "facts must hold numbers"),
        ({"facts": '{"best": "x"}'}, "facts must hold numbers"),
        ({"facts": "{"}, "its header cannot be read"),
        ({}, "params/side must be torch.float32, got torch.float64"),
    ],
)
@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_headers_and_types_of_checkpoints_are_checked(run, capsys, change, said, command):
    """One sentence each, in a file of an older version, which has no digest."""
    name = "last" if command == "resume" else "best"
    path = checkpoint(run, name)
    with safe_open(path, framework="pt") as file:
        metadata = {n: v for n, v in file.metadata().items() if n in ("step", "format", "facts")}
    tensors = load_file(path)
    if not change:
        tensors["params/side"] = tensors["params/side"].double()
    wanted = {n: v for n, v in (metadata | change).items() if v is not None}
    save_file(tensors, path, wanted or None)
    facts = {n: v for n, v in run.read_json("environment.json").items() if n not in (SEAL, "files")}
    (run.folder / "environment.json").write_text(json.dumps(facts))
    assert main([command, str(run.folder)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert said in message
    assert f"{name}.safetensors is broken" in message


def test_a_checkpoint_with_one_other_number_is_not_loaded(run):
    path = checkpoint(run, "best")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["params/rear"].view(-1)[2] += 1e-3
    save_file(tensors, path, metadata)
    for load in (evaluate_run, lambda folder: Run(folder).load_params("best")):
        with pytest.raises(RunError, match="its tensors do not have the recorded digest"):
            load(run.folder)


# Stops


def stop_by(how: str):
    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if task == "training" and done == 5:
            if how == "ctrl-c":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            raise {"exit": SystemExit, "error": RuntimeError, "ctrl-c": AssertionError}[how]

    return stop


@pytest.mark.parametrize("how", ["ctrl-c", "exit", "error"])
def test_a_stop_keeps_every_finished_step_and_its_validation(trained, tmp_path, how):
    study = load_study(make_study(tmp_path, checkpoint_every=100))
    with pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError)):
        train(study, stop_by(how))
    run = Run(next((tmp_path / "runs").iterdir()))
    assert run.checkpoint_step("last") == 5
    assert run.checkpoint_steps() == [0]
    evaluate_run(run.folder)
    assert verify_run(run.folder).is_proved
    done = []
    resume(run.folder, lambda task, now, total, note: done.append((task, now)))
    assert [now for task, now in done if task == "training"] == [6]
    assert parameters(run) == parameters(trained)
    assert parameters(run, "best") == parameters(trained, "best")
    assert logged_steps(run.folder) == list(range(1, STEPS + 1))
    assert logged_steps(run.folder, "validation/success/patch") == [3, 6]


def test_a_full_disk_at_the_stop_is_said(tmp_path, monkeypatch):
    study = load_study(make_study(tmp_path, checkpoint_every=100))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if task == "training" and done == 5:
            monkeypatch.setattr("fpatch.runs.saving.save_checkpoint", full)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        train(study, stop)
    assert "the state of step 5 cannot be saved" in stopped.value.__notes__[0]


# Nothing of the user's is deleted


def test_a_failed_start_leaves_the_files_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Run.create_at(tmp_path / "run", {}, {"execution": {}})
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
    with pytest.raises(OSError, match="No space left"):
        Run.create_at(tmp_path / "new", {}, {"execution": {}})
    assert not (tmp_path / "new").exists()


def test_temporary_files_of_the_user_stay(run):
    for name in ("mine.tmp", "checkpoints/last.safetensors.tmp", "tables/test.parquet.tmp"):
        (run.folder / name).write_bytes(b"")
    with run.locked():
        assert [p.name for p in run.folder.rglob("*.tmp")] == ["mine.tmp"]


def test_two_moves_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260101-120000")
    for content in (b"1", b"2"):
        (tmp_path / "a").write_bytes(content)
        set_aside(tmp_path, [tmp_path / "a"])
    found = {p.parent.name: p.read_bytes() for p in tmp_path.glob("aside/*/a")}
    assert found == {"20260101-120000": b"1", "20260101-120000-1": b"2"}


# Copies


def test_a_copied_folder_gets_an_mlflow_run_of_its_own(runs, caplog):
    folder = runs / "run"

    def write(folder: Path, step: int) -> str:
        log = open_log(folder, tensorboard=False, mlflow=True, resume_step=step - 1 if step > 1 else None)
        log.scalars(step, {"a": 1.0})
        assert log.close() == []
        return json.loads((folder / "mlflow.json").read_text())["run_id"]

    first = write(folder, 1)
    shutil.copytree(folder, runs / "copy")
    second = write(runs / "copy", 2)
    assert second != first
    assert f"{runs / 'copy'} is a copy" in caplog.text
    assert write(folder, 2) == first  # nothing of the original was superseded or sent to the trash
    (runs / "copy").rename(runs / "moved")
    assert write(runs / "moved", 3) == second
    shutil.copytree(runs / "moved", runs / "elsewhere")
    shutil.rmtree(runs / "moved")
    assert write(runs / "elsewhere", 4) == second  # moved to another disk


def test_a_folder_on_another_machine_may_be_a_copy():
    here = {"path": "/runs/a", "device": 1, "inode": 5, "host": "x"}
    same = mlflow_sink.is_copy
    assert not same({"place": here, "uid": "u"}, here | {"host": "y", "device": 2})  # one shared disk
    assert not same({"place": here, "uid": "u"}, here | {"inode": 6})  # restored in its place
    assert same({"place": here, "uid": "u"}, here | {"inode": 6, "host": "y"})
    assert same({"place": here, "uid": "u"}, {"path": "/b", "device": 2, "inode": 6, "host": "y"})
    assert not same({"uid": "u"}, here)  # an older version


def test_the_start_of_a_training_is_not_taken_for_damage(tmp_path, caplog):
    """A parent's state, as a sweep gives it, in a folder that was killed at its start."""
    study = load_study(make_study(tmp_path))
    parts = set_up(study)
    start = parts.initial._replace(step=2)
    training = train_in(tmp_path / "run", study, start)
    next(training)
    training.close()
    run = Run(tmp_path / "run")
    assert run.checkpoint_step("last") >= 2
    checkpoint(run, "last").unlink()
    list(train_in(tmp_path / "run", vary(study, {}), start))  # as a sweep does with a copy that was cut off
    assert "lacks checkpoints/last.safetensors" in caplog.text
    assert logged_steps(run.folder) == list(range(3, STEPS + 1))
    assert list(run.folder.glob("aside/*/checkpoints/step-00000002.safetensors"))
