"""Optimizers step by step against torch.optim, torchopt and the equations of their papers."""

import optree
import pytest
import torch
import torchopt
from laws import assert_equal
from torch import Tensor

from fpatch import random
from fpatch.optim import Optimizer, constant, cosine, make_optimizer, momentum, scale_by_adam

STEPS = 12
NAMES = ("adam", "sgd", "bim", "mifgsm")


def draw(name: str, *shape: int) -> Tensor:
    return random.uniform(random.fold_in(random.key(3), name), shape) - 0.5


def start() -> dict[str, Tensor]:
    return {"hood": draw("hood", 3, 5, 7), "roof": draw("roof", 1, 4, 2)}


def gradient(step: int) -> dict[str, Tensor]:
    return {name: draw(f"{name}{step}", *value.shape) for name, value in start().items()}


def descend(config: Optimizer, gradients, num_steps: int = STEPS) -> list[dict[str, Tensor]]:
    """The parameters after every step."""
    optimizer = make_optimizer(config, num_steps)
    params, trail = start(), []
    state = optimizer.init(params)
    for step in range(num_steps):
        updates, state = optimizer.update(gradients(step), state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        trail.append(params)
    return trail


def descend_with_torch(make, gradients, schedule=None) -> list[dict[str, Tensor]]:
    params = {name: value.clone().requires_grad_() for name, value in start().items()}
    optimizer = make(params.values())
    scheduler = schedule(optimizer) if schedule else None
    trail = []
    for step in range(STEPS):
        for name, value in gradients(step).items():
            params[name].grad = value
        optimizer.step()
        if scheduler:
            scheduler.step()
        trail.append({name: value.detach().clone() for name, value in params.items()})
    return trail


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_adam_equals_torch(betas):
    found = descend(Optimizer("adam", 0.05, "constant", betas=betas), gradient)
    expected = descend_with_torch(lambda p: torch.optim.Adam(p, lr=0.05, betas=betas), gradient)
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b, 2e-6)


def test_adam_equals_torchopt():
    optimizer = torchopt.adam(lr=0.05)
    params = start()
    state = optimizer.init(params)
    for step, found in enumerate(descend(Optimizer("adam", 0.05, "constant"), gradient)):
        updates, state = optimizer.update(gradient(step), state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        assert_equal(found, params, 1e-5)  # torchopt corrects the bias in float32


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_sgd_with_cosine_equals_torch(decay):
    found = descend(Optimizer("sgd", 0.3, "cosine", momentum=decay), gradient)
    expected = descend_with_torch(
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=decay),
        gradient,
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    )
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b, 2e-6)


def test_bim_is_the_sign_of_the_gradient():
    """Kurakin, Goodfellow and Bengio (2016), section 2.2, descending."""
    params = start()
    for step, found in enumerate(descend(Optimizer("bim", 1 / 255, "constant"), gradient)):
        params = {name: value - gradient(step)[name].sign() / 255 for name, value in params.items()}
        assert_equal(found, params, 1e-6)


def test_mifgsm_accumulates_normalized_gradients():
    """Dong et al. (2018), equations 6 and 7, descending."""
    params = start()
    velocity = {name: torch.zeros_like(value) for name, value in params.items()}
    for step, found in enumerate(descend(Optimizer("mifgsm", 2 / 255, "constant", momentum=0.8), gradient)):
        for name, grad in gradient(step).items():
            velocity[name] = 0.8 * velocity[name] + grad / grad.abs().sum()
            params[name] = params[name] - velocity[name].sign() * 2 / 255
        assert_equal(found, params, 1e-6)


