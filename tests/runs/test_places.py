"""A project can be moved, and a run folder sent alone: its data are found, or asked for in one sentence."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from study_fixture import STEPS, make_study, parameters

from fpatch.cli.main import main
from fpatch.core.files import file_digest
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.opening import open_run
from fpatch.runs.places import Places, to_relative
from fpatch.runs.replaying import replay_run, replay_step
from fpatch.runs.training import resume, train, train_in
from fpatch.runs.verifying import verify_run
from fpatch.study.config import load_study
from fpatch.tune import Journal, Sweep, parse_space, read_plan
from fpatch.tune.plan import Plan


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    """A run with a table, in a project with a control, whose first folder is gone."""
    first, second = (tmp_path_factory.mktemp(name) / "project" for name in ("first", "second"))
    study = make_study(first)
    poster = {"evaluate.controls": {"poster": str(first / "photograph-00.png")}}
    run = train(load_study(study, poster))
    evaluate_run(run.folder)
    first.rename(second)
    return Run(second / run.folder.relative_to(first))


@pytest.fixture
def sent(made, tmp_path) -> Iterator[tuple[Run, Path]]:
    """A copy of the run folder alone, and a folder of its data elsewhere."""
    project = made.folder.parent.parent
    run, data = tmp_path / "inbox" / made.folder.name, tmp_path / "disk/data"
    shutil.copytree(made.folder, run)
    data.mkdir(parents=True)
    for path in [*project.glob("*.png"), *project.glob("*.csv"), *project.glob("*.safetensors")]:
        shutil.copy(path, data)
    away = project.with_name("away")
    project.rename(away)  # nothing is found by accident
    yield Run(run), data
    away.rename(project)


def test_a_moved_project_is_opened_evaluated_verified_and_resumed(made, caplog):
    before = {p.name: p.read_bytes() for p in (made.folder / "tables").iterdir()}
    assert verify_run(made.folder).is_proved
    evaluate_run(made.folder)
    after = {p.name: p.read_bytes() for p in (made.folder / "tables").iterdir()}
    assert after == before, "tables hold no path of the machine"
    assert replay_step(made.folder, 5).identical
    assert resume(made.folder).checkpoint_step("last") == STEPS
    assert not said(caplog)


def test_paths_are_recorded_from_the_run_folder(made):
    config = made.read_json("config.json")
    assert config["data"]["placements"] == "../../placements.csv"
    assert config["pipeline"]["victim"]["model"]["weights"] == "../../tiny.safetensors"
    assert config["evaluate"]["controls"]["poster"]["weights"] == "../../photograph-00.png"
    first = json.loads((made.folder / "records.jsonl").read_text().splitlines()[0])["values"]
    assert first["data.placements"] == "../../placements.csv"
    assert set(made.load_table("test")["path"]) == {f"photograph-{i:02d}.png" for i in range(8, 12)}


def test_a_moved_run_is_resumed_to_the_same_bits(tmp_path, caplog):
    whole = train(load_study(make_study(tmp_path / "whole")))
    folder = tmp_path / "old/runs/stopped"
    for _ in train_in(folder, load_study(make_study(tmp_path / "old")), until=2):
        pass
    (tmp_path / "old").rename(tmp_path / "new")
    resumed = resume(tmp_path / "new/runs/stopped")
    assert parameters(resumed) == parameters(whole)
    again = resumed.folder.with_name("stopped")
    for _ in train_in(again, load_study(tmp_path / "new/study.toml")):
        pass
    assert not said(caplog)


def test_a_changed_copy_of_a_project_reads_its_own_files(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made.folder.parent.parent, copy)
    places = Places(copy / "runs" / made.folder.name, str(made.folder), None)
    (copy / "placements.csv").write_text("other")
    right = made.read_json("environment.json")["data"]["placements"]
    assert places.find("../../placements.csv", right) == str(copy / "placements.csv")


def test_a_run_folder_that_moves_alone_still_finds_the_data_of_its_project(made, tmp_path):
    elsewhere = tmp_path / "archive/2026" / made.folder.name
    project = made.folder.parent.parent
    shutil.copytree(made.folder, elsewhere)
    facts = json.loads((elsewhere / "environment.json").read_bytes())
    places = Places(elsewhere, str(made.folder), None)
    assert places.find("../../placements.csv", facts["data"]["placements"]) == str(project / "placements.csv")


def test_a_sent_run_is_evaluated_verified_and_resumed_with_a_data_root(sent, caplog):
    run, data = sent
    assert verify_run(run.folder, data_root=data).is_proved
    before = run.load_table("test")
    evaluate_run(run.folder, data_root=data)
    assert all((before[n] == c).all() for n, c in run.load_table("test").items())
    result, differences = replay_run(run.folder, data_root=data)
    assert not result.differences
    assert not differences
    assert replay_step(run.folder, 5, data_root=data).identical
    assert resume(run.folder, data_root=data).checkpoint_step("last") == STEPS
    assert not said(caplog)


def fails(capsys, *words: object) -> str:
    """The one sentence of a command that ends with wrong input."""
    assert main([str(word) for word in words]) == 2
    _, sentence = capsys.readouterr()
    assert sentence.count("\n") == 1, sentence
    return sentence


@pytest.mark.parametrize("command", ["evaluate", "replay", "resume", "grid", "transfer", "matrix"])
def test_a_sent_run_without_its_data_asks_for_them_in_one_sentence(sent, command, capsys):
    run, _ = sent
    more: tuple[object, ...] = ("--over", "camera/exposure/stops=0,1") if command == "grid" else ()
    if command == "matrix":
        more = ("--defense", "defend.median")
    if command == "transfer":
        more = (shutil.copytree(run.folder, run.folder.with_name("other")),)
    sentence = fails(capsys, command, run.folder, *more)
    assert "placements.csv: no such file" in sentence
    assert "--data.root DIR" in sentence


def test_a_wrong_folder_of_data_is_named_in_one_sentence(sent, capsys):
    run, data = sent
    assert "no such folder" in fails(capsys, "evaluate", run.folder, "--data.root", data / "nothing")
    assert "no such file" in fails(capsys, "evaluate", run.folder, "--data.root", run.folder / "patch")
    assert main(["replay", str(run.folder), "--verify"]) == 1
    assert "--data.root DIR" in capsys.readouterr().out
    for image in data.glob("*.png"):
        image.unlink()
    sentence = fails(capsys, "evaluate", run.folder, "--data.root", data)
    assert "none of its 12 images is there" in sentence
    assert "--data.root DIR" in sentence


def test_other_data_in_the_named_folder_are_noticed(sent, caplog):
    run, data = sent
    shutil.copy(data / "photograph-11.png", data / "photograph-10.png")
    path = data / "objects.csv"
    path.write_text(path.read_text().replace("vehicle", "truck"))
    found = verify_run(run.folder, data_root=data)
    assert not found.is_proved
    assert any("photograph-10.png" in s for s in found.differences)
    assert any("objects.csv is not the recorded one" in s for s in found.differences)
    evaluate_run(run.folder, data_root=data)
    assert any("photograph-10.png" in s for s in said(caplog))


def test_weights_in_the_named_folder_are_known_by_their_digest(sent):
    run, data = sent
    (data / "tiny.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"tiny\.safetensors has changed"):
        evaluate_run(run.folder, data_root=data)
    (data / "models").mkdir()
    (data / "models/tiny.safetensors").write_bytes(b"another")
    places = Places(run.folder, None, data)
    right = file_digest(data / "models/tiny.safetensors")
    assert places.find("/gone/models/tiny.safetensors", right) == str(data / "models/tiny.safetensors")
    assert places.find("/gone/models/tiny.safetensors", file_digest(data / "tiny.safetensors")) == str(
        data / "tiny.safetensors"
    )


def test_tables_with_absolute_paths_of_images_are_read_elsewhere(sent):
    run, data = sent
    path = data / "placements.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    rows[1:] = [[f"/home/a/data/{row[0]}", *row[1:]] for row in rows[1:]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    _, study = open_run(run.folder, data_root=data)
    assert study.data.open().paths[0] == data / "photograph-00.png"


def test_a_named_root_of_images_alone_keeps_the_tables(made, tmp_path):
    project = made.folder.parent.parent
    for image in project.glob("*.png"):
        shutil.copy(image, tmp_path)
    _, study = open_run(made.folder, data_root=tmp_path)
    assert study.data.placements == str(project / "placements.csv")
    assert study.data.open().paths[0] == tmp_path / "photograph-00.png"
    assert verify_run(made.folder, data_root=tmp_path).is_proved


def test_a_folder_with_absolute_paths_still_opens(made, tmp_path):
    project = made.folder.parent.parent
    old = Run(tmp_path / made.folder.name)
    shutil.copytree(made.folder, old.folder)
    config = json.loads((made.folder / "config.json").read_text().replace('"../../', f'"{project}/'))
    old.write_config(config)
    _, study = open_run(old.folder)
    assert study.data.placements == str(project / "placements.csv")
    assert verify_run(old.folder).replay is not None


def test_absolute_paths_of_a_project_that_is_gone_are_found_in_the_named_folder(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/placements.csv").touch()
    for root, found in (("/gone/data/images", "data/images"), ("/gone/data", "data"), ("/gone", ".")):
        config = {"data": {"placements": "/gone/data/placements.csv", "root": root}}
        data = Places(tmp_path / "run", None, tmp_path).config(config, {})["data"]
        assert data["placements"] == str(tmp_path / "data/placements.csv")
        assert Path(data["root"]) == tmp_path / found


@pytest.mark.parametrize(
    ("file", "entry"),
    [("environment", {"folder": 5}), ("environment", {"data": 5}), ("tables/test", {"settings": 5}),
     ("tables/test", {"data": {"placements": 5}})],
)  # fmt: skip
def test_a_broken_record_of_a_place_is_said(made, tmp_path, file, entry):
    copy = Run(tmp_path / "copy")
    shutil.copytree(made.folder, copy.folder)
    path = copy.folder / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | entry))
    with pytest.raises(RunError, match=rf"is broken \({next(iter(entry))}"):
        replay_run(copy.folder)


def test_paths_that_share_only_the_root_stay_absolute(tmp_path):
    config = {"data": {"placements": "/elsewhere/placements.csv"}, "name": "/elsewhere"}
    assert to_relative(config, tmp_path / "run") == config


def test_a_moved_sweep_is_read_with_the_paths_of_its_new_place(tmp_path):
    study = load_study(make_study(tmp_path / "old"))
    config = Plan(
        study, parse_space({"optimizer.learning_rate": (0.02, 0.4, "log")}), Sweep(num_trials=2)
    ).config
    config["study"]["log"]["mlflow"] = f"sqlite:///{tmp_path / 'old/runs/mlflow.db'}"
    journal = Journal.create(tmp_path / "old/runs", "tiny", config)
    assert str(tmp_path / "old/placements.csv") not in (journal.folder / "sweep.json").read_text()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_plan(Journal.open(tmp_path / "new/runs" / journal.folder.name)).study
    assert moved.data.placements == str(tmp_path / "new/placements.csv")
    assert moved.log.runs == str(tmp_path / "new/runs")
    assert moved.log.mlflow == f"sqlite:///{tmp_path / 'new/runs/mlflow.db'}"
    assert moved.data.open().paths[0] == tmp_path / "new/photograph-00.png"


@pytest.mark.parametrize("setting", ["data.placements", "data.root", "log.runs", "evaluate.controls.art"])
def test_the_home_folder_of_nobody_is_one_sentence(tmp_path, setting):
    study = make_study(tmp_path)
    with pytest.raises(ValueError, match="no home folder is known for ~nobody-here/x; write the whole path"):
        train(load_study(study, {setting: "~nobody-here/x"}))
    with pytest.raises(ValueError, match=r"--data\.root: no home folder is known"):
        Places(tmp_path, None, "~nobody-here/x")


def test_runs_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_study(make_study(tmp_path), {"log.runs": "~/runs"}).log.runs == str(tmp_path / "runs")


@pytest.mark.parametrize(
    "words", [("replay", "--rows", "0:2"), ("replay", "--step", "2"), ("replay", "--verify"), ("resume",),
              ("analyze",)],
)  # fmt: skip
def test_a_run_of_another_device_is_opened_on_this_one(made, tmp_path, monkeypatch, capsys, words):
    run = tmp_path / "project/runs" / made.folder.name
    shutil.copytree(made.folder.parent.parent, tmp_path / "project")
    config = made.read_json("config.json") | {"device": "cuda:7"}
    command, *more = words
    (run / "config.json").write_text(json.dumps(config))
    edited = "--verify" in words  # which also finds the edited config
    if command != "analyze" and not edited:  # `analyze` runs no network
        assert "(every command takes --device cpu)" in fails(capsys, command, run, *more)
    assert main([command, str(run), *more, "--device", "cpu"]) == int(edited)
    assert edited or "different 1" not in capsys.readouterr().out
    assert "device must be" in fails(capsys, command, run, *more, "--device", "gpu")
