"""Killed at any moment, a run goes on to the same bits, and each step stands once in every sink."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from log_stores import killed_in_fork, read_events, read_mlflow
from study_fixture import (
    STEPS,
    command,
    environment,
    logged_steps,
    make_study,
    parameters,
    read_records,
    run_fpatch,
)

from fpatch.cli.main import main
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.opening import open_run
from fpatch.runs.replaying import replay_run, replay_step
from fpatch.runs.training import resume, train, train_in
from fpatch.study.config import load_study, vary

SETTINGS = {"tensorboard": True}


def the_run(folder: Path) -> Run:
    """The one run of a study that can be opened."""
    found = [path for path in sorted((folder / "runs").iterdir()) if (path / "config.json").exists()]
    return Run(found[-1])


def assert_same(run: Run, whole: Run) -> None:
    """Everything that was trained, chosen and recorded is that of an uninterrupted run."""
    for name in ("last", "best"):
        assert parameters(run, name) == parameters(whole, name)
    for name in ("patch/side.png", "patch/rear.png"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert run.checkpoint_steps() == [0, 2, 4, 6]
    assert not list(run.folder.rglob("*.tmp"))
    for table in ("validation-00000003", "validation-00000006"):
        columns, expected = run.load_table(table), whole.load_table(table)
        for name in set(expected) - {"path"}:
            assert columns[name].tolist() == expected[name].tolist(), name
    assert logged_steps(run.folder) == list(range(1, STEPS + 1))
    assert logged_steps(run.folder, "validation/success/patch") == [3, 6]

    def values(run):
        return [
            (r["step"], r["values"])
            for r in read_records(run.folder)
            if r["kind"] == "scalars" and not any(name.startswith("test/") for name in r["values"])
        ]

    assert values(run) == values(whole)
    if (run.folder / "tensorboard").exists():
        events = read_events(run.folder)
        assert [e.step for e in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
        assert [e.step for e in events.Scalars("validation/success/noise")] == [3, 6]
        assert [e.step for e in events.Images("validation/control and patched")] == [3, 6]


# In forks of a process that has imported everything: a kill for the price of a training


def killed(folder: Path, moment: int | float) -> bool:
    """Train or resume in a process that gets SIGKILL at its n-th write or after so many seconds."""

    def work() -> None:
        try:
            resume(the_run(folder).folder)
        except (IndexError, FileNotFoundError):
            train(load_study(folder / "study.toml"))

    return killed_in_fork(work, moment)


def crash(folder: Path, moments: list[list[int | float]], settings: dict) -> None:
    """For each list of moments a run that is killed at each of them in turn, and then completed."""
    import tensorboard.compat.tensorflow_stub.io.gfile  # noqa: F401

    import fpatch.log.tensorboard  # noqa: F401

    if settings.get("mlflow"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    for index, times in enumerate(moments):
        study = make_study(folder / f"case-{index}", **settings).parent
        kills = [killed(study, moment) for moment in times]
        assert not killed(study, 10**9)
        print("case", *map(int, kills), flush=True)


def run_crashes(folder: Path, moments: list[list[int | float]], **settings) -> list[Run]:
    code = f"from test_resume import *; crash(Path({str(folder)!r}), {moments}, {settings})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(Path(__file__).parent, MLFLOW_DISABLE_TELEMETRY="true"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    kills = [word for line in lines if line[0] == "case" for word in line[1:]]
    assert kills.count("1") > len(kills) / 2, done.stdout
    return [the_run(folder / f"case-{index}") for index in range(len(moments))]


@pytest.mark.slow
def test_killed_at_random_writes_several_times_in_a_row(trained, tmp_path):
    rng = random.Random(0)
    moments = [[rng.randrange(8, 160), rng.randrange(60), rng.randrange(60)] for _ in range(3)]
    for run in run_crashes(tmp_path, moments, **SETTINGS):
        assert_same(run, trained)


@pytest.mark.slow
def test_killed_at_many_writes(trained, tmp_path):
    rng = random.Random(1)
    moments = [[moment, rng.randrange(60)] for moment in [*range(8), *rng.sample(range(8, 300), 16)]]
    for run in run_crashes(tmp_path, moments, **SETTINGS):
        assert_same(run, trained)


@pytest.mark.slow
def test_killed_with_mlflow_every_metric_stands_once(trained, tmp_path, empty_store):
    rng = random.Random(2)
    moments = [[rng.randrange(60, 260), rng.randrange(40, 120)] for _ in range(4)]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    for run in run_crashes(tmp_path, moments, mlflow=uri, **SETTINGS):
        assert_same(run, trained)
        series = read_mlflow(run.folder, uri)
        assert [step for step, _ in series["train/loss"]] == list(range(1, STEPS + 1))
        assert [step for step, _ in series["validation/success/patch"]] == [3, 6]


# The command line itself


def start_and_kill(
    folder: Path,
    words: list,
    after: float | int,
    how: int = signal.SIGKILL,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Start a command and end it after some seconds or, if an int, once that step is in the log."""
    process = subprocess.Popen(
        command(*words), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + (after if isinstance(after, float) else 60)
    while time.monotonic() < deadline and process.poll() is None:
        logs = list(folder.glob("runs/*/records.jsonl"))
        if isinstance(after, int) and logs and f'"step": {after},' in logs[0].read_text():
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    meanwhile()
    process.send_signal(signal.SIGCONT)
    process.send_signal(how)
    output = process.communicate()[0].decode()
    assert process.returncode in (-how, 0, 128 + how), output
    return process.returncode


def test_kill_9_and_resume_on_the_command_line(trained, tmp_path, capsys):
    make_study(tmp_path, **SETTINGS)

    def another_process():
        assert main(["resume", str(the_run(tmp_path).folder)]) == 2
        assert capsys.readouterr().err.endswith("written by another process; wait for it, or end it\n")

    code = start_and_kill(tmp_path, ["train", "study.toml"], after=3, meanwhile=another_process)
    assert code == -signal.SIGKILL
    run = the_run(tmp_path)
    assert not (run.folder / "patch").exists()
    assert main(["resume", str(run.folder)]) == 0
    assert_same(run, trained)


@pytest.mark.slow
def test_kill_9_at_random_times_on_the_command_line(tmp_path):
    settings = SETTINGS | {"num_steps": 60, "every": 10, "checkpoint_every": 5}
    whole = train(load_study(make_study(tmp_path / "whole", **settings)))
    folder = make_study(tmp_path / "killed", **settings).parent
    rng = random.Random(3)
    codes = [start_and_kill(folder, ["train", "study.toml"], after=7)]
    for _ in range(4):
        codes.append(start_and_kill(folder, ["resume", the_run(folder).folder], after=rng.uniform(4.0, 9.0)))
    assert codes[0] == -signal.SIGKILL
    done = run_fpatch("resume", the_run(folder).folder, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    run = the_run(folder)
    assert parameters(run) == parameters(whole)
    assert parameters(run, "best") == parameters(whole, "best")
    assert logged_steps(run.folder) == list(range(1, 61))
    assert [e.step for e in read_events(run.folder).Scalars("train/loss")] == list(range(1, 61))


def test_interrupted_by_hand_a_run_says_how_to_go_on(trained, tmp_path, monkeypatch, capsys):
    path = make_study(tmp_path)

    def interrupt(task, done, total, note=""):
        if task == "training" and done == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    study = load_study(path)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(study, interrupt)
    run = the_run(tmp_path)
    assert stop.value.__notes__ == [f"finished steps are kept; resume with: fpatch resume {run.folder}"]
    monkeypatch.setattr("fpatch.runs.training.train", lambda *_: (_ for _ in ()).throw(stop.value))
    assert main(["train", str(path)]) == 130
    assert capsys.readouterr().err == f"fpatch: stopped; {stop.value.__notes__[0]}\n"
    resume(run.folder)
    assert_same(run, trained)


@pytest.mark.slow
def test_ctrl_c_and_sigterm_leave_a_run_that_goes_on(trained, tmp_path):
    for how in (signal.SIGINT, signal.SIGTERM):
        folder = make_study(tmp_path / how.name, **SETTINGS).parent
        assert start_and_kill(folder, ["train", "study.toml"], after=3, how=how) == 128 + how
        run = the_run(folder)
        resume(run.folder)
        assert_same(run, trained)


# Resuming


def test_resuming_a_finished_run_is_harmless(run, trained):
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file() and p.suffix != ".0"}
    resume(run.folder)
    assert_same(run, trained)
    changed = {p.relative_to(run.folder).parts[0] for p, data in before.items() if p.read_bytes() != data}
    assert changed <= {"tensorboard", "records.jsonl", "records.json"}
    assert (run.folder / "checkpoints/last.safetensors").read_bytes() == (
        trained.folder / "checkpoints/last.safetensors"
    ).read_bytes()
    assert replay_run(run.folder)[0].differences == {}
    assert logged_steps(run.folder, "test/success/patch") == [STEPS]


def test_evaluated_in_the_middle_and_resumed(trained, tmp_path):
    def stop(task, done, total, note=""):
        if task == "training" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_study(make_study(tmp_path, **SETTINGS)), stop)
    run = the_run(tmp_path)
    assert logged_steps(run.folder) == [1, 2, 3, 4, 5]
    evaluate_run(run.folder)
    assert logged_steps(run.folder) == [1, 2, 3, 4, 5]  # the state was saved at the stop
    early = run.checkpoint_step("best")
    assert logged_steps(run.folder, "test/success/patch") == [early]  # the step of the patch
    resume(run.folder)
    assert_same(run, trained)
    evaluate_run(run.folder)
    steps = {early, run.checkpoint_step("best")}
    assert logged_steps(run.folder, "test/success/patch") == sorted(steps)
    assert replay_step(run.folder, 5).identical


