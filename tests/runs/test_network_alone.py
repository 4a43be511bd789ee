"""The study of the documentation that trains a network without any patch, through every command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import assert_equal
from log_stores import killed_in_fork
from safetensors.torch import load_file
from study_fixture import OBJECT_METRICS, environment, make_study, read_records
from sweeps import begin, work
from torch import nn

import fpatch
from fpatch import compose, evaluate, infer, node, random
from fpatch.cli.main import main
from fpatch.cli.tables import rates_of
from fpatch.data import read_image, write_image
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.rates import success
from fpatch.log.sealed import SEAL, seal
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.replaying import replay_step
from fpatch.runs.training import resume, train
from fpatch.runs.transfer import transfer_runs
from fpatch.runs.verifying import verify_run
from fpatch.study.config import load_study
from fpatch.study.goals import judge_best
from fpatch.study.leaks import find_leaks
from fpatch.study.setup import set_up
from fpatch.study.study import Study
from fpatch.tune import Sweep, parse_space
from fpatch.tune.output.table import trial_columns
from fpatch.tune.plan import make_plan
from fpatch.viz import animate

DOCS = Path(__file__).parents[2] / "docs"
SPLITS = ("train",) * 8 + ("validation",) * 6 + ("test",) * 6
FEW = {
    "train.num_steps": 4, "train.batch_size": 4, "train.checkpoint_every": 2, "evaluate.every": 2,
    "log.tensorboard": False, "log.mlflow": False,
}  # fmt: skip
QUIET = [word for name, value in FEW.items() for word in (f"--{name}", str(value).lower())]


def write_study(folder: Path) -> Path:
    """The study of the page, with twenty images: half of them of a lamp, half of a cross."""
    rows = {"placements": ["image,patch,split,xmin,ymin,xmax,ymax"], "objects": []}
    rows["objects"] = ["image,label,split,xmin,ymin,xmax,ymax"]
    for i, split in enumerate(SPLITS):
        scene = torch.full((3, 48, 64), 0.2)
        name, x = ("lamp", "cross")[i % 2], 4 + i
        if name == "lamp":
            scene[:, 10:34, x : x + 24] = 0.9
        else:
            scene[0, 20:24, x : x + 24] = scene[0, 10:34, x + 10 : x + 14] = 0.9
        write_image(folder / f"{i}.png", scene)
        rows["placements"].append(f"{i}.png,tag,{split},{x + 2},12,{x + 14},24")
        rows["objects"].append(f"{i}.png,{name},{split},{x},10,{x + 24},34")
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(lines))
    (text,) = re.findall(r"```toml\n(.*?)```", (DOCS / "how-to/networks.md").read_text(), re.DOTALL)
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def study(folder: Path, **settings) -> Study:
    return load_study(write_study(folder), FEW | {"log.runs": str(folder / "runs")} | settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    made = train(study(tmp_path_factory.mktemp("alone")))
    fpatch.evaluate_run(made.folder)
    return made


def names_of(folder: Path) -> set[str]:
    return {n for r in read_records(folder) if r["kind"] == "scalars" for n in r["values"]}


def test_the_folder_speaks_of_no_patch_and_of_no_attack(run):
    assert not (run.folder / "patch").exists()
    figures = {path.name for path in (run.folder / "figures").glob("test*")}
    assert {name for name in figures if "grid" not in name} == {"test-classes.png", "test.png"}
    names = names_of(run.folder)
    assert {"train/loss", "validation/right", "validation/found/none", "test/right"} <= names
    assert not [name for name in names if "success" in name or name.endswith("/patch") or "delta" in name]
    assert run.read_json("config.json")["evaluate"]["best"] == "right"
    table = run.load_table("test")
    assert {n.partition("/")[2] for n in table if n.startswith(("found/", "confidence/", "digest/"))} == {
        "none"
    }
    assert int(run.load_params("last")["backbone/model.conv1.1.num_batches_tracked"]) == 4
    first = read_image(run.folder / "figures/test.png")
    assert first.shape[-1] < 800  # one panel of an image, not two


def test_the_rate_is_what_the_network_gets_right(run):
    """Against the networks themselves, with the weights of the checkpoint, on the composed images."""
    seen = []
    again, differences = fpatch.replay_run(
        run.folder, keep=("image",), on_block=lambda rows, values: seen.append(values)
    )
    assert (again.differences, differences) == ({}, [])
    params = run.load_params("best")
    parts = {"backbone": infer.backbone(architecture="shufflenet_v2_x0_5", seed=0).value}
    parts["head"] = infer.head(num_features=1024, num_classes=2, dropout=0.1).value
    for path, model in parts.items():
        own = {n.removeprefix(f"{path}/"): v for n, v in params.items() if n.startswith(f"{path}/")}
        model.load_state_dict(own)
    with torch.no_grad():
        answers = nn.Sequential(*parts.values()).eval()(seen[0]["none"]["image"]).argmax(1).numpy()
    table = run.load_table("test")
    assert list(seen[0]) == ["none"]
    assert (answers == table["answer/none"]).all()
    right = (answers == table["label"]).mean()
    found = success(table)
    assert (found.rates, found.over, found.drop) == ({}, {}, {})
    assert (found.clean.value, found.main, list(found.shown)) == (right, found.clean, ["none"])
    assert found.scalars() == {"right": right}
    assert str(found) == f"right  {found.clean}"
    summary = json.loads((run.folder / "tables/test.summary.json").read_text())
    assert (summary["rates"], summary["clean"]["value"]) == ({}, right)


@pytest.mark.parametrize(
    "words",
    [
        "describe STUDY", "evaluate RUN", "evaluate RUN --json", "grid RUN --over exposure/stops=-1,0,1",
        "grid RUN --over exposure/stops=-1,1 --over contrast/factor=0.8,1.2 --json", "replay RUN --verify",
        "replay RUN --table validation-00000004 --verify", "replay RUN --step 3 --verify", "analyze RUN",
    ],
)  # fmt: skip
def test_no_command_speaks_of_an_attack(run, words, capsys, tmp_path):
    """What it prints, also where there is an interval; and it says what is right of how many."""
    config = run.folder.parents[1] / "study.toml"
    command = words.replace("RUN", str(run.folder)).replace("STUDY", str(config)).split()
    assert main(command) == 0
    said = capsys.readouterr().out
    plain = said.replace(str(run.folder), "").lower()
    assert "attack" not in plain, said
    assert not re.search(r"success|trained patch|nan\b", plain), said
    if words == "evaluate RUN":
        right = int(success(run.load_table("test")).clean.value * 6 + 0.5)
        counted = rf"right without a patch: {right} of 6 \(6 images\), [\d.]+ % \[[\d., ]+\]"
        assert re.search(counted, said), said
        assert "rough at best" in said


def test_the_whole_folder_verifies_and_a_changed_answer_is_noticed(run):
    assert verify_run(run.folder).is_proved
    assert all(was == now for was, now in replay_step(run.folder, 4).scalars.values())
    path = run.folder / "tables/test.csv"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"true", b"false", 1).replace(b"lamp", b"cross", 1) + b"\n")
    found = verify_run(run.folder)
    path.write_bytes(before)
    assert found.differences[0] == "tables/test.csv is not as it was written"


def stop_at(step: int):
    def watch(task: str, done: int, total: int, note: str) -> None:
        if task == "training" and done == step:
            raise KeyboardInterrupt

    return watch


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(study(tmp_path), on_progress=stop_at(3))
    (folder,) = (tmp_path / "runs").iterdir()
    assert_equal(resume(folder).load_params("last"), run.load_params("last"))


def crash(folder: str, moments: list[int]) -> None:
    """Train, and be killed at each of these acts of writing in turn; then go on to the end."""

    def work() -> None:
        runs = [path.parent for path in Path(folder, "runs").glob("*/config.json")]
        resume(runs[0]) if runs else train(study(Path(folder)))

    kills = [killed_in_fork(work, moment) for moment in moments]
    assert not killed_in_fork(work, 10**9)
    print("kills", *map(int, kills))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(run, tmp_path):
    moments = [30, 12]
    code = f"from test_network_alone import *; crash({str(tmp_path)!r}, {moments})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(Path(__file__).parent), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["1", "1"], done.stdout
    (config,) = tmp_path.glob("runs/*/config.json")
    again, whole = (load_file(one / "checkpoints/last.safetensors") for one in (config.parent, run.folder))
    assert_equal(again, whole)


@pytest.mark.parametrize("pack", [1, 2])
def test_a_sweep_over_the_learning_rate_is_of_what_is_right(tmp_path, pack):
    space = parse_space({"optimizer.learning_rate": (1e-4, 1e-2, "log")})
    plan = make_plan(study(tmp_path), space, Sweep(num_trials=2, search="random"))
    assert plan.sweep.objective == "right"
    journal = begin(plan)
    work(journal, plan, pack=pack)
    columns = trial_columns(plan, journal.entries())
    assert columns["status"] == ["finished", "finished"]
    for entry in journal.entries():
        folder = journal.run_folder(entry.trial.name)
        table = Run.open(folder).load_table("validation-00000004")
        assert entry.value == table["found/none"].mean()
        assert not (folder / "patch").exists()
    assert main(["sweep", "status", str(journal.folder)]) == 0


TORCHRUN = {
    "data.size": [32, 32], "pipeline.backbone.model.arguments.architecture": "squeezenet1_1",
    "pipeline.head.model.arguments.num_features": 512, "optimizer.name": "sgd",
}  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """A network without statistics of the batch; one with them is refused."""
    words = [*QUIET, *(word for n, v in TORCHRUN.items() for word in (f"--{n}", json.dumps(v).strip('"')))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    config = write_study(tmp_path)
    train_it = [*command, "-m", "fpatch", "train", str(config)]
    how = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run([*train_it, *words], **how)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    alone = train(study(tmp_path, **TORCHRUN, **{"log.runs": str(tmp_path / "alone")}))
    both = [Run.open(path).load_params("last") for path in (folder, alone.folder)]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-6)
    first = alone.load_params("step-00000000")
    assert max(float((both[1][n] - first[n]).abs().max()) for n in first) > 1e-3
    assert verify_run(folder, table="validation-00000004").differences == []
    refused = subprocess.run([*train_it, *QUIET], **how)
    assert refused.returncode != 0
    assert "takes statistics over the rows of a batch" in refused.stderr


# -- refused

LOSS = """[pipeline.loss]
stage = "losses.criterion"
name = "CrossEntropyLoss"
reads = {input = "logits"}
"""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("trainable = true", "trainable = false", "there is nothing to train: no stage makes a patch"),
        (LOSS, "", "the pipeline has no loss"),
        ("criterion = 1.0", "criterion = 0.0", "at least one weight must differ from 0"),
        ('stage = "metrics.class_hit"', 'stage = "metrics.class_hit"\ngoal = 1', "no patch that could reach"),
        ("every = 50", 'every = 50\ncontrols = {logo = "0.png"}', "no patch that a control could replace"),
        ("every = 50", 'every = 50\nbest = "success/clean"', "has no scalar 'success/clean'"),
        ('stage = "compose.exposure"\nreads = {image = "scene"}', 'stage = "implant.warp"', "patch"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_with_a_sentence(tmp_path, capsys, old, new, sentence):
    config = write_study(tmp_path)
    text = config.read_text()
    assert old in text
    text = text.replace(old, new)
    config.write_text(text.replace("stops = [-0.5, 0.5]\n", "") if "implant" in new else text)
    assert main(["train", str(config), *QUIET]) == 2
    said = capsys.readouterr().err
    assert sentence in said, said
    assert said.count("\n") == 1 or "implant" in new, said
    assert not (tmp_path / "runs").exists()


def test_what_is_about_patches_refuses_a_network(run, tmp_path, capsys):
    assert main(["doctor", str(run.folder.parents[1] / "study.toml")]) == 2
    assert "doctor: the study makes no patch" in capsys.readouterr().err
    assert main(["matrix", str(run.folder), "--defense", "defend.median"]) == 2
    assert "trained a network and made no patch" in capsys.readouterr().err
    other = train(study(tmp_path, **{"name": "other", "data.validation": False}))
    with pytest.raises(ValueError, match="trained a network and made no patch"):
        transfer_runs([run.folder, other.folder])
    with pytest.raises(ValueError, match="holds no patch"):
        animate(run.folder, tmp_path / "patches.gif")


def test_images_that_are_not_held_out_are_those_of_the_network(tmp_path):
    made = study(tmp_path, **{"data.test": "train"})
    (said,) = [what for where, what in find_leaks(made, made.data.open()) if where == "data.test"]
    assert "the network is measured on images that it was trained on" in said


def test_the_best_checkpoint_by_a_loss_is_a_warning(tmp_path):
    assert not list(judge_best(study(tmp_path)))
    (said,) = judge_best(study(tmp_path, **{"evaluate.best": "criterion/none"}))
    assert "the highest 'criterion/none', a loss, is the best" in said[1]


def test_a_detector_alone_is_measured_by_rows_and_by_objects(tmp_path):
    path = make_study(tmp_path)
    path.write_text(path.read_text() + OBJECT_METRICS)
    made = load_study(path)
    test, scenes = made.pipeline.at("test"), set_up(made).dataset.split("test")
    alone = fpatch.pipeline(
        {"exposure": node(compose.exposure(), reads={"image": "scene"})}
        | {n: test[n] for n in ("victim", "suppress", "hit", "objects", "precision")}
    )
    result = evaluate(alone, {}, scenes, random.key(0), num_draws=2, block=3)
    assert list(result.conditions) == ["none"]
    assert result.conditions["none"] == {}
    objects, rows = success(result.objects), success(result.table)
    assert objects.clean.value == np.mean(result.objects["found/none"])
    assert rows.rates == objects.rates == {}
    assert "precision/map/none" not in result.summaries["none"]
    assert any(name.startswith("precision/map") for name in result.summaries["none"])
    with pytest.raises(ValueError, match=r"must hold 'patch'"):
        evaluate(alone, {}, scenes, random.key(0), conditions={"noise": {}})


def test_rows_that_are_not_finite_leave_no_rate(run):
    table = {name: column.copy() for name, column in run.load_table("test").items()}
    table["finite/none"][2] = False
    found = success(table)
    assert np.isnan(found.clean.value)
    assert set(found.scalars()) == {"right", "not_finite/none"}
    said = str(rates_of("test", found))
    assert said.startswith("test: nothing can be measured: rows are not finite\n")
    assert "condition 'none': 1 of 6 rows are not finite, first 16.png" in said
    assert "rate" not in said
    assert "none counted" in str(success({name: column[:0] for name, column in table.items()}))


def test_the_table_of_a_patch_does_not_pass_for_one_without(tmp_path):
    made = train(tiny_study(tmp_path))
    path = made.folder / "tables/validation-00000004.json"
    manifest = {name: value for name, value in json.loads(path.read_text()).items() if name != SEAL}
    path.write_bytes(seal(manifest | {"patches": []}))
    with pytest.raises(RunError, match=r"patches: lists none, but .* holds 'flat/patch/tag'"):
        made.load_conditions("validation-00000004")
    assert not verify_run(made.folder, table="validation-00000004").is_proved
