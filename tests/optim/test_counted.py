"""Rows without an object do not enter the mean of a loss on objects, however the rows are cut."""

import dataclasses
import logging
import math

import pytest
import torch
from cases import case, classifier, detector
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_equal, stack_rows, take
from study_fixture import logged_steps, make_study, read_records, write_csv

from fpatch import compose, create, implant, infer, losses, random
from fpatch.core.types import Range
from fpatch.graph.node import node
from fpatch.graph.pipeline import Pipeline, pipeline
from fpatch.graph.stage import define, deterministic
from fpatch.optim.counted import ROW_WEIGHTS, to_weights
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.population import make_population_step
from fpatch.optim.schedules import constant, plateau
from fpatch.optim.step import make_state, make_step
from fpatch.runs.logging import step_scalars
from fpatch.runs.replaying import replay_step
from fpatch.runs.training import train
from fpatch.study.config import load_study
from fpatch.study.dry_run import dry_run

KEY, ROWS = random.key(3), 6


def attack(**more) -> Pipeline:
    """Every loss that speaks of objects or places, and one of the patch."""
    return pipeline(
        {
            "pixels": create.pixels({"hood": (3, 20, 31), "roof": (3, 16, 9)}),
            "smooth": losses.total_variation(),
            **more,
            "implant": implant.warp(),
            "victim": infer.detector(detector(seed=1)),
            "vanish": losses.vanish(),
            "relabel": losses.relabel(),
            "appear": losses.hallucinate(1),
            "joined": losses.ensemble(("vanish", "relabel")),
        }
    )


WEIGHTS = {"vanish": 1.0, "relabel": 0.3, "hallucinate": 0.7, "ensemble": 0.2, "total_variation": 0.5}
VALID = {"vanish": "box_valid", "relabel": "box_valid", "hallucinate": "quad_valid", "ensemble": "box_valid"}
CROPPED = attack(crop=compose.resized_crop(Range(0.02, 0.2)))


def batch_of(boxes: list[bool] | None = None, quads: list[bool] | None = None, num: int = ROWS) -> dict:
    """Rows that differ, of which some lack every object, or every placement."""
    batch = take(stack_rows([case(attack()).batch] * 3), list(range(num)))
    batch["draw"] = torch.arange(num)
    for name, there in (("box_valid", boxes), ("quad_valid", quads)):
        if there is not None:
            batch[name] = batch[name] & torch.tensor(there)[:, None]
    return batch


def differentiate(made: Pipeline, weights: dict, batch: dict, rows: list[int] | None = None, **more):
    """On the samples of the whole batch."""
    params, sample = made.init(KEY), made.sample(KEY, batch)
    if rows is not None:
        sample, batch = take(sample, rows), take(batch, rows)
    return value_and_grad(Objective(made, weights), **more)(params, sample, batch)


some = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).filter(any)


@settings(max_examples=12)
@given(some, some)
def test_the_mean_is_that_of_a_batch_without_those_rows(boxes, quads):
    made, batch = attack(), batch_of(boxes, quads)
    grads, loss = differentiate(made, WEIGHTS, batch)
    value, expected = 0.0, {name: torch.zeros_like(grad) for name, grad in grads.items()}
    for term, weight in WEIGHTS.items():
        there = batch[VALID[term]].any(1) if term in VALID else torch.ones(ROWS, dtype=torch.bool)
        own, part = differentiate(made, {term: 1.0}, batch, there.nonzero().flatten().tolist())
        torch.testing.assert_close(part.value, part.terms[term].mean())
        value += weight * float(part.value)
        expected = {name: expected[name] + weight * own[name] for name in own}
    torch.testing.assert_close(float(loss.value), value, rtol=1e-5, atol=1e-6)
    assert_equal(grads, expected, 1e-5)


def test_objects_that_a_crop_has_lost_do_not_count():
    """What counts is what the loss is given, not what the batch held."""
    batch = batch_of()
    params, sample = CROPPED.init(KEY), CROPPED.sample(KEY, batch)
    left = CROPPED.trace(params, sample, batch)["crop"]["box_valid"].any(1)
    assert 0 < int(left.sum()) < int(batch["box_valid"].any(1).sum()) == ROWS
    counted = Objective(CROPPED, WEIGHTS).counted(params, sample, batch)
    assert counted["vanish"].equal(left)
    assert counted["ensemble"].equal(left)
    grads, loss = differentiate(CROPPED, {"vanish": 1.0}, batch)
    own, part = differentiate(CROPPED, {"vanish": 1.0}, batch, left.nonzero().flatten().tolist())
    torch.testing.assert_close(loss.value, part.terms["vanish"].mean())
    assert_equal(grads, own, 1e-5)
    by_func, _ = differentiate(CROPPED, {"vanish": 1.0}, batch, transform="func")
    assert_equal(by_func, grads, 1e-5)


