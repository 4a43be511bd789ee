"""Somebody else's folder: what it must not make a command do; the table of threats is in SECURITY.md."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from log_stores import local_uri, mlflow_client
from study_fixture import environment

import fpatch
from fpatch import analysis, compose, create, infer, metrics, node, pipeline, tune, viz
from fpatch.cli.main import main
from fpatch.core.files import AppendFile, find_links, write_atomic
from fpatch.core.names import label, show
from fpatch.core.schema import to_toml
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.transfer import Transfer
from fpatch.log import Records, open_log
from fpatch.log.destinations import is_own, remember
from fpatch.log.mlflow_client import make_database
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.transfer import save_transfer
from fpatch.study.settings import EvaluateConfig
from fpatch.tune.folder.journal import Trial
from fpatch.tune.plan import Plan

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A run with a table, a log, figures and TensorBoard; not to be written to."""
    pytest.importorskip("tensorboard")
    run = fpatch.train(tiny_study(tmp_path_factory.mktemp("tiny"), {"log.tensorboard": True}))
    return fpatch.evaluate_run(run.folder)[0]


@pytest.fixture
def received(finished, tmp_path) -> Path:
    """A copy of it, as if somebody had sent it."""
    return Path(shutil.copytree(finished.folder, tmp_path / "received"))


@pytest.fixture
def precious(tmp_path) -> Path:
    """A folder of the user, beside the run."""
    folder = tmp_path / "precious"
    (folder / "deep").mkdir(parents=True)
    (folder / "letter.txt").write_text("keep me")
    (folder / "deep" / "photo.png").write_bytes(b"\x89PNG keep me")
    return folder


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder, and where each link leads."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in paths
    }


def refused(capsys, *words: Any) -> str:
    """The sentence with which a command is refused."""
    code = main(list(map(str, words)))
    sentence = capsys.readouterr().err
    assert code == 2, sentence
    assert sentence.startswith("fpatch: error: ")
    assert "Traceback" not in sentence
    return sentence


# -- links

WRITERS = (("resume",), ("evaluate",), ("grid", "--over", "exposure/stops=0,0.05"), ("analyze",))
PLACES = (
    ".lock", "records.jsonl", "images", "tensorboard", "patch", "patch/tag.png", "checkpoints",
    "figures/test.png", "checkpoints/last.safetensors", "tables/test.csv", "environment.json.tmp",
    "mlflow.json", "new/notes",
)  # fmt: skip


@pytest.mark.parametrize("command", WRITERS, ids=lambda words: words[0])
def test_no_command_writes_through_a_link(received, precious, capsys, command):
    for place in PLACES:
        for target in (precious / "letter.txt", precious, precious / "absent", Path("../precious/deep")):
            link = received / place
            link.parent.mkdir(exist_ok=True)
            before = link.read_bytes() if link.is_file() else None
            kept = shutil.move(link, received.parent / "kept") if link.is_dir() else None
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            outside, inside = contents(precious), contents(received)
            sentence = refused(capsys, command[0], received, *command[1:])
            assert f"{link} is a link" in sentence
            assert (contents(precious), contents(received)) == (outside, inside)
            link.unlink()
            if before is not None:
                link.write_bytes(before)
            if kept is not None:
                shutil.move(kept, link)


def test_a_link_that_stays_inside_is_read_and_not_written_through(received, capsys):
    (received / "newest").symlink_to("checkpoints/last.safetensors")
    assert main(["replay", str(received), "--verify"]) == 0
    assert "is not written to" in refused(capsys, "evaluate", received)
    (received / "newest").unlink()
    (received / "newest").symlink_to("/etc/hostname")
    assert "is not read" in refused(capsys, "replay", received)
    (received / "newest").unlink()
    os.mkfifo(received / "newest")
    assert "no regular file" in refused(capsys, "replay", received)


@pytest.mark.parametrize("name", [".lock", "records.jsonl", "tensorboard"])
def test_a_second_name_of_a_file_is_not_written_to(received, precious, capsys, name):
    path = next((received / name).iterdir()) if name == "tensorboard" else received / name
    letter = precious / "letter.txt"
    letter.write_bytes(path.read_bytes() if path.exists() else b"keep me")
    path.unlink(missing_ok=True)
    os.link(letter, path)
    before = letter.read_bytes()
    assert "regular file" in refused(capsys, "resume", received)
    assert letter.read_bytes() == before


