"""Commands as processes of their own: output that nobody takes, and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from log_stores import local_uri, mlflow_client
from study_fixture import environment

from fpatch.cli.main import main
from fpatch.demo.tiny import tiny_study
from fpatch.runs.folder import Run
from fpatch.runs.tables import encode_table
from fpatch.runs.training import train

ENDLESS = (
    "--train.num_steps",
    "1000000",
    "--evaluate.every",
    "1000000",
    "--train.checkpoint_every",
    "1000000",
)


def start(*words: object, cwd: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "fpatch", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True, **options)


def end(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code, and standard error."""
    said = process.communicate()[1]
    return process.returncode, said


def without_reader() -> int:
    """The writing end of a pipe that nobody reads, as after `head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.fixture
def study(tmp_path) -> Path:
    tiny_study(tmp_path)
    return tmp_path / "study.toml"


def only_run(folder: Path) -> Run:
    (found,) = folder.glob("*-lamp")
    return Run.open(found)


# Output


def test_training_goes_on_without_a_reader(study):
    process = start(
        "train", study, "--log.runs", study.parent / "runs", cwd=study.parent, stdout=without_reader()
    )
    assert end(process) == (0, "")
    assert only_run(study.parent / "runs").checkpoint_steps() == [0, 4]


def test_training_goes_on_with_a_full_disk_for_its_output(study):
    with open("/dev/full", "w") as full:
        process = start("train", study, "--log.runs", study.parent / "runs", cwd=study.parent, stdout=full)
        code, said = end(process)
    assert (code, said) == (0, "fpatch: the output could not be written (No space left on device)\n")
    assert only_run(study.parent / "runs").checkpoint_steps() == [0, 4]


def test_closed_standard_files_are_no_files_of_the_run(study):
    """A file that is opened next would get number 1, and with it what C libraries print."""
    code = "import sys, os; from fpatch.cli.process import lasting_output\nwith lasting_output():\n"
    code += "    file = open('next', 'w'); os.write(1, b'text of a library'); print('text')\n"
    code += "    assert file.fileno() > 2"
    script = f'{sys.executable} -c "$CODE" >&- 2>&- <&-'
    ended = subprocess.run(
        ["sh", "-c", script], cwd=study.parent, env={**os.environ, "CODE": code}, check=False
    )
    assert ended.returncode == 0
    assert (study.parent / "next").read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1:strict", marks=pytest.mark.slow)])
def test_characters_that_the_encoding_of_the_output_lacks_are_escapes(study, encoding):
    runs = study.parent / "Läufe \u65e5"
    given = {**os.environ, "PYTHONIOENCODING": encoding}
    with open(study.parent / "said", "wb") as said:
        process = start("train", study, "--log.runs", runs, cwd=study.parent, stdout=said, env=given)
    assert end(process) == (0, "")
    assert rb"\u65e5" in (study.parent / "said").read_bytes()
    assert only_run(runs).checkpoint_steps() == [0, 4]


@pytest.mark.parametrize("words", [("describe", "study.toml"), ("demo", "--quick"), ("score", "a", "b")])
def test_a_working_folder_that_was_removed_is_one_sentence(tmp_path, words):
    here = tmp_path / "here"
    here.mkdir()
    process = start(*words, cwd=here, preexec_fn=here.rmdir)
    code, said = end(process)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("fpatch: error: ")


def test_commands_that_only_print(study):
    assert end(start("describe", study, cwd=study.parent, stdout=without_reader())) == (0, "")
    with open("/dev/full", "w") as full:
        code, said = end(start("describe", study, cwd=study.parent, stdout=full))
    assert (code, said) == (1, "fpatch: the output could not be written (No space left on device)\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "resume", "grid", "demo"])
def test_every_command_ends_its_work_without_a_reader(study, command):
    run = train(study.parent and tiny_study(study.parent, {"log.runs": str(study.parent / "runs")}))
    words = {
        "evaluate": ("evaluate", run.folder),
        "resume": ("resume", run.folder),
        "grid": ("grid", run.folder, "--over", "exposure/stops=-0.05:0.05:2"),
        "demo": ("demo", "--quick", "--runs", study.parent / "demo"),
    }[command]
    assert end(start(*words, cwd=study.parent, stdout=without_reader()))[0] == 0
    left = {"evaluate": "tables/test.csv", "resume": "patch", "grid": "figures"}.get(command)
    assert left is None or (run.folder / left).exists()
    assert command != "demo" or list(study.parent.glob("demo/*/figures/demo.png"))


# Signals


def stop_when(
    process: subprocess.Popen, ready: Callable[[], bool], number: int = signal.SIGTERM
) -> tuple[int, str]:
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    return end(process)


def records(runs: Path) -> list[dict]:
    """The records of the one run in a folder."""
    lines = [line for path in runs.glob("*/records.jsonl") for line in path.read_text().splitlines(True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize(("number", "mlflow"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_stopped_training_is_saved(study, tmp_path, empty_store, number, mlflow):
    runs, temporary = tmp_path / "runs", tmp_path / "temporary"
    for folder in (runs, temporary):
        folder.mkdir()
    (runs / "mlflow.db").write_bytes(empty_store.read_bytes())
    words = ("train", study, "--log.runs", runs, "--log.mlflow", str(mlflow).lower(), *ENDLESS)
    environment = {**os.environ, "TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    process = start(*words, cwd=tmp_path, stdout=subprocess.DEVNULL, env=environment)
    code, said = stop_when(process, lambda: len(records(runs)) > 20, number)
    name = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "stopped"}[number]
    run = only_run(runs)
    assert code == 128 + number
    assert said == f"fpatch: {name}; finished steps are kept; resume with: fpatch resume {run.folder}\n"
    assert run.checkpoint_step("last") == records(runs)[-1]["step"] > 0
    assert not list(temporary.glob("tmp*"))
    assert (run.folder / "patch/tag.png").is_file()
    if mlflow:
        assert len(list(runs.glob("mlartifacts/**/patch/tag.png"))) == 1
        with mlflow_client(local_uri(runs)) as client:
            found = client.get_run(json.loads((run.folder / "mlflow.json").read_text())["run_id"])
        assert found.info.status == "KILLED"


def test_a_second_signal_ends_at_once_and_a_double_one_does_not(tmp_path):
    """`timeout` sends its signal to the process and to its group: that is one stop."""
    code = """
