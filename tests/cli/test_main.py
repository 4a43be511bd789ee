"""The commands, as a user types them."""

import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from study_fixture import make_study, parameters

import fpatch.evaluation.conditions
import fpatch.runs.opening
from fpatch.cli.console import console
from fpatch.cli.main import _take_overrides, main
from fpatch.cli.tables import success_table
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.evaluation import Evaluation
from fpatch.evaluation.rates import success
from fpatch.runs.folder import Run
from fpatch.study.config import load_study


def out(capsys, *words) -> str:
    assert main(list(map(str, words))) == 0
    return capsys.readouterr().out


def test_train_evaluate_replay_resume(tmp_path, trained, capsys):
    path = make_study(tmp_path)
    said = out(capsys, "train", path)
    folder = re.search(r"run folder: (.*)", said)[1]
    assert f"\n  fpatch evaluate {folder}\n" in said
    assert parameters(Run(folder)) == parameters(trained)
    said = out(capsys, "evaluate", folder)
    for row in ("trained patch", "noise", "flat print", "shuffled pixels", f"{folder}/tables/test.csv"):
        assert row in said
    assert out(capsys, "replay", folder, "--verify").endswith("rows 8 identical 8 different 0\n")
    said = out(capsys, "replay", folder, "--step", "5", "--verify")
    assert said.startswith("update 5, from the checkpoint of step 4\n")
    assert said.count("identical") == 4
    assert folder in out(capsys, "resume", folder)
    said = out(capsys, "evaluate", folder, "--split", "validation", "--checkpoint", "step-00000002")
    assert "validation, checkpoint step-00000002" in said
    assert "rows 6 identical 6 different 0" in out(
        capsys, "replay", folder, "--table", "validation-step-00000002"
    )


def test_evaluate_opens_the_run_once(run, capsys, monkeypatch):
    opened = []
    made = fpatch.runs.opening.study_from_config
    monkeypatch.setattr(fpatch.runs.opening, "study_from_config", lambda *a: opened.append(a) or made(*a))
    assert main(["evaluate", str(run.folder)]) == 0
    assert len(opened) == 1
    assert run.read_json("tables/test.summary.json")["metric"] == "found"


@pytest.mark.slow
def test_train_says_how_to_open_the_logs_that_it_wrote(tmp_path, capsys):
    tiny_study(tmp_path)
    plain = out(capsys, "train", tmp_path / "study.toml", "--log.runs", tmp_path)
    assert "tensorboard" not in plain
    assert "mlflow" not in plain
    logged = out(
        capsys, "train", tmp_path / "study.toml", "--log.runs", tmp_path, "--log.tensorboard", "true",
        "--log.mlflow", "true",
    )  # fmt: skip
    assert f"  tensorboard --logdir {tmp_path}\n" in logged
    assert f"  mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db\n" in logged


@pytest.mark.slow
def test_analyze(run, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    stops = rng.uniform(-1, 1, 60).astype(np.float32)
    logged = run.load_table("test")
    table = {n: np.resize(c, 60) for n, c in logged.items()} | {
        "image_id": np.arange(60) // 2,
        "sample/camera/exposure/stops": stops,
        "found/delta": -(stops > 0).astype(np.float32),
    }
    evaluation = Evaluation(table, run.load_conditions("test"), {})
    run.save_evaluation("test", evaluation, run.load_execution("test"))
    said = out(capsys, "analyze", run.folder)
    assert said.startswith("test of checkpoint best (step 6), ")
    assert re.search(r"camera/exposure/stops +\S+ +[1-9]\.\d+ \+- 0\.\d+", said)
    assert "on 60 rows of 30 images" in said
    page, animation = (run.folder / f"figures/{name}" for name in ("scatter.html", "training.gif"))
    assert f"  {page}\n  {animation}\n" in said
    assert '"start":{"x":"sample/camera/exposure/stops","y":"found/delta"' in page.read_text()
    with Image.open(animation) as frames:
        assert len(list(ImageSequence.Iterator(frames))) == 4
    # what is animated are the patches, not the parameters that they are made from
    monkeypatch.setattr(
        fpatch.evaluation.conditions, "make_patches", lambda *_: {"patch": {"a": torch.zeros(3, 4, 4)}}
    )
    said = out(capsys, "analyze", run.folder, "--metric", "best_score/delta")
    assert said.startswith("test of checkpoint best (step 6), ")
    with Image.open(animation) as frames:
        assert not np.array(frames.convert("RGB"))[84:372, 24:312].any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "found/dleta"], "'found/dleta' is no metric of the table; did you mean 'found/delta'"),
        (["--table", "tset"], "has no table 'tset'; tables: "),
        (["--metric", "sample/camera/exposure/stops"], "is no metric of the table"),
    ],
)
def test_analyze_refuses(trained, capsys, words, message):
    assert main(["analyze", str(trained.folder), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fpatch: error: ")
    assert message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found/delta is -1 in every row: nothing to explain"),
        (["--metric", "best_score/delta"], "must be finite on at least 5 images, got 4"),
    ],
)
def test_analyze_draws_what_has_no_importances(run, capsys, words, message):
    said = out(capsys, "analyze", run.folder, *words)
    assert said.startswith("no importances: ")
    assert message in said
    scatter = "scatter-best_score-delta.html" if words else "scatter.html"
    page, animation = (run.folder / f"figures/{name}" for name in (scatter, "training.gif"))
    assert said.endswith(f"  {page}\n  {animation}\n")
    metric = words[-1] if words else "found/delta"
    assert f'"start":{{"x":"sample/affine/angle_deg","y":"{metric}"' in page.read_text()
    assert animation.stat().st_size > 0