def test_mifgsm_normalizes_each_patch_by_its_l1_norm():
    accumulate = momentum(0.5, normalize=True)
    velocity, state = accumulate.update(gradient(0), accumulate.init(start()))
    assert_equal(velocity, {name: grad / grad.abs().sum() for name, grad in gradient(0).items()}, 1e-7)
    second, _ = accumulate.update(gradient(0), state)
    assert_equal(second, {name: 1.5 * value for name, value in velocity.items()}, 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_gradient_does_no_harm(name):
    def mostly_zero(step):
        return optree.tree_map(lambda g: g * (step == 1), gradient(1))

    trail = descend(Optimizer(name, 0.05, "constant"), mostly_zero)
    assert_equal(trail[0], start())
    assert not torch.equal(trail[1]["hood"], start()["hood"])
    assert all(bool(torch.isfinite(value).all()) for value in trail[-1].values())


@pytest.mark.parametrize("name", NAMES)
def test_a_population_moves_as_its_members(name):
    optimizer = make_optimizer(Optimizer(name, 0.05), STEPS)
    params = optree.tree_map(lambda v: torch.stack([v, 1 - v, 2 * v]), start())
    state = torch.func.vmap(optimizer.init)(params)
    for step in range(3):
        grads = optree.tree_map(lambda g: torch.stack([g, -2 * g, g * g]), gradient(step))
        updates, state = torch.func.vmap(lambda g, s: optimizer.update(g, s, inplace=False))(grads, state)
        params = torchopt.apply_updates(params, updates, inplace=False)
    for i in range(3):
        alone = optree.tree_map(lambda v, i=i: [v, 1 - v, 2 * v][i], start())
        alone_state = optimizer.init(alone)
        for step in range(3):
            grads = optree.tree_map(lambda g, i=i: [g, -2 * g, g * g][i], gradient(step))
            updates, alone_state = optimizer.update(grads, alone_state, inplace=False)
            alone = torchopt.apply_updates(alone, updates, inplace=False)
        assert_equal(optree.tree_map(lambda v, i=i: v[i], params), alone, 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_in_place(name):
    optimizer = make_optimizer(Optimizer(name, 0.05), STEPS)
    params, grads = start(), gradient(0)
    state = optimizer.init(params)
    _, state = optimizer.update(grads, state, params=params, inplace=False)
    before = optree.tree_map(Tensor.clone, (params, grads, state))
    optimizer.update(grads, state, params=params, inplace=False)
    assert_equal((params, grads, state), before)


@pytest.mark.parametrize("name", NAMES)
def test_updates_compile(name):
    optimizer = make_optimizer(Optimizer(name, 0.05), STEPS)
    state = optimizer.init(start())
    torch._dynamo.reset()
    compiled = torch.compile(lambda g, s: optimizer.update(g, s, inplace=False), backend="aot_eager")
    updates, after = compiled(gradient(0), state)
    expected, expected_after = optimizer.update(gradient(0), state, inplace=False)
    assert_equal(updates, expected, 1e-7)
    assert_equal(after, expected_after, 1e-7)


def test_schedules():
    steps = torch.arange(5)
    assert constant(0.3)(steps).tolist() == pytest.approx([0.3] * 5)
    assert cosine(2.0, 4)(steps).tolist() == pytest.approx([2.0, 1.7071068, 1.0, 0.2928932, 0.0], abs=1e-6)
    assert cosine(2.0, 4, final_frac=0.5)(steps).tolist() == pytest.approx(
        [2.0, 1.8535534, 1.5, 1.1464466, 1.0]
    )
    assert float(cosine(2.0, 4)(torch.tensor(9))) == pytest.approx(0.0, abs=1e-6)


def test_adam_of_one_gradient_is_its_sign():
    """Kingma and Ba (2015), section 2.1: a first step ignores the scale of the gradient."""
    optimizer = scale_by_adam()
    for scale in (1e-2, 1.0, 1e4):
        grads = optree.tree_map(lambda g, scale=scale: g * scale, gradient(0))
        direction, _ = optimizer.update(grads, optimizer.init(start()), inplace=False)
        assert_equal(direction, optree.tree_map(torch.sign, grads), 1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "optimizer.learning_rate must be at least 0, got -1.0"),
        ({"momentum": 1.5}, "optimizer.momentum must be between 0 and 1, got 1.5"),
        ({"betas": (0.9, 1.0)}, "optimizer.betas must be between 0 and 0.999999, got 1.0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**settings)
