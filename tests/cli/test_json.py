"""Every command says its exit codes, and prints one JSON document on request, all else on standard error."""

import argparse
import json
from pathlib import Path

import pytest
from study_fixture import STEPS, make_study, run_fpatch

from fpatch.cli import main as cli
from fpatch.cli.console import console
from fpatch.cli.main import main
from fpatch.demo.tiny import tiny_study
from fpatch.runs.folder import Run
from fpatch.runs.naming import grid_name, scatter_name, table_name, transfer_name
from fpatch.runs.training import train
from fpatch.tune import Journal, load_plan
from fpatch.tune.folder.journal import Outcome, Point, Trial

GIVEN = {
    "describe": ("study",), "doctor": ("study",), "train": ("study",), "resume": ("run",),
    "evaluate": ("run",), "replay": ("run",), "grid": ("run", "--over", "exposure/stops=0,1"),
    "transfer": ("run", "--also", "other"), "matrix": ("run", "--defense", "defend.median"),
    "analyze": ("run",), "score": ("truth", "detections"),
}  # fmt: skip
MORE = {
    "replay --verify": ("run", "--verify"), "replay --step": ("run", "--step", "1"),
    "describe --mermaid": ("study", "--mermaid"), "evaluate --seed": ("run", "--seed", "1"),
}  # fmt: skip


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command and its parser."""
    found = [a for a in cli._make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """The study, runs and detections that commands are given."""
    folder = tmp_path_factory.mktemp("json")
    run = train(tiny_study(folder))
    other = train(tiny_study(folder, {"name": "other", "train.num_steps": 1}))
    assert main(["evaluate", str(run.folder)]) == 0
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}]
    truth = {"images": [{"id": 1}], "annotations": boxes, "categories": [{"id": 1, "name": "lamp"}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    answers = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}]
    (folder / "detections.json").write_text(json.dumps(answers))
    (folder / "sweep.toml").write_text(
        (folder / "study.toml").read_text()
        + "[space]\noptimizer.learning_rate = {low = 0.1, high = 0.2}\n"
        + '[sweep]\nnum_trials = 2\nsearch = "random"\n'
    )
    return {
        "study": str(folder / "study.toml"), "run": str(run.folder), "other": str(other.folder),
        "truth": str(folder / "truth.json"), "detections": str(folder / "detections.json"),
        "folder": str(folder),
    }  # fmt: skip


def document(capsys, *words: str) -> tuple[int, dict]:
    """The exit code and the one document of a command; its sentences stand on standard error."""
    capsys.readouterr()
    code = main([*words, "--json"])
    out, err = capsys.readouterr()
    assert err.strip(), "the table for people"
    return code, json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("name", commands())
def test_every_command_says_its_exit_codes_and_takes_json(name):
    text = " ".join(commands()[name].format_help().split())
    assert "exit codes: 0 done" in text
    assert text.endswith("2 wrong input, 130 stopped")
    assert "--json" in text


def test_every_command_is_tried():
    assert {*GIVEN, "demo", "sweep", "harden"} == {*commands()}  # which runs/test_hardening tries


@pytest.mark.parametrize("name", [*GIVEN, *MORE])
def test_a_command_prints_one_document(name, files, capsys):
    given = (GIVEN | MORE)[name]
    code, found = document(capsys, name.partition(" ")[0], *(files.get(word, word) for word in given))
    assert code == 0
    assert found
    if name == "evaluate":
        summary = json.loads((Path(files["run"]) / "tables/test.summary.json").read_text())
        assert {n: found[n] for n in summary} == summary
    if name in ("train", "resume"):
        assert (found["step"], found["num_steps"]) == (4, 4)
    if "verify" in name:
        assert found["is_proved"]
        assert found["rows"] == found["identical"] == 4
    assert all(Path(file).is_file() for file in found.get("files", ()))
    assert main(["describe", files["study"]]) == 0
    out, err = capsys.readouterr()
    assert out
    assert not err, "the next command prints where commands print"
    assert not console.stderr


def test_a_sweep_prints_one_document(files, capsys):
    plan = load_plan(f"{files['folder']}/sweep.toml")
    journal = Journal.create(files["folder"], "lamp", plan.config)
    for name, value in (("0000", 0.125), ("0001", 0.1875)):
        journal.add(Trial(name, {"optimizer.learning_rate": value}, seed=1))
        journal.add_point(name, Point(4, value, float("nan")))
        journal.add_outcome(name, Outcome("finished", 0.0, 0.0))
    sweep = str(journal.folder)
    _, status = document(capsys, "sweep", "status", sweep)
    assert [(t["trial"], t["status"], t["value"], t["error"]) for t in status["trials"]] == [
        ("0000", "finished", 0.125, None), ("0001", "finished", 0.1875, None),
    ]  # fmt: skip
    _, best = document(capsys, "sweep", "best", sweep)
    assert (best["trial"], best["settings"]) == ("0001", {"optimizer.learning_rate": 0.1875})
    assert main(["sweep", "export", sweep, "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)["study"]
    assert exported["optimizer"]["learning_rate"] == 0.1875


@pytest.mark.slow
def test_a_sweep_that_runs_prints_one_document(files):
    done = run_fpatch("sweep", "sweep.toml", "--json", cwd=Path(files["folder"]))
    assert done.returncode == 0, done.stderr
    assert [t["status"] for t in json.loads(done.stdout)["trials"]] == ["finished", "finished"]
    assert "finished" in done.stderr


def test_wrong_input_prints_no_document(files, capsys):
    assert main(["evaluate", f"{files['run']}-x", "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1


# Other data, draws, controls and seeds


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    from fpatch.study.config import load_study

    return train(load_study(make_study(tmp_path_factory.mktemp("measured") / "project")))


def test_an_evaluation_takes_other_data_draws_and_controls(trained, tmp_path, capsys):
    project = trained.folder.parent.parent
    for name in ("placements", "objects"):
        lines = (project / f"{name}.csv").read_text().splitlines()
        kept = [lines[0], *(line.replace("validation", "night") for line in lines if "validation" in line)]
        (tmp_path / f"{name}.csv").write_text("\n".join(kept))
    words = ["evaluate", str(trained.folder), "--data.placements", str(tmp_path / "placements.csv")]
    words += ["--data.objects", str(tmp_path / "objects.csv"), "--data.test", "night"]
    words += ["--data.root", str(project), "--evaluate.num_draws", "3"]
    words += ["--evaluate.controls.poster", str(project / "photograph-00.png")]
    before = {p: p.read_bytes() for p in (trained.folder / "tables").iterdir() if p.is_file()}
    code, found = document(capsys, *words)
    assert code == 0
    table = trained.load_table(found["table"])
    assert len(table["image_id"]) == 9
    assert any(name.endswith("/poster") for name in table)
    assert set(table["path"]) == {f"photograph-{i:02d}.png" for i in (5, 6, 7)}
    assert {path: path.read_bytes() for path in before} == before, "it has a name of its own"
    assert found["table"].startswith("test-")
    code, proof = document(capsys, "replay", str(trained.folder), "--table", found["table"], "--verify")
    assert (code, proof["rows"]) == (0, 9), proof
    (tmp_path / "objects.csv").write_text((tmp_path / "objects.csv").read_text() + "\n")
    code, proof = document(capsys, "replay", str(trained.folder), "--table", found["table"], "--verify")
    assert code == 1
    assert proof["folder"] == ["objects: it is not what the table was made from"]


@pytest.mark.slow
def test_other_seeds_grids_and_transfers_keep_their_names(trained, capsys):
    names = []
    for words in (
        ("evaluate",), ("evaluate", "--seed", "5"), ("evaluate", "--checkpoint", "last"),
        ("grid", "--over", "camera/exposure/stops=0,1"), ("grid", "--over", "camera/exposure/stops=0,2"),
        ("grid", "--over", "camera/exposure/stops=0,1", "--evaluate.num_draws", "1"),
    ):  # fmt: skip
        code, found = document(capsys, words[0], str(trained.folder), *words[1:])
        assert code == 0
        names.append(found["table"])
        assert len(list((trained.folder / "tables").glob("*.parquet"))) >= len(set(names))
    assert len(set(names)) == 6, names
    for name in names[-2:]:
        code, proof = document(capsys, "replay", str(trained.folder), "--table", name, "--verify")
        assert (code, proof["is_proved"]) == (0, True), proof


def test_names_of_many_settings_are_names_of_files():
    """A file system refuses 256 bytes, after all the work is done."""
    many = {f"evaluate.controls.a_rather_long_name_of_a_poster_{i}": "poster.png" for i in range(6)}
    axes = {f"camera/a_rather_long_name_of_a_stage/value_{i}": [0.0] for i in range(6)}
    other = many | {"evaluate.controls.a_rather_long_name_of_a_poster_5": "other.png"}
    made = [table_name("test", "last", settings) for settings in (many, other)]
    made += [grid_name("test", "last", axes, many), transfer_name(["a", "b"], settings=many)]
    made += [scatter_name(made[2], f"{'victims/small/' * 20}best_score/delta")]
    assert len(set(made)) == 5
    for name in made:
        assert len(f"{name}-effects.png.tmp") < 256
        assert len(f"{name}.patches.safetensors.tmp") < 256


def test_a_replaced_table_of_another_patch_is_said(trained, capsys, caplog):
    assert main(["evaluate", str(trained.folder), "--checkpoint", "last"]) == 0
    assert not caplog.records
    manifest = json.loads((trained.folder / "tables/test-last.json").read_text())
    manifest |= {"state": "another", "step": STEPS - 1}
    (trained.folder / "tables/test-last.json").write_text(json.dumps(manifest))
    assert main(["evaluate", str(trained.folder), "--checkpoint", "last"]) == 0
    said = [r.getMessage() for r in caplog.records]
    assert any(f"tables/test-last of checkpoint last (step {STEPS - 1}) is replaced" in s for s in said)
