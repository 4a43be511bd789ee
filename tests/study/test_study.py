"""A study as a value: from TOML and back, trained, measured, measured again."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from log_stores import read_events
from PIL import Image
from study_fixture import SPLITS, STEPS, logged_steps, make_study, read_records
from typecheck import unchecked

from fpatch import Range, Study
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.evaluation import evaluate
from fpatch.graph.stage import define, deterministic
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.opening import open_run
from fpatch.runs.replaying import replay_run
from fpatch.runs.training import resume, train
from fpatch.study.config import load_study, study_from_config
from fpatch.study.dry_run import dry_run
from fpatch.study.settings import DataConfig
from fpatch.study.setup import set_up


def test_a_study_is_its_config(tmp_path):
    study = load_study(make_study(tmp_path))
    assert isinstance(study, Study)
    config = json.loads(json.dumps(study.config))
    again = study_from_config(config, tmp_path / "anywhere")
    assert again.config == study.config
    assert again.data == study.data
    assert list(again.pipeline) == list(study.pipeline)
    assert study.data.placements == str(tmp_path / "placements.csv")
    with pytest.raises(dataclasses.FrozenInstanceError):
        study.seed = 4  # pyright: ignore[reportAttributeAccessIssue]: that it is refused is the test


def test_a_run_knows_its_study(trained):
    _, study = open_run(trained.folder)
    assert study.train.num_steps == STEPS
    assert study.pipeline["victim"].stage.config.model.sha256


def test_overrides_may_change_the_patches(tmp_path):
    path = make_study(tmp_path)
    turned = {"rear": [3, 6, 5], "side": [3, 10, 14]}
    study = load_study(path, {"data.patches": ["rear", "side"], "pipeline.pixels.shapes": turned})
    assert study.pipeline["implant"].stage.config.names == study.data.patches == ("rear", "side")
    set_up(study)
    alone = load_study(path, {"data.patches": ["side"], "pipeline.pixels.shapes": {"side": [3, 10, 14]}})
    assert alone.pipeline["implant"].stage.config.names == ("side",)
    set_up(alone)
    with pytest.raises(ValueError, match=r"pipeline.implant.names must be the patches of the data .*, got"):
        set_up(load_study(path, {"pipeline.implant.names": ["rear", "side"]}))


def test_a_metric_that_is_no_yes_or_no_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'best_score' must be boolean"):
        train(load_study(make_study(tmp_path), {"evaluate.metric": "best_score"}))
    assert not (tmp_path / "runs").exists()


@dataclasses.dataclass(frozen=True)
class Drop:
    """Keep the first three channels."""


drop = define(
    "drop",
    Drop,
    deterministic,
    lambda config, params, sample, values: {"patch": {n: p[:3] for n, p in values["patch"].items()}},
    reads=("patch",),
    writes=("patch",),
)


def test_a_patch_of_four_channels_can_be_trained_and_looked_at(tmp_path):
    path = make_study(tmp_path)
    path.write_text(
        path.read_text()
        .replace("side = [3, 10, 14], rear = [3, 6, 5]", "side = [4, 10, 14], rear = [4, 6, 5]")
        .replace("[pipeline.affine]", '[pipeline.drop]\nstage = "test_study:drop"\n[pipeline.affine]')
    )
    run = train(load_study(path))
    assert np.asarray(Image.open(run.folder / "patch/side.png")).shape == (10, 4 * 14)


def test_optional_settings_can_be_switched_off_in_toml(tmp_path):
    path = make_study(tmp_path, validation=False)
    path.write_text(path.read_text().replace("[train]", "[train]\nmicro_batch = false"))
    study = load_study(path)
    assert (study.data.validation, study.train.micro_batch) == (None, None)


def test_what_is_best_by_a_named_scalar(tmp_path):
    path = make_study(tmp_path, every=1)
    path.write_text(path.read_text().replace("[evaluate]", '[evaluate]\nbest = "best_score/none"'))
    run = train(load_study(path))
    records = [r for r in read_records(run.folder) if "validation/best_score/none" in r["values"]]
    values = [r["values"]["validation/best_score/none"] for r in records]
    assert len(set(values)) == 1
    _, facts = run.load_checkpoint("best", set_up(open_run(run.folder)[1]).initial)
    (lost,) = (
        r["values"]["validation/success/drop/patch"] for r in records if r["step"] == facts["best_step"]
    )
    assert (facts["best"], facts["best_effect"]) == (values[0], lost)
    assert lost == max(r["values"]["validation/success/drop/patch"] for r in records)


def test_a_best_of_nan_is_replaced(tmp_path, monkeypatch):
    found = iter([0.5, math.nan, 0.25, math.nan, 0.75, 0.5, 0.7])
    for module in ("study.dry_run", "runs.validating"):
        monkeypatch.setattr(f"fpatch.{module}.scalars", lambda *_: {"success/patch": next(found)})
    run = train(load_study(make_study(tmp_path, every=1)))  # the first is of the rehearsal
    _, facts = run.load_checkpoint("best", set_up(open_run(run.folder)[1]).initial)
    assert {"best": 0.75, "best_step": 4}.items() <= facts.items()


def test_the_pictures_of_the_patch_are_the_best_checkpoint(trained):
    from PIL import Image

    best, _ = trained.load_checkpoint("best", set_up(open_run(trained.folder)[1]).initial)
    for name, patch in best.params.items():
        pixels = np.asarray(Image.open(trained.folder / f"patch/{name}.png")).transpose(2, 0, 1)
        assert np.array_equal(pixels, (patch * 255).round().byte().numpy())


@pytest.mark.slow
def test_evaluated_twice_and_otherwise(run):
    before = run.load_table("test")
    _, again = evaluate_run(run.folder)
    after = run.load_table("test")
    assert {n: c.tolist() for n, c in before.items()} == {n: c.tolist() for n, c in after.items()} | {
        "path": before["path"].tolist()
    }
    _, last = evaluate_run(run.folder, checkpoint="last")
    summary = run.read_json("tables/test-last.summary.json")
    assert (summary["checkpoint"], summary["step"]) == ("last", STEPS)
    assert run.read_json("tables/test.summary.json")["checkpoint"] == "best"
    assert summary["rates"]["noise"]["value"] == last.rates["noise"].value == again.rates["noise"].value
    _, rates = evaluate_run(run.folder, split="validation", checkpoint="step-00000000")
    assert rates.clean.count == 2 * SPLITS.count("validation")
    tables = ("test", "test-last", "validation-step-00000000", "validation-00000003")
    assert {p.stem for p in run.folder.glob("tables/*.csv")} >= set(tables)
    assert run.load_table("validation-step-00000000")["image_id"].tolist() == [5, 6, 7] * 2
    for table in tables:
        assert replay_run(run.folder, table=table)[0].differences == {}
    logged = {
        n: v for r in read_records(run.folder) if r["kind"] == "scalars" for n, v in r["values"].items()
    }
    for table in ("test", "test-last"):  # the log says of each checkpoint what its table says
        assert logged_steps(run.folder, f"{table}/vanish/patch") == [STEPS]
        mean = run.load_table(table)["vanish/patch"].astype(np.float64).mean()
        assert logged[f"{table}/vanish/patch"] == mean
    evaluate_run(run.folder, checkpoint="step-00000000")
    first = run.load_table("test-step-00000000")["vanish/patch"].astype(np.float64).mean()
    assert first != logged["test-last/vanish/patch"]
    events = read_events(run.folder)
    assert [e.step for e in events.Scalars("test/success/patch")] == [STEPS]
    assert [e.step for e in events.Images("test/control and patched")] == [STEPS]
    resume(run.folder)
    assert replay_run(run.folder)[0].differences == {}


def test_validation_of_the_run_is_that_of_the_command(run):
    """Keys of an evaluation depend neither on the step nor on who asks."""
    evaluate_run(run.folder, split="validation", checkpoint="last")
    asked, during = run.load_table("validation-last"), run.load_table(f"validation-{STEPS:08d}")
    assert {n: c.tolist() for n, c in asked.items() if n != "path"} == {
        n: c.tolist() for n, c in during.items() if n != "path"
    }


def test_splits_are_kept_apart(trained):
    table = trained.load_table("test")
    assert sorted(set(table["image_id"])) == [i for i, split in enumerate(SPLITS) if split == "test"]
    records = [r["values"] for r in read_records(trained.folder) if r["kind"] == "input"]
    assert records[0]["placements"]["profile"]["num_photographs"] == len(SPLITS)


WAYS = {
    "micro_batch": {"train.micro_batch": 3},
    "transform": {"objective.transform": "func"},
    "recompute": {"objective.transform": "func", "train.recompute": True},
}


@pytest.mark.parametrize("setting", WAYS)
def test_ways_to_the_same_patch(trained, tmp_path, setting):
    run = train(load_study(make_study(tmp_path, validation=False), WAYS[setting]))
    like = set_up(open_run(run.folder)[1]).initial
    (found, _), (expected, _) = (r.load_checkpoint("last", like) for r in (run, trained))
    for name, value in expected.params.items():
        assert torch.allclose(found.params[name], value, atol=1e-3)


def test_a_profile_that_tensorboard_opens(tmp_path):
    run = train(load_study(make_study(tmp_path, profile_steps=2, validation=False, tensorboard=True)))
    (trace,) = run.folder.glob("tensorboard/*.pt.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {"ProfilerStep#2", "ProfilerStep#3", "aten::conv2d", "aten::grid_sampler_2d"} <= names
    assert "ProfilerStep#4" not in names
    assert [e.step for e in read_events(run.folder).Scalars("train/loss")] == list(range(1, STEPS + 1))


def test_a_rehearsal_is_as_deterministic_as_its_study(tmp_path, monkeypatch):
    asked = []

    def evaluated(*arguments, **options):
        asked.append(torch.are_deterministic_algorithms_enabled())
        return evaluate(*arguments, **options)

    monkeypatch.setattr("fpatch.study.dry_run.evaluate", evaluated)
    dry_run(load_study(make_study(tmp_path), {"train.deterministic": True}))
    assert asked == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_of_python_are_those_of_toml(tmp_path):
    study = tiny_study(tmp_path)
    given = {
        "train.num_steps": np.int64(3), "optimizer.learning_rate": torch.tensor(0.25),
        "evaluate.controls.poster": tmp_path / "0.png", "device": torch.device("cpu"),
        "pipeline.exposure.stops": np.array([-1.0, 1.0]),
    }  # fmt: skip
    varied = load_study(tmp_path / "study.toml", given)
    assert (varied.train.num_steps, varied.optimizer.learning_rate, varied.device) == (3, 0.25, "cpu")
    assert varied.pipeline["exposure"].stage.config.stops == Range(-1.0, 1.0)
    assert varied.train.batch_size == study.train.batch_size
    with unchecked():
        assert (
            DataConfig(tmp_path / "placements.csv", size=(24, 32)).placements == f"{tmp_path}/placements.csv"
        )


@pytest.mark.parametrize(
    ("settings", "resources", "said"),
    [
        (
            {"train": {"num_steps": 3}},
            None,
            "a whole section replaces its other settings, too; .*'train.num_steps'",
        ),
        ({"num_steps": 3}, None, "give the setting with its section: train.num_steps"),
        (["train.num_steps=3"], None, "the settings must be a Mapping, got a list"),
        ({}, {"victm/model": 1}, "resources: the config has no live object 'victm/model'"),
        ({}, {"victim/model": 1}, "resources: 'victim/model' has a value in the config, too"),
    ],
)
def test_settings_that_would_be_lost_are_refused(tmp_path, settings, resources, said):
    tiny_study(tmp_path)
    with unchecked(), pytest.raises(ValueError, match=said):
        load_study(tmp_path / "study.toml", settings, resources)