def test_figures_are_not_drawn_into_another_name_of_a_file(received, precious, tmp_path):
    """Neither a second name in the folder nor a link beside it, where `transfer` writes."""
    pytest.importorskip("matplotlib")
    letter = precious / "letter.txt"
    words = ["grid", str(received), "--over", "exposure/stops=0,0.05"]
    twin = Path(shutil.copytree(received, tmp_path / "twin"))
    pair = ["transfer", str(received), str(twin)]
    assert [main(words), main(["evaluate", str(received)]), main(pair)] == [0, 0, 0]
    drawn = [*(received / "figures").glob("*.png"), *tmp_path.glob("transfer*.png")]
    assert {path.name.partition("-")[0] for path in drawn} >= {"test.png", "test", "transfer"}
    for path in drawn:
        path.unlink()
        if path.parent == tmp_path:
            path.symlink_to(letter)
        else:
            os.link(letter, path)
    assert [main(words), main(["evaluate", str(received)]), main(pair)] == [0, 0, 0]
    assert letter.read_text() == "keep me"
    assert all(path.read_bytes()[1:4] == b"PNG" and not path.is_symlink() for path in drawn)


def test_files_are_opened_without_following(tmp_path):
    letter = tmp_path / "letter"
    letter.write_text("keep me")
    for name in ("a", "a.tmp"):
        (tmp_path / name).symlink_to(letter)
    write_atomic(tmp_path / "a", b"new")  # replaces the links themselves
    assert not (tmp_path / "a").is_symlink()
    assert not (tmp_path / "a.tmp").exists()
    (tmp_path / "records.jsonl").symlink_to(letter)
    for mode in ("ab", "wb"):
        with pytest.raises(OSError, match="no link; copy its content"):
            AppendFile(tmp_path / "records.jsonl", mode)
    records = Records(make_folder(tmp_path / "log"))
    (tmp_path / "log" / "x.png").symlink_to(letter)
    records.write_file("x.png", b"new")
    records.close()
    assert letter.read_text() == "keep me"
    assert [path.name for path in find_links(tmp_path)] == ["records.jsonl"]


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("place", ["config.json", "records.jsonl", "tables/test.parquet", "patch/tag.png"])
def test_a_file_that_is_larger_than_the_memory_is_refused(received, capsys, place):
    """A file with holes takes no room on the disk, and hours to read."""
    os.truncate(received / place, 2**43)
    for words in (["replay", received, "--verify"], ["evaluate", received], ["resume", received]):
        assert f"{received / place} is larger than the memory" in refused(capsys, *words)


def test_a_table_of_more_rows_than_the_memory_is_refused(received, capsys, monkeypatch):
    """A Parquet file of a few megabytes may hold a billion rows of one value."""
    monkeypatch.setattr("fpatch.runs.tables.machine_memory", lambda: 1000)  # of a small machine
    sentence = refused(capsys, "analyze", received)
    assert "test.parquet is broken (4 rows of" in sentence
    assert "more than the memory" in sentence


# -- destinations


class Listener:
    """A server that counts the connections to it, and answers none."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


@pytest.fixture
def listener():
    made = Listener()
    yield made
    made.socket.close()


def set_config(folder: Path, **log: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["log"] |= log
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_records_go_to_no_server_that_is_not_named(received, listener, caplog, command, monkeypatch):
    pytest.importorskip("mlflow")
    set_config(received, mlflow=listener.uri)
    assert main([command, str(received)]) == 0
    assert listener.connections == 0
    assert f"you have not named {listener.uri} yourself" in caplog.text
    assert not is_own(listener.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", listener.uri)
    assert main([command, str(received)]) == 0
    assert listener.connections > 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = listener.connections
    assert main([command, str(received), "--mlflow-uri", listener.uri]) == 0
    assert listener.connections > before
    assert is_own(listener.uri)


def test_the_database_beside_a_received_folder_stays_as_it_is(received, runs, caplog):
    pytest.importorskip("mlflow")
    set_config(received, mlflow=True)
    before = (runs / "mlflow.db").read_bytes()
    assert main(["evaluate", str(received)]) == 0
    assert "--mlflow-uri sqlite:///" in caplog.text
    assert (runs / "mlflow.db").read_bytes() == before
    assert sorted(path.name for path in runs.iterdir()) == ["mlflow.db", "received"]


@pytest.mark.parametrize(
    "place", ["http", *(pytest.param(p, marks=pytest.mark.slow) for p in ("file", "link"))]
)
def test_a_database_that_came_with_a_project_sends_nothing_away(tmp_path, caplog, monkeypatch, place):
    """The study names no server; the experiment in the database does, or the database lies elsewhere."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project, precious = make_folder(tmp_path / "project"), make_folder(tmp_path / "precious")
    database = (precious if place == "link" else make_folder(project / "runs")) / "mlflow.db"
    make_database(database)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        theirs = f"http://127.0.0.1:{port}/x" if place == "http" else (precious / "files").as_uri()
        with mlflow_client(local_uri(database.parent)) as client:
            client.create_experiment("fpatch", None if place == "link" else theirs)
        if place == "link":
            make_folder(project / "runs").joinpath("mlflow.db").symlink_to(database)
        before = contents(precious)
        fpatch.train(tiny_study(project, {"log.mlflow": True, "log.runs": str(project / "runs")}))
        with pytest.raises(TimeoutError):
            server.accept()
    if place == "file":  # a project that was moved
        assert f"keeps the files of this run at {precious / 'files'}" in caplog.text
    else:
        said = "is a link, which is not followed" if place == "link" else f"keeps files at {theirs}"
        assert said in caplog.text
        assert "if that is yours, set MLFLOW_TRACKING_URI to sqlite:///" in caplog.text
        assert contents(precious) == before