def test_other_data_are_refused_and_repaired_photographs_said(run, caplog):
    placements = run.folder.parent.parent / "placements.csv"
    before = placements.read_bytes()
    placements.write_bytes(before.replace(b"rear", b"side", 1))
    with pytest.raises(RunError, match="the placements of the data have changed since the run started"):
        resume(run.folder)
    placements.write_bytes(before)
    with (placements.parent / "photograph-11.png").open("ab") as file:
        file.write(b"more")
    resume(run.folder)
    assert "images have changed" in caplog.text


def test_a_resume_recreates_the_number_of_threads(run, monkeypatch, caplog):
    seen = []

    def stop(*arguments, **options):
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr("fpatch.study.setup.make_step", stop)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            resume(run.folder, checkpoint="step-00000002")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1]
    assert caplog.text == ""


def test_another_environment_is_said(run, caplog):
    path = run.folder / "environment.json"
    facts = json.loads(path.read_text())
    facts["execution"]["torch"] = "1.0"
    path.write_text(json.dumps(facts))
    resume(run.folder)
    assert "torch: 1.0 was recorded" in caplog.text


def test_in_a_folder_there_is_one_study(run):
    _, study = open_run(run.folder)
    for settings, said in (
        (
            {"optimizer.learning_rate": 0.2},
            "learning_rate must be 0.1, as when the run started, got 0.2",
        ),
        (
            {"pipeline.affine.angle_deg": [0, 1]},
            r"pipeline.affine.\S+ must be \[-3.0, 3.0\], .* got \[0.0, 1.0\]",
        ),
        (
            {"objective.weights": {"vanish": 1.0}},
            "weights.total_variation must be 0.05, .* got None",
        ),
    ):
        with pytest.raises(RunError, match=said):
            next(train_in(run.folder, vary(study, settings)))