import time
from fpatch.cli.process import stopped_by_signals
with stopped_by_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("saved", flush=True)
        time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.stdout.readline() == "saved\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray takes minutes to start on a busy machine
@pytest.mark.parametrize("command", ["evaluate", "grid", "demo", "sweep"])
def test_every_command_stops_in_order(study, tmp_path, command):
    runs = tmp_path / "runs"
    run = train(tiny_study(tmp_path, {"log.runs": str(runs)}))
    sweep = tmp_path / "sweep.toml"
    space = "[space.optimizer]\nlearning_rate = {low = 0.1, high = 0.2}\n"
    space += "[sweep]\nnum_trials = 2\nsearch = 'random'\n"
    sweep.write_text(f"{study.read_text().replace('mlflow = false', 'mlflow = true')}\n{space}")
    words: tuple = {
        "evaluate": ("evaluate", run.folder, "--evaluate.num_draws", "100000"),
        "grid": ("grid", run.folder, "--over", "exposure/stops=-0.05:0.05:9999"),
        "demo": ("demo", "--quick", "--runs", tmp_path / "demo"),
        "sweep": ("sweep", sweep, "--log.runs", tmp_path / "sweeps", *ENDLESS),
    }[command]
    before = sorted(tmp_path.rglob("*"))
    process = start(*words, cwd=tmp_path, stdout=subprocess.PIPE)

    def ready() -> bool:
        if command == "sweep":
            trials = tmp_path.glob("sweeps/*/trials/*/mlflow.json")
            return any(begins(trial.parent) for trial in trials)
        return (command == "demo" and any(tmp_path.glob("demo/*"))) or time.monotonic() > begun + 40

    def begins(trial: Path) -> bool:
        """Whether a trial has done steps, and MLflow has a run of it."""
        in_mlflow = json.loads((trial / "mlflow.json").read_text())["run_id"] is not None
        return in_mlflow and len((trial / "records.jsonl").read_text().splitlines()) > 20

    begun = time.monotonic()
    code, said = stop_when(process, ready)
    assert code == 128 + signal.SIGTERM
    assert said.splitlines()[-1].startswith("fpatch: stopped by SIGTERM")
    if command in ("evaluate", "grid"):
        assert sorted(tmp_path.rglob("*")) == before
    if command == "sweep":
        with mlflow_client(f"sqlite:///{tmp_path}/sweeps/mlflow.db") as client:
            found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert len(found) >= 2
        assert {r.info.status for r in found} == {"KILLED"}


LOST = """
import sys
from pathlib import Path
from fpatch.runs.tables import _read_table

try:
    _read_table(Path(sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_a_stop_while_a_library_imports_another_is_not_lost(tmp_path):
    """pyarrow imports pandas at its first column; Cython would print the exception and go on."""
    table = tmp_path / "table.parquet"
    table.write_bytes(encode_table("", {"a": np.ones(3)})["parquet"])
    (tmp_path / "pandas.py").write_text("raise KeyboardInterrupt\n")
    settings = {"env": environment(tmp_path), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", LOST, str(table)], **settings)
    assert done.returncode == 7, done.stderr


def test_a_stop_that_a_library_has_wrapped_is_a_stop(monkeypatch, capsys):
    def wrapped():
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr("fpatch.cli.main._working_folder", wrapped)
    assert main(["describe", "study.toml"]) == 130
    assert capsys.readouterr().err == "fpatch: stopped\n"