def test_a_node_may_move_boxes_after_a_loss_has_counted_by_them():
    """The second loss counts what the crop between the two has left."""
    made = pipeline(
        {
            "pixels": create.pixels({"hood": (3, 20, 31), "roof": (3, 16, 9)}),
            "implant": implant.warp(),
            "victim": infer.detector(detector(seed=1)),
            "vanish": losses.vanish(),
            "crop": node(
                compose.resized_crop(Range(0.02, 0.2)), reads={"scene": "image"}, writes={"scene": "image"}
            ),
            "again": node(infer.detector(detector(seed=1)), writes=["again"]),
            "later": node(losses.vanish(), reads={"detections": "again"}, writes=["later"]),
        }
    )
    objective, batch = Objective(made, {"vanish": 1.0, "later": 1.0}), batch_of()
    assert objective.tellers == ()
    state = make_state(objective, SGD, KEY)
    _, info = make_step(objective, SGD)(state, batch)
    assert bool(info.counted["vanish"].all())
    assert 0 < int(info.counted["later"].sum()) < ROWS
    _, parts = make_step(objective, SGD, micro_batch=2)(state, batch)
    assert_equal(parts.loss, info.loss, 1e-5)
    (_,), (member,) = make_population_step([objective], [SGD])([state], [batch])
    assert_equal(member.counted, info.counted)
    assert_equal(member.loss, info.loss, 1e-5)


def test_counting_costs_no_second_crop():
    assert Objective(CROPPED, WEIGHTS).tellers == ("box_valid", "quad_valid")


def test_where_all_rows_count_no_bit_is_another():
    weights = to_weights({"a": torch.ones(7, dtype=torch.bool)})["a"]
    assert weights.tolist() == [1.0] * 7
    made, batch = attack(), batch_of()
    params, sample = made.init(KEY), made.sample(KEY, batch)
    objective = Objective(made, WEIGHTS)
    grads, loss = value_and_grad(objective)(params, sample, batch)
    plain, unweighted = value_and_grad(objective)(params, sample, {**batch, ROW_WEIGHTS: {}})
    assert_equal(grads, plain)
    assert_equal(loss.value, unweighted.value)


# -- however the rows are cut

SGD = make_optimizer(Optimizer("sgd", 5.0, "constant"), 10)


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("made", [attack(), CROPPED], ids=["plain", "cropped"])
@pytest.mark.parametrize("cut", [{"micro_batch": 1}, {"micro_batch": 3}, {"processes": 2}, {"processes": 4}])
def test_parts_of_the_rows_are_the_whole(cut, made, rho):
    batch = batch_of([True, False, False, False, True, True], [False, True, True, True, True, True])
    objective = Objective(made, WEIGHTS)
    state = make_state(objective, SGD, KEY)
    whole, info = make_step(objective, SGD, rho=rho)(state, batch)
    parts, found = make_step(objective, SGD, rho=rho, **cut)(state, batch)
    assert 0 < int(info.counted["vanish"].sum()) < ROWS
    assert_equal(parts.params, whole.params, 1e-5)
    assert_equal(found.counted, info.counted)
    assert_equal(found.loss, info.loss, 1e-5)
    assert step_scalars(found) == pytest.approx(step_scalars(info), rel=1e-4)


@pytest.mark.parametrize("at_once", [None, 1])
def test_members_of_a_population_count_their_own_rows(at_once):
    batches = [
        batch_of([True] * 2 + [False] * 4),
        batch_of([False] * 5 + [True], [True, False] * 3),
        batch_of(),
        batch_of([False] * 6),
    ]
    objectives = [Objective(CROPPED, {**WEIGHTS, "vanish": i + 1.0}) for i in range(4)]
    states = [make_state(o, SGD, random.key(i)) for i, o in enumerate(objectives)]
    moved, infos = make_population_step(objectives, [SGD] * 4, members_at_once=at_once, rho=0.2)(
        states, batches
    )
    for i, objective in enumerate(objectives):
        own, info = make_step(objective, SGD, rho=0.2)(states[i], batches[i])
        assert_equal(moved[i].params, own.params, 1e-5)
        assert_equal(infos[i].counted, info.counted)
        assert_equal(infos[i].loss, info.loss, 1e-5)


# -- what is said of it


def test_a_term_without_any_row_is_no_number_and_pulls_nothing():
    batch = batch_of([False] * ROWS)
    objective = Objective(attack(), {"vanish": 1.0, "total_variation": 0.5})
    state = make_state(objective, SGD, KEY)
    after, info = make_step(objective, SGD)(state, batch)
    alone, _ = make_step(Objective(attack(), {"total_variation": 0.5}), SGD)(state, batch)
    assert_equal(after.params, alone.params)
    assert not bool(info.terms["vanish"].any())
    scalars = step_scalars(info)
    assert math.isnan(scalars["train/loss"])
    assert math.isnan(scalars["train/vanish"])
    assert scalars["train/rows/vanish"] == 0
    assert math.isfinite(scalars["train/total_variation"])
    assert math.isfinite(scalars["train/grad_norm"])
    unweighted = make_step(Objective(attack(), {"total_variation": 0.5}), SGD)(state, batch)[1]
    assert math.isfinite(step_scalars(unweighted)["train/loss"])


