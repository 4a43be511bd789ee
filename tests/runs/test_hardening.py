"""A hardening: its folder, its continuation after a stop, its numbers, and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import assert_equal
from safetensors.torch import load_file
from torch import Tensor, nn

import fpatch
from fpatch import graph, node
from fpatch.cli.main import main
from fpatch.core.progress import silent
from fpatch.core.resource import define_loader
from fpatch.demo.tiny import tiny_study
from fpatch.graph.pipeline import with_model
from fpatch.log import Log
from fpatch.log.records import read_scalars
from fpatch.log.values import to_json
from fpatch.runs.hardened import CONTINUED, HARDENED, START, describe
from fpatch.runs.hardening import _Work, harden
from fpatch.runs.locks import RunError, lock
from fpatch.study.config import vary
from fpatch.study.hardening import Harden, HardenPlan, load_harden_plan
from fpatch.study.setup import make_loader, make_training_step, set_up


class Net(nn.Module):
    """It answers a lamp where the mean of an image exceeds a threshold, which a dark patch undercuts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[30.0] * 3, [-30.0] * 3]))
            self.head.bias.copy_(torch.tensor([-22.05, 22.05]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(images.mean((-1, -2))))


hardened_net = define_loader("hardened_net", Net)
VICTIM = """
name = "lamp-net"
[data]
placements = "placements.csv"
objects = "objects.csv"
size = [24, 32]
classes = ["lamp", "nothing"]
validation = false
[pipeline]
exposure = {stage = "compose.exposure", stops = [-0.1, 0.1], reads = {image = "scene"}}
[pipeline.victim]
stage = "graph.module"
model = {loader = "LOADER"}
trainable = true
reads = ["image"]
writes = ["logits"]
[pipeline.wrong]
stage = "losses.criterion"
name = "CrossEntropyLoss"
reads = {input = "logits", target = "target"}
writes = ["wrong"]
[objective]
weights = {wrong = 1.0}
[optimizer]
name = "adamw"
learning_rate = 0.05
[train]
num_steps = 6
batch_size = 2
"""
SECTION = """
[harden]
victim = "victim.toml"
pool = 3
rounds = 2
every = 4
fresh_factor = 2
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harden")
    tiny_study(folder)
    (folder / "victim.toml").write_text(VICTIM.replace("LOADER", hardened_net.name))
    (folder / "attack.toml").write_text((folder / "study.toml").read_text() + SECTION)
    return folder / "attack.toml"


@pytest.fixture(scope="module")
def plan(path):
    return load_harden_plan(path, {"log.runs": str(path.parent)})


@pytest.fixture(scope="module")
def done(plan):
    return harden(plan, silent)


def weights_in(plan, folder, name):
    return plan.victim.pipeline.load(folder / "weights" / name, fpatch.random.key(0)).params


def values_of(rates):
    return {name: rate.value for name, rate in rates.items()}


def with_settings(plan, **settings):
    return dataclasses.replace(plan, harden=dataclasses.replace(plan.harden, **settings))


def test_every_victim_is_measured_under_every_attack(plan, done):
    assert list(done.clean) == [START, CONTINUED, HARDENED]
    fresh = ["fresh-1-1", "fresh-1-2"]
    assert {name: list(rates) for name, rates in done.robust.items()} == {
        START: fresh,
        CONTINUED: [*fresh, "moved-1-1", "moved-1-2"],
        HARDENED: [*fresh, "moved-1-1", "moved-1-2"],
    }
    for name in done.clean:
        worst, rate = done.worst(name)
        assert (
            rate.value == min(r.value for r in done.robust[name].values()) == done.robust[name][worst].value
        )
        assert rate.count == 4
    assert values_of(done.clean) == dict.fromkeys(done.clean, 1.0)
    assert done.worst(START)[1].value < done.worst(HARDENED)[1].value
    after = [(name, end + step) for end in (0, 6) for name in (CONTINUED, HARDENED) for step in (4, 6)]
    assert [(c.victim, c.step) for c in done.curves] == [(CONTINUED, 0), (HARDENED, 0), *after]
    assert (done.folder / "harden.json").read_bytes() == to_json(describe(done))
    assert (done.folder / "harden.png").read_bytes()[1:4] == b"PNG"
    assert len(list((done.folder / "patches").glob("pool-?-?-tag.png"))) == 6
    assert len(list((done.folder / "patches").glob("fresh-*-?-tag.png"))) == 6
    recorded = read_scalars(done.folder, "")
    assert recorded["test/hardened/worst"] == done.worst(HARDENED)[1].value
    assert recorded["validation/continued/robust"] == done.curves[-3].robust.value


def test_the_rates_are_those_of_the_saved_networks(plan, done):
    """By hand: the network with the saved weights, on each held-out scene without a patch."""
    recipe = plan.victim.pipeline
    loaded = weights_in(plan, done.folder, HARDENED)
    parts = set_up(plan.attack)
    test = parts.dataset.split("test")
    model = recipe.freeze(loaded)["victim"].stage.config.model
    pipeline = with_model(plan.attack.pipeline, "victim", model).at("test")
    values, _ = pipeline.without("pixels", "implant")(
        {},
        fpatch.random.fold_in(fpatch.random.fold_in(fpatch.random.key(0), "evaluate"), "test"),
        (batch := test.batch(test.image_ids)) | {"image": batch["scene"]},
    )
    assert done.clean[HARDENED].value == float(values["found"].float().mean())
    start = recipe.init(fpatch.random.key(0))
    assert not torch.equal(start["victim/head.weight"], loaded["victim/head.weight"])
    assert int(loaded["victim/norm.num_batches_tracked"]) == 12


def test_both_are_trained_from_the_start_by_the_same_images(plan, done):
    """With no share of patches the hardened victim is the continued one."""

    alike = harden(with_settings(plan, share=0.0, rounds=1, every=0), silent)
    assert_equal(*(weights_in(plan, alike.folder, name) for name in (CONTINUED, HARDENED)))
    assert values_of(alike.robust[CONTINUED]) == values_of(alike.robust[HARDENED])
    mixed = [weights_in(plan, done.folder, name) for name in (CONTINUED, HARDENED)]
    assert any(not torch.equal(a, b) for a, b in zip(mixed[0].values(), mixed[1].values(), strict=True))


@pytest.mark.parametrize("stop", ["pool 2: training 3 patches", "hardened, round 2: training the victim"])
def test_a_stopped_hardening_goes_on(plan, done, stop, tmp_path):
    other = dataclasses.replace(plan.attack, log=dataclasses.replace(plan.attack.log, runs=str(tmp_path)))
    plan = dataclasses.replace(plan, attack=other)

    def watch(task: str, step: int, total: int, note: str) -> None:
        if task == stop and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harden(plan, watch)
    (folder,) = tmp_path.iterdir()
    again = harden(plan, silent, folder)
    assert to_json(describe(again)) == to_json(describe(done))
    for name in (CONTINUED, HARDENED):
        assert_equal(*(weights_in(plan, one, name) for one in (folder, done.folder)))


SHORT = {"pool": 2, "rounds": 1, "every": 0, "fresh_keys": 1, "fresh_factor": 1}


@pytest.mark.parametrize("settings", [{"train.rho": 4.0}, {"train.micro_batch": 1}], ids=str)
def test_patches_are_trained_as_the_study_of_the_attack_says(plan, tmp_path, settings):
    """Against the study's own step, on the start of the victim."""
    attack = vary(plan.attack, {**settings, "log.runs": str(tmp_path)})
    plan = with_settings(dataclasses.replace(plan, attack=attack), **SHORT)
    done = harden(plan, silent)
    found = load_file(done.folder / "steps/pool-1.safetensors")["1:tag"]
    start = plan.victim.pipeline.init(fpatch.random.key(0))
    model = plan.victim.pipeline.freeze(start)["victim"].stage.config.model
    study = dataclasses.replace(attack, pipeline=with_model(attack.pipeline, "victim", model))
    parts, key = set_up(study), fpatch.random.key(0)
    for data in ("harden", "pool", 0, 1):
        key = fpatch.random.fold_in(key, data)
    state = fpatch.make_state(parts.objective, parts.optimizer, key)
    *_, (alone, _) = fpatch.fit(state, make_training_step(study, parts), make_loader(study, parts), 4)
    torch.testing.assert_close(found, alone.params["tag"], rtol=0, atol=1e-4)


def test_data_of_other_classes_patches_or_held_out_images_are_told(plan, tmp_path, caplog):
    victim, attack = plan.victim, vary(plan.attack, {"log.runs": str(tmp_path)})
    plan = with_settings(dataclasses.replace(plan, attack=attack), **SHORT)
    swapped = vary(victim, {"data.classes": ["nothing", "lamp"]})
    with pytest.raises(ValueError, match=r'data.classes must be .* set data.classes = \["lamp", "nothing"\]'):
        harden(dataclasses.replace(plan, victim=swapped), silent)
    two = tmp_path / "two.csv"
    text = Path(victim.data.placements).read_text()
    two.write_text(text.replace(",tag,train,", ",sign,train,"))
    root = str(Path(victim.data.placements).parent)
    named = vary(victim, {"data.placements": str(two), "data.root": root})
    with pytest.raises(ValueError, match=r"data.patches must be .*\['sign', 'tag'\]"):
        harden(dataclasses.replace(plan, victim=named), silent)
    harden(plan, silent)
    assert "trained on" not in caplog.text
    on_test = vary(victim, {"data.train": "test", "data.test": "train"})
    harden(dataclasses.replace(plan, victim=on_test), silent)
    assert "(and 3 more): the victim is measured on images that it was trained on" in caplog.text


def test_a_stopped_hardening_does_not_go_on_with_other_parts(path, tmp_path):
    shutil.copytree(path.parent, folder := tmp_path / "copy", ignore=shutil.ignore_patterns("*-harden"))
    plan = with_settings(load_harden_plan(folder / "attack.toml", {"log.runs": str(folder)}), **SHORT)
    done = harden(plan, silent)
    kept = done.folder / "steps/fresh-hardened.safetensors"
    whole = kept.read_bytes()
    other = harden(dataclasses.replace(plan, attack=vary(plan.attack, {"seed": 3})), silent)
    for content, error in (
        ((other.folder / "steps/fresh-hardened.safetensors").read_bytes(), "of another hardening"),
        ((done.folder / "steps/fresh-continued.safetensors").read_bytes(), "of another hardening"),
        (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "not the recorded digest"),
    ):
        kept.write_bytes(content)
        with pytest.raises(RunError, match=error):
            harden(plan, silent, done.folder)
    kept.write_bytes(whole)
    scene = (folder / "0.png").read_bytes()
    shutil.copy(folder / "1.png", folder / "0.png")
    with pytest.raises(RunError, match=r"images of the attack have changed"):
        harden(plan, silent, done.folder)
    (folder / "0.png").write_bytes(scene)
    state = plan.victim.pipeline.init(fpatch.random.key(0))
    moved = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    network = plan.victim.pipeline.freeze(moved)["victim"].stage.config.model
    module = fpatch.graph.module(network.requires_grad_(), trainable=True)
    retrained = fpatch.node(module, reads=["image"], writes=["logits"])
    changed = dataclasses.replace(plan.victim, pipeline=plan.victim.pipeline | {"victim": retrained})
    work = _Work(dataclasses.replace(plan, victim=changed), silent, done.folder)
    with pytest.raises(RunError, match="parameters at the start of the victim have changed"):
        work.run()
    (done.folder / "inputs.json").unlink()
    with pytest.raises(RunError, match=r"lacks inputs.json"):
        harden(plan, silent, done.folder)


def test_records_are_completed_after_a_stop(plan, done, tmp_path, monkeypatch):
    attack = dataclasses.replace(plan.attack, log=dataclasses.replace(plan.attack.log, runs=str(tmp_path)))
    plan, scalars, calls = dataclasses.replace(plan, attack=attack), Log.scalars, []

    def stop(log, step, values):
        scalars(log, step, values)
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "scalars", stop)
        with pytest.raises(KeyboardInterrupt):
            harden(plan, silent)
    (folder,) = tmp_path.iterdir()
    harden(plan, silent, folder)
    assert read_scalars(folder, "") == read_scalars(done.folder, "")
    size = (folder / "records.jsonl").stat().st_size
    harden(plan, silent, folder)
    assert (folder / "records.jsonl").stat().st_size == size


