"""A step by hand: accumulation, sharpness-aware steps and looking ahead, alone and in a study."""

import dataclasses
import math
import re
import tomllib
from pathlib import Path

import optree
import pytest
import torch
from cases import case, demo
from laws import assert_equal, stack_rows
from study_fixture import STEPS, logged_steps, make_study, parameters
from torch import Tensor

from fpatch import create, pipeline, random, row_keys
from fpatch.core.registry import lookup
from fpatch.core.schema import decode
from fpatch.graph.stage import Definition
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.step import TrainState, make_state, make_step
from fpatch.optim.transforms import Transformation
from fpatch.runs.folder import Run
from fpatch.runs.opening import open_run
from fpatch.runs.replaying import replay_step
from fpatch.runs.training import resume, train
from fpatch.study.config import load_study
from fpatch.study.settings import TrainConfig
from fpatch.study.setup import set_up

WEIGHTS = {"vanish": 1.0, "total_variation": 0.2, "non_printability": 0.05}
SUBJECT = case(demo().at("train"))
OBJECTIVE = Objective(SUBJECT.subject, WEIGHTS)


def started(optimizer, objective=OBJECTIVE) -> TrainState:
    return make_state(objective, optimizer, random.key(11))


def batch_of(num_rows: int) -> dict:
    """Many uses of the photographs of the case."""
    some = stack_rows([SUBJECT.batch] * math.ceil(num_rows / 3))
    some = {name: value if name == "patch" else value[:num_rows] for name, value in some.items()}
    return some | {"draw": torch.arange(num_rows)}


def gradient_by_hand(state: TrainState, batch: dict, params: dict) -> tuple[dict[str, Tensor], Tensor]:
    """Of the whole batch at some parameters, on the samples of the step."""
    keys = row_keys(random.fold_in(random.fold_in(state.key, "train"), state.step), batch)
    grads, loss = value_and_grad(OBJECTIVE)(params, OBJECTIVE.pipeline.sample(keys, batch), batch)
    return grads, loss.value


# -- accumulation


@pytest.mark.parametrize("rho", [0.0, 2.0])
def test_four_times_five_rows_are_twenty(rho):
    optimizer = make_optimizer(Optimizer("sgd", 1.0, "constant"), 10)
    batch, states, infos = batch_of(20), [], []
    for micro_batch in (None, 5, 7, 1, 50):
        state, info = make_step(OBJECTIVE, optimizer, micro_batch=micro_batch, rho=rho)(
            started(optimizer), batch
        )
        states.append(state.params)
        infos.append(info)
    moved = {name: value - started(optimizer).params[name] for name, value in states[0].items()}
    assert all(float(value.abs().max()) > 1e-4 for value in moved.values())
    for params, info in zip(states[1:], infos[1:], strict=True):
        assert_equal(params, states[0], 2e-6)
        assert_equal(info.sample, infos[0].sample)
        assert_equal(info.terms, infos[0].terms, 2e-5)
        torch.testing.assert_close(info.loss, infos[0].loss)
        torch.testing.assert_close(info.grad_norm, infos[0].grad_norm, rtol=1e-4, atol=0.0)


def test_no_more_rows_than_a_micro_batch_go_through_at_once(monkeypatch):
    seen = []

    def spied(objective, transform, wrt):
        gradient = value_and_grad(objective, transform, wrt)
        return lambda params, sample, batch: (
            seen.append(len(batch["image_id"])) or gradient(params, sample, batch)
        )

    monkeypatch.setattr("fpatch.optim.step.value_and_grad", spied)
    optimizer = make_optimizer(Optimizer(), 10)
    make_step(OBJECTIVE, optimizer, micro_batch=5, rho=1.0)(started(optimizer), batch_of(13))
    assert seen == [5, 5, 3] * 2
    seen.clear()
    make_step(OBJECTIVE, optimizer)(started(optimizer), batch_of(13))
    assert seen == [13]


# -- sharpness-aware