def test_a_run_of_ones_own_sends_its_records_in_every_command(runs, caplog):
    pytest.importorskip("mlflow")
    run = fpatch.train(tiny_study(make_folder(runs / "own"), {"log.mlflow": True, "log.runs": str(runs)}))
    fpatch.evaluate_run(run.folder)
    assert "not named" not in caplog.text
    with mlflow_client(local_uri(runs)) as client:
        (found,) = client.search_runs(["1"], f"run_name = '{run.folder.name}'")
    assert "test/success/patch" in found.data.metrics


def test_a_destination_is_remembered_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    remember("http://me:secret@127.0.0.1:5000")
    (file,) = (tmp_path / "fpatch" / "destinations").iterdir()
    assert (file.read_bytes(), file.stat().st_mode & 0o077) == (b"", 0)
    assert is_own("http://me:secret@127.0.0.1:5000")
    assert not is_own("http://me:secret@127.0.0.1:5001")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    remember("http://127.0.0.1:5000")  # a home that cannot be written is no error
    assert not is_own("http://127.0.0.1:5000")


@pytest.mark.parametrize(
    ("setting", "destination"),
    [
        ("storage", "s3://somebody/sweeps"),
        ("address", "203.0.113.9:6379"),
        ("mlflow", "http://203.0.113.9:5000"),
    ],
)
def test_a_sweep_is_not_resumed_with_destinations_of_somebody_else(tmp_path, setting, destination):
    pytest.importorskip("ray")
    space = tune.parse_space({"optimizer.learning_rate": (0.02, 0.4)})
    plan = Plan(tiny_study(tmp_path), space, tune.Sweep(num_trials=2))
    config = plan.config
    if setting == "mlflow":
        config["study"]["log"]["mlflow"] = destination
    else:
        config["sweep"][setting] = destination
    journal = tune.Journal.create(tmp_path, "theirs", config)
    before = contents(journal.folder)
    with pytest.raises(
        RunError, match=f"{setting} = '{re.escape(destination)}' was recorded, and you have not"
    ):
        fpatch.resume_sweep(journal.folder)
    assert contents(journal.folder) == before


def test_names_of_trials_stay_in_the_folder(tmp_path):
    journal = tune.Journal.create(tmp_path, "theirs", {})
    for change in ({"name": "../../x"}, {"pack": ["0000", "../x"]}, {"parent": "../../runs/other"}):
        trial = {"name": "0000", "settings": {}, "seed": 1} | change
        (journal.folder / "journal" / "0000.json").write_text(json.dumps(trial))
        with pytest.raises(RunError, match="must be numbers such as 0000"):
            journal.entries()


@pytest.mark.parametrize("place", ["sweep.json", "journal/0000.json", "journal", "trials/0000/config.json"])
def test_no_command_reads_a_sweep_through_a_link(tmp_path, capsys, place):
    plan = Plan(tiny_study(tmp_path), tune.parse_space({"seed": (0, 9, "int")}), tune.Sweep(num_trials=2))
    journal = tune.Journal.create(tmp_path, "theirs", plan.config)
    journal.add(Trial("0000", {"seed": 1}, seed=1))
    link, letter = journal.folder / place, tmp_path / "letter"
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(letter)
    else:
        letter.write_text("{}")
    link.symlink_to(letter)
    for words in (["status"], ["best"], ["export", "--trial", "0000"], ["resume"]):
        sentence = refused(capsys, "sweep", words[0], journal.folder, *words[1:])
        assert f"{link} is a link out of the folder" in sentence


