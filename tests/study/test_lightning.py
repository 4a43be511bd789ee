"""A pipeline that PyTorch Lightning trains, against a step of fpatch."""

import csv
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import TinyNet, case, demo, make_inputs
from laws import assert_equal
from study_fixture import environment
from torch import nn
from torch.utils.data import DataLoader

import fpatch
from fpatch import graph, node, random
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.conditions import make_patches
from fpatch.evaluation.means import scalars

pl = pytest.importorskip("lightning.pytorch", reason="needs the extra `lightning`")
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from fpatch.study.lightning import PipelineModule  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable:UserWarning"),
]
KEY = random.key(5)
RATE = 0.5
SGD = partial(torch.optim.SGD, lr=RATE)


def ours(rate: float = RATE):
    return fpatch.make_optimizer(fpatch.Optimizer("sgd", rate, "constant", momentum=0.0), 100)


OURS = ours()


def trainer(folder: Path, steps: int, **settings: Any):
    settings = {"enable_checkpointing": False, "log_every_n_steps": 1, "logger": False} | settings
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def wrong(values, patch_params):
    return {"wrong": nn.functional.cross_entropy(values["logits"], values["target"], reduction="none")}


def network() -> fpatch.Pipeline:
    """Batch statistics, and dropout by row keys."""
    part = graph.module(TinyNet(seed=3, norm="batch", dropout=0.3), trainable=True)
    loss = node(wrong, reads=["logits", "target"], writes=["wrong"])
    return fpatch.pipeline({"net": node(part, reads=["image"], writes=["logits"]), "loss": loss})