def test_wrong_folders_are_refused(plan, done, tmp_path):
    with pytest.raises(RunError, match="not the folder of a hardening"):
        harden(plan, silent, tmp_path)
    with pytest.raises(RunError, match="that of another plan"):
        harden(with_settings(plan, pool=2), silent, done.folder)
    with lock(done.folder, RunError, "held"), pytest.raises(RunError, match="by another process"):
        harden(plan, silent, done.folder)


def test_wrong_plans_are_refused(path, plan, tmp_path):
    with pytest.raises(ValueError, match=r"study.toml: a hardening needs the section \[harden\]"):
        load_harden_plan(path.with_name("study.toml"))
    with pytest.raises(ValueError, match=r"harden.pool must be"):
        load_harden_plan(path, {"harden.pool": 0})
    with pytest.raises(ValueError, match="unknown key 'pools'"):
        load_harden_plan(path, {"harden.pools": 4})
    with pytest.raises(ValueError, match=r"harden.share must be"):
        Harden("victim.toml", share=-0.5)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_harden_plan(path, {"harden.victim": "nowhere.toml"})
    two = plan.victim.pipeline | {
        "other": node(graph.module(Net(), trainable=True), reads=["image"], writes=["more"])
    }
    with pytest.raises(ValueError, match=r"got \['victim', 'other'\]; make them one module"):
        dataclasses.replace(plan, victim=dataclasses.replace(plan.victim, pipeline=two))
    with pytest.raises(ValueError, match="must train one network, got none"):
        HardenPlan(plan.attack, plan.attack, plan.harden)
    blind = dataclasses.replace(
        plan.attack, pipeline=plan.attack.pipeline.without("victim", "misclassify", "hit")
    )
    with pytest.raises(ValueError, match="must have one victim, got none"):
        HardenPlan(blind, plan.victim, plan.harden)
    with pytest.raises(ValueError, match="no loss term 'vanish'"):
        harden(
            dataclasses.replace(plan, harden=dataclasses.replace(plan.harden, losses=({"vanish": 1.0},))),
            silent,
        )


def test_the_command_prints_the_rates(path, done, capsys):
    arguments = ["harden", str(path), "--log.runs", str(path.parent), "--resume", str(done.folder)]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["victims"][HARDENED]["clean"]["value"] == done.clean[HARDENED].value
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "right, % of 4 held-out rows (4 images)" in table
    assert f"{100 * done.worst(HARDENED)[1].value:.1f}" in table
    assert not np.isnan(done.worst(START)[1].value)