@pytest.mark.parametrize("place", ["sweep.json", "journal/0000.json", "trials/0000/notes.txt", "figures"])
def test_no_sweep_is_fetched_through_a_link(tmp_path, precious, capsys, place):
    """A file of the user would become one of the sweep, which its next resume sends to the store."""
    plan = Plan(tiny_study(tmp_path), tune.parse_space({"seed": (0, 9, "int")}), tune.Sweep(num_trials=2))
    journal = tune.Journal.create(tmp_path / "shared", "theirs", plan.config)
    link = journal.folder / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(precious if place == "figures" else precious / "letter.txt")
    words = ("sweep", "fetch", journal.folder.as_uri(), "--runs", tmp_path / "mine")
    assert f"{link} is a link out of the folder" in refused(capsys, *words)
    assert not (tmp_path / "mine").exists()
    link.unlink()
    if place == "trials/0000/notes.txt":
        assert main([*map(str, words)]) == 0


@pytest.mark.parametrize("value", ["\x1b[2J", [[]], None, True, 1e9, {"low": 0}])
def test_settings_of_a_trial_that_no_search_proposes_are_one_sentence(tmp_path, capsys, value):
    plan = Plan(
        tiny_study(tmp_path),
        tune.parse_space({"optimizer.learning_rate": (0.1, 0.2)}),
        tune.Sweep(num_trials=2),
    )
    journal = tune.Journal.create(tmp_path, "theirs", plan.config)
    trial = {"name": "0000", "settings": {"optimizer.learning_rate": value}, "seed": 1}
    (journal.folder / "journal" / "0000.json").write_text(json.dumps(trial))
    assert "the space does not hold trial 0000" in refused(capsys, "sweep", "resume", journal.folder)


def test_evaluations_that_no_trial_makes_are_not_counted(tmp_path, capsys):
    """An infinite objective would be the best of all."""
    plan = Plan(tiny_study(tmp_path), tune.parse_space({"seed": (0, 9, "int")}), tune.Sweep(num_trials=2))
    journal = tune.Journal.create(tmp_path, "theirs", plan.config)
    journal.add(Trial("0000", {"seed": 1}, seed=1))
    points = journal.folder / "journal" / "0000.points.jsonl"
    points.write_text('[4, "1e999", "0.1"]\n')
    assert np.isnan(journal.entry("0000").value)
    for line in ('[-4, "0.5", "0.1"]', '[4, "0.5", "-0.1"]'):
        points.write_text(f"{line}\n")
        assert "a line must be [step" in refused(capsys, "sweep", "status", journal.folder)
    shutil.rmtree(journal.folder / "journal")
    assert "lacks the folder journal" in refused(capsys, "sweep", "status", journal.folder)


def test_runs_of_mlflow_that_another_folder_made_are_left_alone(runs, tmp_path):
    """`mlflow.json` names the runs of somebody else: none is written to, ended, renamed or deleted."""
    pytest.importorskip("mlflow")
    uri = local_uri(runs)
    with mlflow_client(uri) as client:
        theirs = [client.create_run("0", tags={"fpatch.uid": f"uid-{i}"}).info.run_id for i in range(3)]
    folder = make_folder(tmp_path / "crafted")
    state = {"uid": "mine", "run_id": theirs[0], "offset": 0, "crc32": 0}
    lists: list[Any] = [theirs[1], [theirs[2], "mine"], [theirs[2], None]]
    (folder / "mlflow.json").write_text(json.dumps({**state, "superseded": lists}))
    log = open_log(folder, tensorboard=False, mlflow=uri)
    log.scalars(1, {"loss": 0.5})
    assert log.close() == []
    with mlflow_client(uri) as client:
        for run_id in theirs:
            found = client.get_run(run_id)
            assert (found.info.lifecycle_stage, found.info.status, found.data.metrics) == (
                "active",
                "RUNNING",
                {},
            )
        own = json.loads((folder / "mlflow.json").read_text())["run_id"]
        assert own not in theirs
        assert client.get_run(own).data.metrics == {"loss": 0.5}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"uid": 3}', "\x00"])
def test_a_broken_record_of_mlflow_is_one_sentence(tmp_path, text):
    pytest.importorskip("mlflow")
    (tmp_path / "mlflow.json").write_text(text)
    with pytest.raises(ValueError, match=r"mlflow\.json is broken; remove it"):
        open_log(tmp_path, tensorboard=False, mlflow="http://127.0.0.1:1")


def test_a_deep_folder_is_searched_for_links(tmp_path):
    """Deeper than Python's stack."""
    here = tmp_path
    for _ in range(5):
        here = here / "/".join("d" * 250)
        here.mkdir(parents=True)
    (here / "link").symlink_to("/etc")
    try:
        assert [path.name for path in find_links(tmp_path)] == ["link"]
    finally:  # pytest could not remove it, since shutil follows the folders by Python's stack
        (here / "link").unlink()
        while here != tmp_path:
            here.rmdir()
            here = here.parent