def loader_of(batches: list[dict]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def batches_of(names=None) -> list[dict]:
    first = case(demo().at("train")).batch
    first = {**make_inputs(), **first} if names else first
    made = [{**first, "draw": first["draw"] + 10 * i} for i in range(4)]
    return [{n: v for n, v in batch.items() if names is None or n in names} for batch in made]


CASES = {
    "patch": (demo, {"vanish": 1.0, "total_variation": 0.1}, None, None),
    "one patch of two": (demo, {"vanish": 1.0}, None, ("rear",)),
    "network": (network, {"wrong": 1.0}, ("image", "image_id", "draw", "target"), None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_parameters_and_the_log_are_those_of_our_step(name, tmp_path):
    make, weights, names, wrt = CASES[name]
    batches, rate = batches_of(names), RATE if make is network else 1000.0  # many pixels reach a bound
    module = PipelineModule(make(), weights, partial(SGD, lr=rate), KEY, wrt)
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, 4, logger=logger).fit(module, loader_of(batches))
    objective = fpatch.Objective(make().at("train"), weights, wrt=wrt)
    optimizer = ours(rate)
    state, step = fpatch.make_state(objective, optimizer, KEY), fpatch.make_step(objective, optimizer)
    first, expected = state, []
    for batch in batches:
        state, info = step(state, batch)
        terms = {f"train/{term}": float(rows.mean()) for term, rows in info.terms.items()}
        expected.append({"train/loss": float(info.loss), **terms})
    assert_equal(module.params, state.all_params, 1e-6)
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    logged = [{n: float(row[n]) for n in row if n.startswith("train/")} for row in rows]
    assert [set(row) for row in logged] == [set(row) for row in expected]
    for row, own in zip(logged, expected, strict=True):
        assert row == pytest.approx(own, abs=1e-6)
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {
        module._attributes[n] for n in objective.trained
    }
    for n, value in first.fixed.items():
        assert torch.equal(module.params[n], value) == (not n.startswith("net/norm"))


def study_of(folder: Path):
    study = tiny_study(folder)
    return study, study.data.open()


def test_stopped_and_resumed_it_continues_with_the_same_draws(tmp_path):
    """In the middle of an epoch, with the batches of each update, and another key in the resuming program."""
    study, data = study_of(tmp_path / "study")
    loader = fpatch.data.Loader(data.split("train"), random.fold_in(KEY, "data"), batch_size=1)
    assert len(loader) > 1

    def fit(module, steps: int, path=None) -> PipelineModule:
        made = trainer(tmp_path, steps)
        made.fit(module, module.batches(loader), ckpt_path=path)
        made.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module

    weights = dict(study.objective.weights)
    whole = fit(PipelineModule(study.pipeline, weights, SGD, KEY), 5)
    fit(PipelineModule(study.pipeline, weights, SGD, KEY), 3)
    other = PipelineModule(study.pipeline, weights, SGD, random.key(77))
    resumed = fit(other, 5, tmp_path / "3.ckpt")
    assert_equal(resumed.params, whole.params, 0.0)
    objective = fpatch.Objective(study.pipeline.at("train"), weights)
    state = fpatch.make_state(objective, OURS, KEY)
    *_, (last, _) = fpatch.fit(state, fpatch.make_step(objective, OURS), loader, 5)
    assert_equal(whole.params, last.all_params, 1e-6)
    assert not torch.equal(last.params["tag"], state.params["tag"])


def test_metrics_are_those_of_an_evaluation(tmp_path):
    study, data = study_of(tmp_path / "study")
    split = data.split("validation")
    module = PipelineModule(study.pipeline, dict(study.objective.weights), SGD, KEY)
    validation = list(fpatch.data.Loader(split, KEY, batch_size=len(split.image_ids)))
    logger = CSVLogger(tmp_path)
    (found,) = trainer(tmp_path, 1, logger=logger).validate(module, loader_of(validation), verbose=False)
    pipeline = study.pipeline.at("validation")
    patches = make_patches(pipeline, module.params)
    key = random.fold_in(random.fold_in(KEY, "evaluate"), "validation")
    result = fpatch.evaluate(
        pipeline, module.params, split, key, conditions={"patch": patches, "none": patches}
    )
    expected = {
        f"validation/{n}": v
        for n, v in scalars(result).items()
        if not n.startswith(("success/", "objects/success/"))
    }
    assert "validation/found/patch" in expected
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


@dataclass(frozen=True)
class Right:
    """No settings."""


def apply_right(config, patch_params, sample, values):
    return {"right": values["logits"].argmax(-1) == values["target"]}


def test_metrics_of_a_network_bear_no_condition(tmp_path):
    metric = fpatch.define(
        "right",
        Right,
        fpatch.deterministic,
        apply_right,
        reads=("logits", "target"),
        writes=("right",),
        role="metric",
    )
    made = network() | {"right": node(metric(), phases={"eval"})}
    module = PipelineModule(made, {"wrong": 1.0}, SGD, KEY)
    (batch, *_) = batches_of(CASES["network"][2])
    (found,) = trainer(tmp_path, 1).validate(module, loader_of([batch]), verbose=False)
    assert set(found) == {"validation/wrong", "validation/right"}


def test_what_would_train_something_else_is_refused(tmp_path):
    module = PipelineModule(demo(), {"vanish": 1.0}, SGD, KEY)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2\) would average the means of parts"):
        trainer(tmp_path, 2, accumulate_grad_batches=2).fit(module, loader_of(batches_of()))


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    def tone(values, params):
        return {"tone": torch.where(values["image_id"] == 3, torch.nan, params["rear"].mean())}

    module = PipelineModule(demo() | {"tone": tone}, {"tone": 1.0}, SGD, KEY)
    with pytest.raises(ValueError, match=r"update 1: the loss term 'tone' is nan in row 2"):
        trainer(tmp_path, 2).fit(module, loader_of(batches_of()))


def test_without_the_extra_the_error_names_it():
    code = (
        "import sys; sys.modules['lightning.pytorch'] = None\n"
        "from fpatch.study.lightning import PipelineModule\n"
        "PipelineModule(None, {}, None, None)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment(Path(__file__).parent), capture_output=True, text=True)
    assert "ImportError: PipelineModule needs lightning: pip install 'fpatch[lightning]'" in done.stderr