def test_plateau_does_not_see_a_loss_that_is_no_number():
    def follow(losses: list[float], every: int = 1):
        rate = plateau(constant(1.0), factor=0.5, patience=1, every=every)
        state = rate.init()
        for loss in losses:
            state = rate.after(state, torch.tensor(loss))
        return float(rate.now(state)), float(state.best), int(state.num_bad)

    nan = math.nan
    assert follow([3.0, nan, nan, nan, nan, 2.0, nan]) == follow([3.0, 2.0])
    assert follow([3.0, nan, 4.0, nan, 4.0]) == follow([3.0, 4.0, 4.0]) == (0.5, 3.0, 0)
    assert follow([3.0, nan, nan, 2.0, nan, nan, 5.0], every=2) == (1.0, 2.0, 0)
    assert follow([nan, 6.0, nan, 9.0, 3.0, nan], every=3) == (1.0, 6.0, 1)


def drop_objects(path, photographs: set[int]) -> None:
    """Without the objects of these photographs; there remain their placements."""
    table = path.parent / "objects.csv"
    kept = [
        line.split(",")
        for line in table.read_text().splitlines()
        if not any(line.startswith(f"photograph-{i:02d}") for i in photographs)
    ]
    write_csv(table, kept)


def test_a_run_counts_its_rows_and_says_so(tmp_path, caplog):
    path = make_study(tmp_path)
    drop_objects(path, {1, 3})
    with caplog.at_level(logging.WARNING):
        run = train(load_study(path, {"train.micro_batch": 3}))
    said = [r.getMessage() for r in caplog.records]
    assert said[0] == (
        "2 of 5 training images (40 %) have no object for the loss term 'vanish'; "
        "they are left out of its mean"
    )
    assert sum("rows have no object for 'vanish', and are left out of its mean" in line for line in said) == 1
    steps = logged_steps(run.folder, "train/rows/vanish")
    assert steps
    for record in read_records(run.folder):
        if record["step"] in steps and "train/rows/vanish" in record["values"]:
            assert 0 < float(record["values"]["train/rows/vanish"]) < 4
    for step in (1, max(steps)):
        assert replay_step(run.folder, step).identical


def test_a_term_that_counts_no_training_image_is_refused(tmp_path):
    path = make_study(tmp_path)
    drop_objects(path, {0, 1, 2, 3, 4})
    with pytest.raises(ValueError, match="none of the 5 training images has an object for the loss term 'va"):
        dry_run(load_study(path))
    with pytest.raises(ValueError, match=r"\(box_valid\); add objects to the data, or leave the term out"):
        train(load_study(path))
    assert not (tmp_path / "runs").exists()
    dry_run(load_study(path, {"objective.weights.vanish": 0.0}))


# -- where it is declared


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.mark.parametrize(
    ("role", "counted"), [("stage", "box_valid"), ("metric", "box_valid"), ("loss", "quad_valid")]
)
def test_only_a_loss_counts_by_what_it_reads(role, counted):
    with pytest.raises(ValueError, match=f"counted='{counted}' must be a name in the reads of a loss, got"):
        define(
            "counts",
            Nothing,
            deterministic,
            lambda *_: {},
            reads=("box_valid",),
            writes=("a",),
            role=role,
            counted=counted,
        )


def test_names_go_with_the_wiring():
    reads = {"box_valid": "cars_valid", "boxes": "cars"}
    made = pipeline(
        {"victim": infer.detector(detector(seed=1)), "vanish": node(losses.vanish(), reads=reads)}
    )
    batch = case(made, cars=batch_of()["boxes"], cars_valid=torch.tensor([[True], [False], [True]])).batch
    counted = Objective(made, {"vanish": 1.0}).counted({}, {}, batch)
    assert counted["vanish"].tolist() == [True, False, True]


def test_what_speaks_of_every_row_counts_every_row():
    box = attack() | {"appear": losses.hallucinate(1, box=(0.1, 0.1, 0.5, 0.5))}
    assert sorted(Objective(box, WEIGHTS).sources) == ["ensemble", "relabel", "vanish"]
    mixed = attack() | {"joined": losses.ensemble(("vanish", "total_variation"))}
    assert "ensemble" not in Objective(mixed, WEIGHTS).sources
    whole = pipeline({"victim": infer.classifier(classifier(seed=2)), "loss": losses.misclassify()})
    assert Objective(whole, {"misclassify": 1.0}).sources == {}