def test_a_victim_that_is_never_right_is_said_to_be(capsys):
    rows = {"image_id": np.arange(6) // 2, "found/none": np.zeros(6, bool)}
    names = [f"{metric}/{c}" for metric in ("found", "displaced") for c in ("patch", "noise")]
    rates = success(rows | {name: np.zeros(6, bool) for name in names})
    console.print(success_table("test", rates))
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing can be measured: without a patch the victim is right in none of 6 rows" in said
    assert "nan" not in said


def test_brackets_in_the_name_of_a_class_are_shown(capsys):
    rows = {"image_id": np.arange(3), "goal": np.array(["a [red] sign"] * 3)}
    rows |= {f"{name}/{c}": np.ones(3, bool) for name in ("found", "reached") for c in ("none", "patch")}
    rows |= {f"goal_score/{c}": np.ones(3) for c in ("none", "patch")}
    console.print(success_table("goal = a [red] sign", success(rows)))
    said = capsys.readouterr().out
    assert "\\" not in said
    assert said.count("[red]") == 4  # title, heading, question and score


def test_a_metric_without_rates_leaves_no_table(run, capsys):
    before = sorted(path.name for path in (run.folder / "tables").iterdir())
    assert main(["evaluate", str(run.folder), "--evaluate.metric", "best_score"]) == 2
    assert "'best_score' must be boolean" in capsys.readouterr().err
    assert sorted(path.name for path in (run.folder / "tables").iterdir()) == before


def test_settings_on_the_command_line(tmp_path, capsys):
    path = make_study(tmp_path)
    words = ["--train.num_steps", "2", path, "--pipeline.camera/exposure.stops.low", "-2", "--seed", "9"]
    words += ["--objective.weights.total_variation=0.5", "--data.validation", "false", "--name", "other one"]
    folder = re.search(r"run folder: (.*)", out(capsys, "train", *words))[1]
    assert folder.endswith("-other one")
    config = Run(folder).read_json("config.json")
    assert config["train"]["num_steps"] == 2
    assert config["pipeline"]["camera/exposure"]["stops"] == [-2.0, 0.2]
    assert config["objective"]["weights"] == {"vanish": 1.0, "total_variation": 0.5}
    assert (config["seed"], config["data"]["validation"]) == (9, None)


def test_another_victim_on_the_command_line(tmp_path, capsys):
    path = make_study(tmp_path)
    other = tmp_path / "other.safetensors"
    other.write_bytes((tmp_path / "tiny.safetensors").read_bytes())
    study = load_study(path, {"pipeline.victim.model.weights": str(other)})
    model = study.pipeline["victim"].stage.config.model
    assert model.weights == str(other)
    assert model.value.norm.num_features == 1
    assert model.sha256 == load_study(path).pipeline["victim"].stage.config.model.sha256


def test_overrides_are_toml_or_text():
    words = ["train", "a.toml", "--a.b", "1e-3", "--a.c", "word", "--a.d=[1, 2]", "--a.e", "-2"]
    words += ["--mlflow-uri", "x", "--a.f", "--odd", "--a.g", 'sqlite:///"x"', "--a.h=", "--a.i", "true"]
    assert _take_overrides(words) == {
        "a.b": 1e-3, "a.c": "word", "a.d": [1, 2], "a.e": -2, "a.f": "--odd", "a.g": 'sqlite:///"x"',
        "a.h": "", "a.i": True,
    }  # fmt: skip
    assert words == ["train", "a.toml", "--mlflow-uri", "x"]


def test_describe(tmp_path, capsys):
    path = make_study(tmp_path)
    said = out(capsys, "describe", path, "--train.num_steps", "7")
    assert "camera/exposure  compose.exposure(stops=(-0.2, 0.2)): image -> image" in said
    assert "[test, validation]" in said
    assert re.search(r"needs in a batch: .*\bscene\b", said)
    assert "minimizes 1 x vanish, 0.05 x total_variation" in said
    assert "num_steps=7" in said
    assert "metrics.detection_hit" not in out(capsys, "describe", path, "--phase", "train")
    diagram = out(capsys, "describe", path, "--mermaid", "--phase", "train")
    assert diagram.startswith("flowchart TD\n")
    assert "infer.suppress" not in diagram
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        [], ["trian"], ["train"], ["evaluate"], ["resume", "a", "b"], ["replay", "a", "--setp", "3"],
        ["resume", "a", "--train.num_steps", "3"], ["evaluate", "a", "--split", "train"],
        ["replay", "a", "--step", "x"], ["analyze"], ["train", "a.toml", "--overwrite"],
    ],
)  # fmt: skip
def test_commands_that_do_not_exist(capsys, words):
    try:
        code = main(words)
    except SystemExit as leave:  # of the parser
        code = leave.code
    assert code == 2
    assert re.search(r"^fpatch( \w+)?: error: ", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(("given", "code"), [("0", 1), ("", 1), ("5", 5), ("'a text'", 1)])
def test_a_module_that_ends_python_ends_no_command_as_done(tmp_path, monkeypatch, capsys, given, code):
    """Such as a script that calls sys.exit() at its end, in the place of a module."""
    (tmp_path / "leaving.py").write_text(f"raise SystemExit({given})\n")
    path = make_study(tmp_path)
    path.write_text(path.read_text().replace("study_fixture:tiny", "leaving:tiny"))
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in ("describe", "train"):
        assert main([command, str(path)]) == code
        said = capsys.readouterr().err
        assert "leaving.py" in said
        assert "a module of yours ended the command by SystemExit, and it is not done" in said


@pytest.mark.parametrize(
    "command", ["", "demo", "train", "resume", "evaluate", "score", "replay", "analyze", "describe"]
)
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: fpatch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (
            ("train", "STUDY", "--lr", "0.1"),
            "no such option of fpatch train; did you mean --optimizer.lear",
        ),
        (("train", "STUDY", "--num_step=3"), "did you mean --train.num_steps?"),
        (("evaluate", "RUN", "--num-draws", "4"), "did you mean --evaluate.num_draws?"),
        (("train", "STUDY", "train.num_steps=3"), "an option begins with --: --train.num_steps 3"),
        (("resume", "RUN", "--train.num_steps", "3"), "it takes the recorded settings"),
        (("evaluate", "RUN", "RUN"), "fpatch evaluate takes no such argument"),
        (
            ("describe", "STUDY", "--phase", "eval"),
            "--phase: 'eval' means two phases; choose 'validation' or",
        ),
        (("transfer", "RUN"), "one alone is measured by fpatch evaluate RUN"),
        (("transfer", "RUN", "RUN"), "give each run once"),
        (
            ("evaluate", "RUN", "--checkpoint", "checkpoints/best.safetensors"),
            "without folder and suffix, such a",
        ),
        (
            ("replay", "RUN", "--table", "test.csv"),
            "table: give a name without folder and suffix, such as test",
        ),
        (("evaluate", "RUN/tables"), "give its parent, RUN"),
    ],
)
def test_a_slip_on_the_command_line_names_what_is_meant(trained, capsys, words, way_out):
    names = {"STUDY": str(trained.folder.parent.parent / "study.toml"), "RUN": str(trained.folder)}
    for name, path in names.items():
        words, way_out = [word.replace(name, path) for word in words], way_out.replace(name, path)
    assert main(words) == 2
    assert way_out in capsys.readouterr().err


def test_commands_that_are_printed_can_be_typed(tmp_path, capsys):
    tiny_study(tmp_path, {"log.runs": str(tmp_path / "my runs"), "log.tensorboard": False})
    study = tmp_path / "study.toml"
    said = out(capsys, "train", study, "--log.runs", tmp_path / "my runs", "--log.mlflow", "false")
    (command,) = [line for line in said.splitlines() if line.startswith("  fpatch evaluate ")]
    assert main(shlex.split(command)[1:]) == 0