def test_sharpness_aware_by_hand():
    """Foret et al. (2021), equations 2 and 3, on the demo: the same samples, and the patch."""
    optimizer = make_optimizer(Optimizer("sgd", 0.5, "constant", momentum=0.0), 10)
    state, batch, rho = started(optimizer), batch_of(4), 3.0
    for _ in range(2):
        grads, loss = gradient_by_hand(state, batch, state.params)
        length = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        above = {name: value + rho * grads[name] / length for name, value in state.params.items()}
        distance = sum(float((above[n] - v).double().square().sum()) for n, v in state.params.items())
        assert math.sqrt(distance) == pytest.approx(rho, rel=1e-4)
        sharp, higher = gradient_by_hand(state, batch, above)
        assert float(higher) > float(loss)
        expected = {name: (value - 0.5 * sharp[name]).clamp(0, 1) for name, value in state.params.items()}
        plain = {name: (value - 0.5 * grads[name]).clamp(0, 1) for name, value in state.params.items()}
        state, info = make_step(OBJECTIVE, optimizer, rho=rho)(state, batch)
        assert_equal(state.params, expected, 1e-6)
        assert all(float((expected[n] - plain[n]).abs().max()) > 1e-4 for n in plain)
        torch.testing.assert_close(info.loss, loss)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in sharp.values()))
        assert float(info.grad_norm) == pytest.approx(norm, rel=1e-4)


BOWL = {"image_id": torch.arange(3), "draw": torch.zeros(3, dtype=torch.int64)}


def bowl(slope: float = 1.0, low: tuple[float, float] = (0.5, 0.5)):
    """A loss that is a quadratic function of two patches, whose rows have weights 1, 2 and 3."""

    def quadratic(values, patch_params):
        weights = values["image_id"].float() + 1
        errors = [(p - c).square().sum() for p, c in zip(patch_params.values(), low, strict=True)]
        return {"quadratic": slope * weights * (errors[0] + 3 * errors[1])}

    made = pipeline({"pixels": create.pixels({"a": (1, 2, 3), "b": (3, 1, 2)}), "quadratic": quadratic})
    return Objective(made, {"quadratic": 1.0})


@pytest.mark.parametrize("transform", ["autograd", "func"])
def test_sharpness_aware_on_a_quadratic(transform):
    """The loss is 2 (|a - c|^2 + 3 |b - c|^2) in the mean, so that everything has a closed form."""
    objective, rho = bowl(), 0.2
    optimizer = make_optimizer(Optimizer("sgd", 1 / 64, "constant", momentum=0.0), 10)
    state = started(optimizer, objective)
    a, b = (value.double() for value in state.params.values())
    step = make_step(objective, optimizer, transform=transform, rho=rho)
    for _ in range(5):
        slope_a, slope_b = 4 * (a - 0.5), 12 * (b - 0.5)
        length = math.sqrt(float(slope_a.square().sum() + slope_b.square().sum()))
        a = a - 4 * (a + rho * slope_a / length - 0.5) / 64
        b = b - 12 * (b + rho * slope_b / length - 0.5) / 64
        state, _ = step(state, BOWL)
        assert_equal(state.params, {"a": a.float(), "b": b.float()}, 1e-6)


def test_without_a_gradient_nothing_is_divided_by_zero():
    objective = bowl(slope=0.0)
    optimizer = make_optimizer(Optimizer("nifgsm", 0.1), 10)
    state = started(optimizer, objective)
    after, info = make_step(objective, optimizer, rho=1.0)(state, BOWL)
    assert_equal(after.params, state.params)
    assert float(info.grad_norm) == 0.0


def test_rho_0_is_no_second_pass():
    optimizer = make_optimizer(Optimizer(), 10)
    state, batch = started(optimizer), batch_of(4)
    grads, _ = gradient_by_hand(state, batch, state.params)
    updates, _ = optimizer.update(grads, state.opt_state, params=state.params, inplace=False)
    expected = {name: (value + updates[name]).clamp(0, 1) for name, value in state.params.items()}
    for found in (make_step(OBJECTIVE, optimizer), make_step(OBJECTIVE, optimizer, rho=0.0)):
        assert_equal(found(state, batch)[0].params, expected)


@pytest.mark.parametrize("rho", [-0.1, math.nan])
def test_rho_is_a_distance(rho):
    with pytest.raises(ValueError, match=rf"train.rho must be at least 0, got {rho}"):
        make_step(OBJECTIVE, make_optimizer(Optimizer(), 10), rho=rho)


# -- looking ahead