def test_records_that_name_files_elsewhere_upload_none(runs, precious, tmp_path):
    pytest.importorskip("mlflow")
    folder = make_folder(tmp_path / "crafted")
    records = Records(folder)
    records.write(0, "artifacts", {"../precious/letter.txt": 7, str(precious): 7})
    records.write(0, "images", {"x": "../precious/deep/photo.png"})
    records.close()
    log = open_log(folder, tensorboard=False, mlflow=local_uri(runs), resume_step=0)
    (sentence,) = log.close()
    assert "must lie in the run folder" in sentence
    stored = [path for path in (runs / "mlartifacts").rglob("*") if path.is_file()]
    assert all(b"keep me" not in path.read_bytes() for path in stored)
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="must lie in the run folder"):
        open_log(folder, tensorboard=True, resume_step=0)


# -- code

EVIL = 'import pathlib\npathlib.Path("ran").touch()\n'


def run_in(folder: Path, *words: Any, **more: str) -> subprocess.CompletedProcess[str]:
    """Run fpatch as a user does, in a folder that no other setting adds to the modules."""
    given = environment(ROOT, ROOT / "tests" / "support", **more)
    return subprocess.run(
        [sys.executable, "-m", "fpatch", *map(str, words)],
        cwd=folder,
        env=given,
        capture_output=True,
        text=True,
    )