def test_a_setting_that_an_older_version_lacked_has_its_default_in_a_folder(run):
    """It need not be off or None; any other value is refused."""
    _, study = open_run(run.folder)
    config = run.read_json("config.json")
    name, node = next((n, v) for n, v in config["pipeline"].items() if v["stage"] == "implant.warp")
    assert node.pop("angle_deg") == [0.0, 0.0]
    (run.folder / "config.json").write_text(json.dumps(config))
    list(train_in(run.folder, study))
    with pytest.raises(RunError, match=r"angle_deg must be \[0.0, 0.0\], .* got \[0.0, 5.0\]"):
        next(train_in(run.folder, vary(study, {f"pipeline.{name}.angle_deg": [0.0, 5.0]})))


def test_what_changes_last_bits_alone_is_said_in_a_folder_too(run, caplog):
    _, study = open_run(run.folder)
    list(train_in(run.folder, vary(study, {"name": "other", "device": "cpu", "log.runs": "elsewhere"})))
    assert caplog.text == ""
    path = run.folder / "environment.json"
    facts = json.loads(path.read_text())
    facts["execution"]["torch"] = "1.0"
    path.write_text(json.dumps(facts))
    list(train_in(run.folder, vary(study, {"train.micro_batch": 2})))
    assert "torch: 1.0 was recorded" in caplog.text
    assert "train.micro_batch: None was recorded, 2 is here" in caplog.text


def test_a_run_has_one_writer(run):
    with run.locked():
        for refused in (resume, evaluate_run):
            with pytest.raises(RunError, match="is being written by another process"):
                refused(run.folder)
    resume(run.folder)