def test_nifgsm_looks_ahead_within_the_range_of_pixels(monkeypatch):
    """And what it looks from are the parameters: nothing hidden drifts away while they are clamped."""
    objective, seen = bowl(low=(-5.0, 7.0)), []

    def spied(objective, transform, wrt):
        gradient = value_and_grad(objective, transform, wrt)
        return lambda params, *others: seen.append(params) or gradient(params, *others)

    monkeypatch.setattr("fpatch.optim.step.value_and_grad", spied)
    optimizer = make_optimizer(Optimizer("nifgsm", 0.25, "constant", momentum=1.0), 40)
    state, step = started(optimizer, objective), make_step(objective, optimizer)
    for number in range(12):
        before = state
        state, _ = step(state, BOWL)
        expected = {
            n: v.clamp(0, 1) for n, v in optimizer.look_ahead(before.params, before.opt_state).items()
        }
        assert_equal(seen[-1], expected)
        assert all(0 <= float(v.min()) <= float(v.max()) <= 1 for v in seen[-1].values())
        if number < 2:
            assert torch.equal(seen[-1]["a"], before.params["a"]) == (number == 0)
    assert float(state.params["a"].max()) == 0.0
    assert float(state.params["b"].min()) == 1.0


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_nifgsm_by_hand(rho):
    """Lin et al. (2020), equations 6 to 8: looked ahead, moved from where it stands, then clipped."""
    objective, size, decay = bowl(), 1 / 64, 0.75
    optimizer = make_optimizer(Optimizer("nifgsm", size, "constant", momentum=decay), 40)
    state, step = started(optimizer, objective), make_step(objective, optimizer, rho=rho)
    x = {name: value.double() for name, value in state.params.items()}
    velocity = {name: torch.zeros_like(value) for name, value in x.items()}
    for _ in range(8):
        point = {n: (v - size * decay * velocity[n]).clamp(0, 1) for n, v in x.items()}
        slopes = {n: {"a": 4, "b": 12}[n] * (v - 0.5) for n, v in point.items()}
        length = math.sqrt(sum(float(g.square().sum()) for g in slopes.values()))
        for name, value in x.items():
            above = point[name] + rho * slopes[name] / length
            slope = {"a": 4, "b": 12}[name] * (above - 0.5)
            velocity[name] = decay * velocity[name] + slope / slope.abs().sum()
            x[name] = (value - size * velocity[name].sign()).clamp(0, 1)
        state, _ = step(state, BOWL)
        assert_equal(state.params, {name: value.float() for name, value in x.items()}, 1e-6)


def test_the_optimizer_is_given_where_the_patch_is():
    """And not where it looked."""
    optimizer, seen = make_optimizer(Optimizer("nifgsm", 0.1), 10), []

    def spied(updates, state, *, params, **others):
        seen.append(params)
        return optimizer.update(updates, state, params=params, **others)

    step = make_step(bowl(), Transformation(optimizer.init, spied, optimizer.look_ahead))
    state = started(optimizer, bowl())
    for _ in range(3):
        before = state
        state, _ = step(state, BOWL)
        assert_equal(seen[-1], before.params)


def test_the_loss_of_the_whole_batch_reaches_plateau():
    optimizer = make_optimizer(Optimizer("sgd", 0.01, "plateau", momentum=0.0), 10)
    state, info = make_step(bowl(), optimizer, micro_batch=2)(started(optimizer, bowl()), BOWL)
    assert float(state.opt_state[1].best) == float(info.loss)
    torch.testing.assert_close(info.loss, info.terms["quadratic"].mean())


def test_any_torchopt_transformation_will_do():
    import torchopt

    state, _ = make_step(bowl(), torchopt.sgd(lr=0.125))(started(torchopt.sgd(lr=0.125), bowl()), BOWL)
    expected = started(make_optimizer(Optimizer(), 10), bowl()).params
    expected = {n: v - 0.125 * {"a": 4, "b": 12}[n] * (v - 0.5) for n, v in expected.items()}
    assert_equal(state.params, {n: v.clamp(0, 1) for n, v in expected.items()}, 1e-6)


# -- in a study


STUDIES = {
    "plateau": (
        ('name = "nifgsm"', "learning_rate = 0.3", 'schedule = "plateau"', "patience = 0", "threshold = 0.9"),
        ("rho = 0.5", "micro_batch = 3"),
    ),
    "epochs": (
        (
            'name = "adamw"',
            'schedule = "multi_step"',
            "milestones = [1, 3]",
            'unit = "epoch"',
            "warmup_steps = 2",
        ),
        (),
    ),
}