def test_modules_beside_the_files_of_score_do_not_run(tmp_path):
    pytest.importorskip("faster_coco_eval")
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    truth = {"images": [{"id": 1, "width": 20, "height": 20}], "categories": [{"id": 1, "name": "car"}]}
    truth["annotations"] = [box | {"id": 1, "area": 81, "iscrowd": 0}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([box | {"score": 0.9}]))
    for name in ("torchmetrics", "numpy", "torch", "rich", "json", "argparse", "faster_coco_eval", "rich_"):
        (tmp_path / f"{name}.py").write_text(EVIL)
    done = run_in(tmp_path, "score", "truth.json", "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()


def test_installed_modules_come_before_those_beside_a_study(tmp_path):
    tiny_study(tmp_path)
    text = (tmp_path / "study.toml").read_text()
    own = text.replace("demo.brightness", "my_victims:dark").replace("[log]", "[log]\nruns = 'runs'")
    (tmp_path / "study.toml").write_text(own)
    for name in ("numpy", "torch", "tomllib"):
        (tmp_path / f"{name}.py").write_text(EVIL)
    (tmp_path / "my_victims.py").write_text(
        "import fpatch\nfrom fpatch.demo.tiny import load_brightness\n"
        "def make():\n    return load_brightness()\n"
        'dark = fpatch.define_loader("dark", make)\n'
    )
    done = run_in(tmp_path, "train", "study.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_no_code_in_a_run_folder_is_imported(received, tmp_path):
    """Not by an id in its config, from its parent, from inside, or as a package that is not installed."""
    package = shutil.copytree(received, tmp_path / "absent_package")
    for folder in (received, package):
        config = json.loads((folder / "config.json").read_text())
        config["pipeline"]["victim"]["model"]["loader"] = f"{folder.name}.stages:dark"
        (folder / "config.json").write_text(json.dumps(config))
        for name in ("stages", "__init__", "numpy", "torch"):
            (folder / f"{name}.py").write_text(f"{EVIL}{EVIL.replace('ran', str(tmp_path / 'ran'))}")
    for where in (tmp_path, received, received / "tables"):
        command = "replay" if where == received else "evaluate"
        done = run_in(where, command, received)
        assert "cannot be imported" in done.stderr, done.stdout
        assert not list(tmp_path.rglob("ran"))
    for name in ("numpy", "torch"):
        (received / f"{name}.py").unlink()
    done = run_in(tmp_path, "evaluate", received, PYTHONPATH=f"{ROOT}:{received}")
    assert "Python searches" in done.stderr
    code = (
        "import sys, fpatch; fpatch.replay_run(sys.argv[1])"  # Python itself searches the working folder here
    )
    words = [sys.executable, "-c", code, str(package)]
    done = subprocess.run(words, cwd=tmp_path, env=environment(ROOT), capture_output=True, text=True)
    assert "cannot be imported" in done.stderr
    assert not list(tmp_path.rglob("ran"))


def test_a_run_of_ones_own_opens_from_inside_its_folder(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "runs" / "own")
    done = run_in(folder, "replay", ".", "--verify")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["BERTScore", "InfoLM", "CLIPScore", "CLIPImageQualityAssessment"])
def test_a_metric_runs_no_code_from_the_folder_that_it_names(tmp_path, name):
    """Networks for texts are loaded by a library that asks whether to run the code in the folder."""
    pytest.importorskip("torchmetrics.multimodal")
    folder = make_folder(tmp_path / "jinaai-network")
    classes = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": classes}))
    (folder / "evil.py").write_text(EVIL.replace("ran", str(tmp_path / "ran")))
    with pytest.raises(ValueError, match=f"torchmetrics has no metric '{name}'"):
        _ = metrics.torchmetrics(name=name, model_name_or_path=str(folder)).value
    assert not (tmp_path / "ran").exists()


CODE = {
    "a kernel": {"attn_implementation": "somebody/kernel"},
    "a kernel of a part": {
        "attn_implementation": {"backbone_config": "somebody/kernel"},
        "backbone_config": {"model_type": "resnet"},
        "use_timm_backbone": False,
    },
    "one fetched if it is missing": {"_attn_implementation": "flash_attention_2"},
    "experts": {"experts_implementation": "somebody/kernel"},
    "quantized": {"quantization_config": {"quant_method": "mxfp4"}},
}


@pytest.mark.parametrize("what", [*CODE, "an adapter"])
def test_configs_of_hugging_face_run_no_code(tmp_path, what):
    """transformers fetches and runs the compiled code that a config names, if `kernels` is installed."""
    pytest.importorskip("transformers", exc_type=ImportError)
    if what == "an adapter":
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/other"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    kind = "detr" if what == "a kernel of a part" else "yolos"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | CODE.get(what, {})))
    with pytest.raises(ValueError, match=r"no code of a checkpoint is run|merge the adapter"):
        _ = infer.transformers_model(tmp_path / "model.safetensors").value


DESCRIPTION = """
nc: 4
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[2], 1, Detect, [nc]]
"""
RAN = "__import__('pathlib').Path('ran').touch()"
EVIL_DESCRIPTIONS = {
    "flow": f'{{"activation": "{RAN}", nc: 4, backbone: [[-1, 1, Conv, [8]]], head: []}}',
    "escaped key": f'"\\x61ctivation": "{RAN}"{DESCRIPTION}',
    "block scalar": f"activation: |\n  {RAN}{DESCRIPTION}",
    "anchor": f'x: &a "{RAN}"\nactivation: *a{DESCRIPTION}',
    "merge": f'x: &a {{activation: "{RAN}"}}\n<<: *a{DESCRIPTION}',
    "tag": f"x: !!python/object/apply:os.system ['touch ran']{DESCRIPTION}",
    "nested call": f'activation: "nn.ReLU({RAN})"{DESCRIPTION}',
    "function": DESCRIPTION.replace("Conv, [16, 3, 2]", "torch_load, ['evil.pt']", 1),
    "download": DESCRIPTION.replace("Conv, [16, 3, 2]", "TorchVision, [16, resnet18, DEFAULT]", 1),
    "module of torch": DESCRIPTION.replace("Conv, [16, 3, 2]", "nn.Module, []", 1),
    "mapping": DESCRIPTION.replace("[8, 3, 2]", "[{a: 1}]"),
    "no list": DESCRIPTION.replace("[-1, 1, Conv, [8, 3, 2]]", "Conv"),
    "empty": "",
    "list": "- 1",
    "deep": "[" * 5000,
}


@pytest.mark.parametrize("kind", EVIL_DESCRIPTIONS)
def test_descriptions_of_networks_run_no_code(tmp_path, monkeypatch, kind):
    pytest.importorskip("ultralytics", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(EVIL_DESCRIPTIONS[kind])
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        _ = infer.ultralytics_model(architecture="mine.yaml").value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def test_the_description_that_was_checked_is_the_one_that_is_built(tmp_path, monkeypatch):
    """A size in the name means a file of the family, which Ultralytics would read without a check."""
    pytest.importorskip("ultralytics", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolo11n.yaml").write_text(DESCRIPTION)
    (tmp_path / "yolo11.yaml").write_text(f'activation: "{RAN}"{DESCRIPTION}')
    model = infer.ultralytics_model(architecture="yolo11n.yaml").value
    assert [type(layer).__name__ for layer in model.model] == ["Conv", "Conv", "Conv", "Detect"]
    (tmp_path / "yolo11n.yaml").unlink()
    with pytest.raises(ValueError, match=r"yolo11\.yaml: activation"):
        _ = infer.ultralytics_model(architecture="yolo11n.yaml").value
    assert not (tmp_path / "ran").exists()
    activation = f"activation: torch.nn.LeakyReLU(0.1, inplace=True){DESCRIPTION}"
    (tmp_path / "mine.yaml").write_text(activation)
    model = infer.ultralytics_model(architecture="mine.yaml").value
    assert type(model.model[0].act).__name__ == "LeakyReLU"


CONNECT = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))
"""
LOCAL = """
import os, stat, subprocess, sys
from types import SimpleNamespace
from fpatch.tune.trials.ray_cluster import connected

sweep = SimpleNamespace(address=None, processes=1, cpus=1, gpus=0)
with connected(SimpleNamespace(sweep=sweep)) as ray:
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    print([oct(stat.S_IMODE(os.stat(path).st_mode)) for path in (token, os.path.dirname(token))])
    address = ray.get_runtime_context().gcs_address
    none = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    for env in (os.environ, none | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        command = [sys.executable, "-c", sys.argv[1], address]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        print(done.returncode, done.stdout.strip())
print([name for name in os.environ if name.startswith("RAY_AUTH")])
print(token)
"""


@pytest.mark.slow
def test_ray_of_a_local_sweep_asks_for_a_token(tmp_path):
    pytest.importorskip("ray")
    given = {name: value for name, value in environment(ROOT).items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", LOCAL, CONNECT]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True)
    *lines, token = done.stdout.splitlines()
    assert lines == ["['0o600', '0o700']", "0 1", "1 ", "[]"], done.stdout + done.stderr[-2000:]
    assert not Path(token).exists()


def test_versions_of_ray_without_tokens_are_excluded():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'"ray\[tune\]>=2\.(\d+)', text)[1] >= "52"  # type: ignore[index]


# -- names

BAD_NAMES = (
    "../../x", ".", "..", "", " ", "a/b", "a\\b", "/etc", "a\nb", "a\x1b[2J", "\u202eb", "\ud800", "con",
    "COM1.png", "nul", "x" * 201, "é" * 101, " a", "a.",
)  # fmt: skip
SAME_NAMES = (("a:b", "a_b"), ("Hood", "hood"), ("\u212b", "\u00c5"))
PARAMETERIZATIONS = {
    "pixels": lambda names: create.pixels(dict.fromkeys(names, (3, 4, 4))),
    "tanh": lambda names: create.tanh(dict.fromkeys(names, (3, 4, 4))),
    "fourier": lambda names: create.fourier(dict.fromkeys(names, (3, 4, 4))),
    "palette": lambda names: create.palette(dict.fromkeys(names, (4, 4)), colors=((0.0,) * 3, (1.0,) * 3)),
}


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_names_of_patches_are_checked_when_the_stage_is_made(kind):
    make = PARAMETERIZATIONS[kind]
    assert make(["left door", "hood-2", "Motorhaube ä", "a:b"]).config.names[0] == "left door"
    for name in BAD_NAMES:
        with pytest.raises(ValueError, match=rf"{kind}\(.*\): the name"):
            make([name])
    for names in SAME_NAMES:
        with pytest.raises(ValueError, match="would be one file, or one key of a log; rename one"):
            make(names)


def test_names_of_controls_nodes_and_studies_are_checked_when_they_are_made(tmp_path):
    study = tiny_study(tmp_path)
    for name in BAD_NAMES:
        with pytest.raises(ValueError, match=r"evaluate.controls: the name"):
            EvaluateConfig(controls={name: "0.png"})
        with pytest.raises(ValueError, match="name: the name"):
            dataclasses.replace(study, name=name)
    for names in SAME_NAMES:
        with pytest.raises(ValueError, match="would be one file"):
            EvaluateConfig(controls=dict.fromkeys(names, "0.png"))
        with pytest.raises(ValueError, match="would be one file"):
            pipeline({name: compose.exposure() for name in names})
    with pytest.raises(ValueError, match="a control cannot be called 'Noise'"):
        EvaluateConfig(controls={"Noise": "0.png"})
    with pytest.raises(ValueError, match="no name of a node"):
        pipeline({"a\x1b[2J": compose.exposure()})
    with pytest.raises(ValueError, match="the patches of the parameterizations: 'tag' and 'TAG'"):
        pipeline({"a": create.pixels({"tag": (3, 4, 4)}), "b": create.tanh({"TAG": (3, 4, 4)})})


def test_metrics_that_would_be_one_key_are_refused_before_a_folder_is_made(tmp_path):
    study = tiny_study(tmp_path)
    renamed = {
        f"twin{i}": node(
            metrics.class_hit(),
            phases="eval",
            writes=(f"f/{name}", f"confidence{i}", f"answer{i}", f"label{i}"),
        )
        for i, name in enumerate(("a:b", "a_b"))
    }
    with pytest.raises(ValueError, match=r"'f/a:b(/.*)?' and 'f/a_b(/.*)?' would be one key of a log"):
        fpatch.train(dataclasses.replace(study, pipeline=study.pipeline | renamed))
    assert not list(tmp_path.glob("*-lamp"))


def test_names_of_tables_and_checkpoints_stay_in_the_folder(received, precious):
    with pytest.raises(ValueError, match=r"'\.\./\.\./precious/x'"):
        fpatch.evaluate_run(received, checkpoint="../../precious/x")
    with pytest.raises(ValueError, match=r"'\.\./records'"):
        fpatch.replay_run(received, table="../records")


# -- the terminal

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[red][/]:boom:"


def test_names_are_shown_and_not_run(capsys, tmp_path, monkeypatch):
    """Every command on files whose names and texts hold control codes and markup."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / f"study {ESCAPES.replace('/', '')}"
    folder.mkdir()
    tiny_study(folder)
    text = (folder / "study.toml").read_text()
    classes = f'classes = ["lamp {json.dumps(ESCAPES)[1:-1]}"'
    (folder / "study.toml").write_text(text.replace('classes = ["lamp"', classes))
    objects = (folder / "objects.csv").read_text().replace("lamp", f"lamp {ESCAPES}")
    (folder / "objects.csv").write_text(objects)
    run = fpatch.train(fpatch.load_study(folder / "study.toml", {"log.runs": str(folder)}))
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    truth: dict[str, Any] = {"images": [{"id": 1, "width": 20, "height": 20}]}
    truth |= {"categories": [{"id": 1, "name": ESCAPES}]}
    truth |= {"annotations": [box | {"id": 1, "area": 81, "iscrowd": 0}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps([box | {"score": 0.9}]))
    capsys.readouterr()
    commands = (
        ("describe", folder / "study.toml"),
        ("describe", folder / "study.toml", "--mermaid"),
        ("doctor", folder / "study.toml"),
        ("train", folder / "study.toml"),
        ("score", folder / "truth.json", folder / "found.json"),
        ("evaluate", run.folder),
        ("evaluate", run.folder, "--checkpoint", ESCAPES),
        ("replay", run.folder, "--verify"),
        ("replay", run.folder, "--table", ESCAPES),
        ("analyze", run.folder),
        ("sweep", folder / f"{ESCAPES}.toml"),
        ("transfer", run.folder, run.folder),
    )
    for words in commands:
        main(list(map(str, words)))
        out, err = capsys.readouterr()
        assert show(out + err) == out + err, words
        assert "\\x1b" in out + err or words[0] not in ("score", "evaluate", "sweep"), words
        assert "\U0001f4a5" not in out, "an emoji of markup"


def test_what_the_console_shows_is_what_was_given(capsys):
    from fpatch.cli.console import say

    say("a\tb \x1b[31m [red]x[/red] \udc80 \u202e é 日本 ok")
    assert capsys.readouterr().out == "a       b \\x1b[31m [red]x[/red] \\udc80 \\u202e é 日本 ok\n"


def test_an_exported_study_has_no_control_codes_and_reads_back():
    text = to_toml({"name": ESCAPES})
    assert show(text) == text
    assert tomllib.loads(text)["name"] == ESCAPES


def test_a_page_and_a_diagram_run_no_name(tmp_path):
    name = '</script><img src=x onerror="alert(1)">'
    table = {"image_id": np.array([0, 1]), f"sample/{name}/px": np.array([0.5, 2.0])}
    table |= {"found/patch": np.array([False, True]), "found/delta": np.array([-1.0, 0.0])}
    analysis.scatter(table | {"path": np.array([name, name])}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in page
    assert "Content-Security-Policy" in page
    drawn = pipeline({'a"b<script>': compose.exposure()}).mermaid()
    assert "<script>" not in drawn
    assert drawn.count('"') % 2 == 0


def test_a_figure_shows_a_formula_as_text(tmp_path):
    """matplotlib fails on a formula that it cannot read, and would end the evaluation."""
    pytest.importorskip("matplotlib")
    name = r"a$\frac$ \x1b"
    assert label(name) == r"a\$\frac\$ \x1b"
    batch = {"image": torch.full((1, 3, 16, 32), 0.5), "boxes": torch.tensor([[[4.0, 4.0, 20.0, 12.0]]])}
    viz.plot_boxes(tmp_path / "boxes.png", batch | {"labels": torch.tensor([[0]])}, class_names=(name,))
    rate = metrics.Rate(0.4, 0.3, 0.5, 40, 40)
    found = Transfer({name: {name: rate}}, {name: rate}, {})
    save_transfer(tmp_path / "transfer", found)
    assert {path.name for path in tmp_path.iterdir()} == {"boxes.png", "transfer.json", "transfer.png"}


def test_each_threat_of_the_page_has_its_test():
    rows = re.findall(r"\| `(\w+)` \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    assert [name for name in rows if f"test_{name}" not in globals()] == []
