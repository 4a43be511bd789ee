"""Loaders whose scenes carry patches of a pool, and patches trained together."""

import dataclasses

import optree
import pytest
import torch
from laws import assert_equal

import fpatch
from fpatch import random
from fpatch.core.tree import take_rows
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.conditions import make_patches
from fpatch.graph.keys import row_keys
from fpatch.optim.hardening import PatchedLoader, train_patches
from fpatch.random import fold_in
from fpatch.study.config import vary
from fpatch.study.setup import make_loader, set_up

KEY = random.key(5)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny_study(tmp_path_factory.mktemp("harden"), {"train.batch_size": 5})


@pytest.fixture(scope="module")
def moving(study):
    """The same with a stage that moves the scene before the patch is brought in."""
    nodes = study.pipeline.given_config
    tilted = {"pixels": nodes.pop("pixels"), "flip": {"stage": "compose.horizontal_flip"}, **nodes}
    return dataclasses.replace(study, pipeline=fpatch.build(tilted))


def make(study, share, seed=7):
    parts = set_up(study)
    made = [
        make_patches(parts.objective.pipeline, parts.objective.pipeline.init(random.key(i)))
        for i in (1, 2, 3)
    ]
    pool = optree.tree_map(lambda *xs: torch.stack(xs), *made)
    return PatchedLoader(
        make_loader(study, parts), parts.objective.pipeline, pool, share, random.key(seed)
    ), made


def test_without_a_share_the_batches_stay(study):
    loader, _ = make(study, 0.0)
    for step in (0, 3):
        assert_equal(dict(loader.batch(step)), loader.loader.batch(step))


@pytest.mark.parametrize("name", ["study", "moving"])
def test_a_row_carries_one_patch_of_the_pool_as_the_pipeline_brings_it_in(name, request):
    """Against the pipeline itself, with the patch's parameters and the row's key."""
    study = request.getfixturevalue(name)
    loader, made = make(study, 1.0)
    batch, plain, pipeline = loader.batch(2), loader.loader.batch(2), loader.pipeline
    key = fold_in(fold_in(loader.key, "pool"), 2)
    members = random.randint(fold_in(row_keys(key, plain), "member"), (), 0, 3)
    assert len(members.unique()) > 1
    for row, member in enumerate(members.tolist()):
        one = take_rows(plain, slice(row, row + 1))
        body = pipeline.without("pixels")
        sample = body.sample(row_keys(key, one), one)
        values = body.apply({}, sample, {**one, **made[member]})
        composed = pipeline.upto("implant").without("pixels").apply({}, sample, {**one, **made[member]})
        torch.testing.assert_close(batch["scene"][row : row + 1], composed["image"])
        for label in ("boxes", "quads"):
            torch.testing.assert_close(batch[label][row : row + 1], values[label])


def test_a_share_of_the_rows_is_left_clean(study):
    loader, _ = make(study, 0.5)
    changed = []
    for step in range(40):
        batch, plain = loader.batch(step), loader.loader.batch(step)
        changed += [bool((a != b).any()) for a, b in zip(batch["scene"], plain["scene"], strict=True)]
    assert 0.35 < sum(changed) / len(changed) < 0.65


@pytest.fixture(scope="module")
def twice(study):
    """The same with a turn of the image after a first implant, and a second implant after it."""
    nodes = study.pipeline.given_config
    on_image = {"reads": {"scene": "image"}, "writes": {"scene": "image"}}
    flip = {"stage": "compose.horizontal_flip", **on_image}
    again = {"flip": flip, "again": {"stage": "implant.warp", "reads": {"scene": "image"}}}
    first = {"pixels": nodes.pop("pixels"), "implant": nodes.pop("implant")}
    return dataclasses.replace(study, pipeline=fpatch.build({**first, **again, **nodes}))


@pytest.mark.parametrize("name", ["study", "moving", "twice"])
def test_rows_without_a_patch_have_opacity_0_and_all_else_alike(name, request):
    """By hand: pixels and labels of a row are those of the pipeline with its patch, or without one."""
    loader, made = make(request.getfixturevalue(name), 0.5)
    bare, pipeline = dataclasses.replace(loader, carried=False), loader.pipeline
    last = [path for path, n in pipeline.items() if "opacity" in n.stage.definition.fields][-1]
    body, drawn = pipeline.upto(last).without("pixels"), []
    for step in range(6):
        plain, carried, left_out = (one.batch(step) for one in (loader.loader, loader, bare))
        keys = row_keys(fold_in(fold_in(loader.key, "pool"), step), plain)
        shown = random.bernoulli(fold_in(keys, "shown"), 0.5)
        drawn += shown.tolist()
        sample = fpatch.control(body.sample(keys, plain))
        values = body.apply({}, sample, {**plain, **made[0]})
        assert torch.equal(left_out["scene"], values["image"])
        assert torch.equal(carried["scene"][~shown], values["image"][~shown])
        assert (carried["scene"][shown] != values["image"][shown]).flatten(1).any(1).all()
        for label in ("boxes", "quads", "quad_valid", "box_valid"):
            assert torch.equal(left_out[label], values[label])
            assert torch.equal(carried[label], values[label])
    assert set(drawn) == {True, False}


def test_batches_repeat_and_go_on_from_a_step(study):
    loader, _ = make(study, 0.5)
    some = loader.batches(1)
    for step in (1, 2):
        assert_equal(dict(next(some)), dict(loader.batch(step)))
    some.close()
    other, _ = make(study, 0.5, seed=8)
    assert not torch.equal(other.batch(1)["scene"], loader.batch(1)["scene"])


def test_nothing_to_bring_in_and_a_share_beyond_one_are_refused(study):
    loader, _ = make(study, 0.5)
    with pytest.raises(ValueError, match="no stage of the attack brings a patch into an image"):
        dataclasses.replace(loader, pipeline=loader.pipeline.without("implant"))
    with pytest.raises(ValueError, match=r"harden.share must be .*got 1.5"):
        dataclasses.replace(loader, share=1.5)


def test_patches_that_are_trained_together_equal_each_alone(study):
    study = vary(study, {"train.num_steps": 3})
    parts, rho = set_up(study), 3.0
    keys, loader, steps = [random.key(1), random.key(2)], make_loader(study, parts), []
    found = train_patches([parts.objective] * 2, parts.optimizer, keys, loader, 3, steps.append, rho=rho)
    assert steps == [1, 2, 3]
    step = fpatch.make_step(parts.objective, parts.optimizer, rho=rho)
    in_turn = train_patches([parts.objective] * 2, parts.optimizer, keys, loader, 3, alone=[step] * 2)
    flat = train_patches([parts.objective] * 2, parts.optimizer, keys, loader, 3)
    assert (flat[0]["tag"] - found[0]["tag"]).abs().max() > 1e-3
    for params, key in zip(found, keys, strict=True):
        state = fpatch.make_state(parts.objective, parts.optimizer, key)
        *_, (alone, _) = fpatch.fit(state, step, loader, 3)
        torch.testing.assert_close(params["tag"], alone.params["tag"], rtol=0, atol=1e-5)
    assert torch.equal(in_turn[1]["tag"], alone.params["tag"])
    assert not torch.equal(found[0]["tag"], found[1]["tag"])