def study(folder, name: str):
    path = make_study(folder, validation=False)
    optimizer, training = STUDIES[name]
    text = path.read_text().replace(
        "[optimizer]\nlearning_rate = 0.1", "\n".join(["[optimizer]", *optimizer])
    )
    path.write_text(text.replace("[train]", "\n".join(["[train]", *training])))
    return load_study(path)


@pytest.mark.parametrize("name", STUDIES)
def test_stopped_in_the_middle_it_goes_on_to_the_same_bits(tmp_path, name):
    whole = train(study(tmp_path / "whole", name))
    last, _ = whole.load_checkpoint("last", set_up(open_run(whole.folder)[1]).initial)

    def stop(task, done, total, note=""):
        if task == "training" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(study(tmp_path / "stopped", name), stop)
    (folder,) = (tmp_path / "stopped/runs").iterdir()
    run = Run(folder)
    like = set_up(open_run(folder)[1]).initial
    state, _ = run.load_checkpoint("last", like)
    assert state.step == 5
    if name == "plateau":
        assert 0 < float(state.opt_state[1].scale) < 1
        assert float(state.opt_state[1].best) < 100
    resume(folder)
    found, _ = run.load_checkpoint("last", like)
    assert parameters(run) == parameters(whole)
    assert_equal(optree.tree_leaves(found.opt_state), optree.tree_leaves(last.opt_state))
    assert logged_steps(folder) == list(range(1, STEPS + 1))
    for step in (1, 4, 6):
        assert replay_step(folder, step).identical


def test_a_study_has_two_passes_of_two_parts(tmp_path, monkeypatch):
    seen = []

    def spied(objective, transform, wrt):
        gradient = value_and_grad(objective, transform, wrt)
        return lambda params, sample, batch: (
            seen.append(len(batch["image_id"])) or gradient(params, sample, batch)
        )

    monkeypatch.setattr("fpatch.optim.step.value_and_grad", spied)
    train(study(tmp_path, "plateau"))
    assert seen == [3, 1] * 2 * STEPS


def test_an_epoch_is_every_photograph_once(tmp_path):
    """Five photographs in batches of four: after steps 2, 3, 4, 5 and 7 of the run, counted from 1."""
    parts = set_up(study(tmp_path, "epochs"))
    assert parts.dataset.split("train").image_ids.tolist() == [0, 1, 2, 3, 4]
    state, rates = parts.initial.opt_state, []
    for _ in range(6):
        zero = optree.tree_map(torch.zeros_like, parts.initial.params)
        ones = optree.tree_map(torch.ones_like, parts.initial.params)
        updates, state = parts.optimizer.update(zero, state, params=ones, inplace=False)
        rates.append(-float(updates["side"][0, 0, 0]) / 0.01)
    assert rates == pytest.approx([0.05 / 3, 0.05 * 2 / 3, 0.005, 0.005, 0.0005, 0.0005], rel=1e-5)


def test_epochs_do_not_go_with_replacement(tmp_path):
    path = make_study(tmp_path, validation=False)
    optimizer = '[optimizer]\nschedule = "step"\nfall_every = 1\nunit = "epoch"'
    path.write_text(
        path.read_text().replace("[optimizer]", optimizer).replace("[train]", "[train]\nreplace = true")
    )
    with pytest.raises(
        ValueError, match=r"optimizer.unit is 'epoch', but images drawn with replacement have"
    ):
        train(load_study(path))
    assert not (tmp_path / "runs").exists()


def test_a_negative_rho_is_refused_before_a_run(tmp_path):
    path = make_study(tmp_path)
    path.write_text(path.read_text().replace("[train]", "[train]\nrho = -1.0"))
    with pytest.raises(ValueError, match=r"train.rho must be at least 0, got -1.0"):
        load_study(path)


def test_the_sections_in_the_documentation_are_valid():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "reference/training.md").read_text()
    blocks = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    optimizer, training, faster = blocks
    assert decode(Optimizer, optimizer["optimizer"], "optimizer").fall_every == 20
    assert decode(TrainConfig, training["train"], "train").rho == 0.5
    assert decode(TrainConfig, faster["train"], "train").precision == "bfloat16"
    page = (docs / "how-to/printable-patches.md").read_text()
    blocks = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    assert [name for block in blocks for name in block["pipeline"]] == ["printable", "keep"]
    for block in blocks:
        for stage in block["pipeline"].values():
            definition = lookup(stage.pop("stage"), Definition, "documentation")
            assert set(stage) <= {f.name for f in dataclasses.fields(definition.config)}
