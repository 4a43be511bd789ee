"""Optimizers step by step against torch.optim, torchopt and the equations of their papers."""

import functools
import itertools
import math
from fractions import Fraction

import optree
import pytest
import torch
import torchopt
import torchopt.transform as theirs
from laws import assert_equal
from torch import Tensor
from torchopt.base import EmptyState
from typecheck import unchecked

from fpatch import random
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.schedules import constant, cosine, one_cycle, plateau
from fpatch.optim.transforms import clip_norm, momentum, scale_by_adam

STEPS = 12
SLOW_UNDER_VMAP = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torchopt's addcmul_
NAMES = ("adam", "adamw", "adamax", "adagrad", "adadelta", "rmsprop", "sgd", "bim", "mifgsm", "nifgsm")


@functools.cache
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
        if scheduler and step + 1 < STEPS:
            scheduler.step()
        trail.append({name: value.detach().clone() for name, value in params.items()})
    return trail


TORCH = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
FLOAT32 = ("adam", "adamw", "adamax")  # of torchopt, which corrects the bias in float32
EQUAL = [
    ("adam", {}),
    ("adam", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("adamw", {}),
    ("adamw", {"betas": (0.8, 0.7), "weight_decay": 0.3}),
    ("adamw", {"eps": 0.1, "weight_decay": 0.0}),
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 1.0}),
    ("rmsprop", {}),
    ("rmsprop", {"square_decay": 0.5, "eps": 0.01}),
    ("adamax", {}),
    ("adamax", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("adagrad", {}),
    ("adagrad", {"eps": 0.1}),
    ("adadelta", {}),
    ("adadelta", {"square_decay": 0.5, "eps": 0.01}),
]
EQUAL += [(name, settings | {"library": "fpatch"}) for name, settings in EQUAL[:5] + EQUAL[8:10]]


@pytest.mark.parametrize("learning_rate", [1 / 32, 1 / 4])
@pytest.mark.parametrize(("name", "settings"), EQUAL)
def test_optimizers_equal_those_of_torch(name, settings, learning_rate):
    """Fifty steps in float64; the learning rates are powers of two, which float32 holds exactly."""
    optimizer = make_optimizer(Optimizer(name, learning_rate, "constant", **settings), 50)
    params = {name: value.double() for name, value in start().items()}
    expected = {name: value.clone().requires_grad_() for name, value in params.items()}
    decay = {"adadelta": "rho", "rmsprop": "alpha"}.get(name, "")
    given = {decay if key == "square_decay" else key: value for key, value in settings.items()}
    is_single = given.pop("library", "torchopt") == "torchopt" and name in FLOAT32
    if name in ("adagrad", "adadelta"):
        given = {"eps": 1e-8, **({"rho": 0.99} if name == "adadelta" else {}), **given}
    other = TORCH[name](expected.values(), lr=learning_rate, **given)
    state = optimizer.init(params)
    for step in range(50):
        grads = {name: value.double() for name, value in gradient(step).items()}
        for name, value in expected.items():
            value.grad = grads[name]
        other.step()
        updates, state = optimizer.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        assert_equal(
            params, {n: value.detach() for n, value in expected.items()}, 1e-5 if is_single else 1e-12
        )


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", lambda: torchopt.adam(0.05)),
        ("adamw", lambda: torchopt.adamw(0.05, weight_decay=0.01)),
        ("rmsprop", lambda: torchopt.rmsprop(0.05)),
        ("adamax", lambda: torchopt.adamax(0.05, eps=1e-8)),
        ("adagrad", lambda: torchopt.adagrad(0.05, eps=1e-8)),
        ("adadelta", lambda: torchopt.adadelta(0.05, rho=0.99, eps=1e-8)),
    ],
)
def test_torchopt_supplies_optimizers_by_name(name, make):
    """The same numbers as torchopt's own optimizer; those of fpatch are within 1e-5."""
    optimizer, params = make(), start()
    state = optimizer.init(params)
    ours = [descend(Optimizer(name, 0.05, "constant"), gradient)]
    if name in ("adam", "adamw", "rmsprop"):
        ours.append(descend(Optimizer(name, 0.05, "constant", library="fpatch"), gradient))
    for step in range(STEPS):
        updates, state = optimizer.update(gradient(step), state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        for found, tolerance in zip(ours, (2e-7, 1e-5), strict=False):
            assert_equal(found[step], params, tolerance)


# -- why fpatch has some of its own


def test_the_momentum_of_torchopt_forgets_itself_on_a_resume():
    """Its `trace` counts its calls outside of the state; ours gives the same update after a resume."""

    def velocity(make, restarted: bool) -> Tensor:
        optimizer, grads = make(0.9), torch.ones(2)
        _, state = optimizer.update(grads, optimizer.init(torch.zeros(2)), inplace=False)
        optimizer = make(0.9) if restarted else optimizer
        return optimizer.update(grads, state, inplace=False)[0]

    trace = theirs.trace
    assert not torch.equal(velocity(trace, restarted=True), velocity(trace, restarted=False))
    assert torch.equal(velocity(momentum, restarted=True), velocity(momentum, restarted=False))
    assert torch.equal(velocity(trace, restarted=False), velocity(momentum, restarted=False))


def test_the_clipping_of_torchopt_does_not_vmap():
    grads = torch.stack([torch.full((3,), 1.0), torch.full((3,), 0.1)])

    def clip(make):
        optimizer = make(1.0)
        return torch.func.vmap(lambda g: optimizer.update({"a": g}, EmptyState(), inplace=False)[0]["a"])

    with pytest.raises(RuntimeError, match="item"):
        clip(torchopt.clip_grad_norm)(grads)
    assert_equal(clip(clip_norm)(grads).norm(dim=1), torch.tensor([1.0, 0.03**0.5]), 1e-6)


def test_torchopt_counts_adamax_in_a_python_number():
    assert theirs.scale_by_adamax().init(torch.zeros(2)).t == 1
    state = make_optimizer(Optimizer("adamax"), 3).init(torch.zeros(2))
    assert all(isinstance(leaf, Tensor) for leaf in optree.tree_leaves(state))


@SLOW_UNDER_VMAP
def test_radam_of_torchopt_has_no_name():
    """It branches on its count, which therefore cannot be a tensor of a population."""
    init, update = theirs.scale_by_radam()
    states = torch.func.vmap(lambda params: init(params)._replace(t=params.new_ones(())))(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        torch.func.vmap(lambda g, s: update(g, s, inplace=False))(torch.ones(2, 3), states)


# -- one-cycle and clipping


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_one_cycle_equals_that_of_torch(name):
    """Rate and momentum, with the betas of AdamW."""
    own = {"momentum": 0.95} if name == "sgd" else {"betas": (0.95, 0.99)}
    config = Optimizer(name, 0.05, "one_cycle", peak_momentum=0.85, **own)
    found = descend(config, gradient)
    expected = descend_with_torch(
        lambda p: TORCH[name](p, lr=0.05, **own),
        gradient,
        lambda o: lr.OneCycleLR(o, 0.05, total_steps=STEPS),
    )
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b, 2e-6)
    still = descend(Optimizer(name, 0.05, "one_cycle", **own), gradient)
    assert (still[-1]["hood"] - found[-1]["hood"]).abs().max() > 1e-3


def test_the_rate_of_one_cycle_equals_that_of_torch_to_a_billionth():
    schedule = one_cycle(0.006 / 25, 0.006, 0.006 * 4e-6, 400, 0.2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.006)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.006, total_steps=400, pct_start=0.2)
    for step in range(400):
        assert float(schedule(torch.tensor(step))) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < 399:
            theirs.step()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 10])
def test_one_cycle_of_few_steps(num_steps):
    """3 steps with a rise of a third end the rise in the first; 1 and 2 have none."""
    found = rates({"schedule": "one_cycle"}, num_steps)
    assert all(0 < rate <= 0.5 for rate in found)
    assert found == sorted(found, reverse=True) or num_steps > 3
    assert found[-1] == pytest.approx(2e-6, rel=0.05)


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "adagrad", "adadelta", "rmsprop", "sgd"])
def test_clipping_equals_that_of_torch(name):
    own = {"momentum": 0.9} if name == "sgd" else {"eps": 1e-8}
    found = descend(Optimizer(name, 0.05, "constant", clip_norm=0.5, **own), gradient)
    params = {n: v.clone().requires_grad_() for n, v in start().items()}
    more = {"rmsprop": {"alpha": 0.99}, "adadelta": {"rho": 0.99}}.get(name, {})
    optimizer = TORCH[name](params.values(), lr=0.05, **own, **more)
    for step, after in enumerate(found):
        for n, value in gradient(step).items():
            params[n].grad = value.clone()
        norm = torch.nn.utils.clip_grad_norm_(params.values(), 0.5)
        assert norm > 0.5  # which clips
        optimizer.step()
        assert_equal(after, {n: v.detach() for n, v in params.items()}, 1e-5)


def test_a_short_gradient_is_not_clipped():
    short = functools.partial(descend, gradients=lambda step: {n: g / 100 for n, g in gradient(step).items()})
    assert_equal(short(Optimizer("sgd", clip_norm=1.0))[-1], short(Optimizer("sgd"))[-1], 0.0)


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


def test_nifgsm_takes_the_gradient_where_the_momentum_leads():
    """Lin et al. (2020), equations 6 to 8, descending on a function whose gradient is not constant."""

    def slope(name, x):
        return (3 * x).sin() + draw(name, *x.shape).to(x)

    decay, size = 0.75, 1 / 16
    optimizer = make_optimizer(Optimizer("nifgsm", size, "constant", momentum=decay), 30)
    params = {name: value.double() for name, value in start().items()}
    expected, velocity = dict(params), {name: torch.zeros_like(value) for name, value in params.items()}
    state = optimizer.init(params)
    for step in range(30):
        point = optimizer.look_ahead(params, state)
        grads = {name: slope(name, x) for name, x in point.items()}
        updates, state = optimizer.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        for name, x in expected.items():
            ahead = x - size * decay * velocity[name]  # equation 6
            torch.testing.assert_close(point[name], ahead, rtol=0, atol=1e-12)
            assert torch.equal(ahead, x) == (step == 0)
            grad = slope(name, ahead)
            velocity[name] = decay * velocity[name] + grad / grad.abs().sum()  # 7
            expected[name] = x - size * velocity[name].sign()  # 8
        assert_equal(params, expected, 1e-12)


def test_the_look_ahead_goes_with_the_learning_rate():
    optimizer = make_optimizer(Optimizer("nifgsm", 0.5, "step", fall_every=1, fall_factor=0.5), 10)
    state = optimizer.init(start())
    for step in range(3):
        updates, state = optimizer.update(gradient(step), state, params=start(), inplace=False)
    ahead = optimizer.look_ahead(start(), state)
    (momentum_state, _), _ = state
    for name, value in start().items():
        expected = value - 0.9 * 0.5**4 * momentum_state.velocity[name]
        torch.testing.assert_close(ahead[name], expected)
        assert float(updates[name].abs().max()) == 0.5**3


@pytest.mark.parametrize("name", NAMES)
def test_only_nifgsm_looks_ahead(name):
    assert (make_optimizer(Optimizer(name), 10).look_ahead is not None) == (name == "nifgsm")


def test_mifgsm_normalizes_each_patch_by_its_l1_norm():
    accumulate = momentum(0.5, normalize=True)
    velocity, state = accumulate.update(gradient(0), accumulate.init(start()))
    assert_equal(velocity, {name: grad / grad.abs().sum() for name, grad in gradient(0).items()}, 1e-7)
    second, _ = accumulate.update(gradient(0), state)
    assert_equal(second, {name: 1.5 * value for name, value in velocity.items()}, 1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e20])
def test_the_normalized_gradient_has_no_scale(scale):
    """Which a floor under the norm would give it: gradients fade behind a victim that is sure of itself."""
    accumulate = momentum(0.5, normalize=True)
    scaled = optree.tree_map(lambda g: g * scale, gradient(0))
    velocity, _ = accumulate.update(scaled, accumulate.init(start()))
    assert all(float(v.abs().sum()) == pytest.approx(1.0, rel=1e-5) for v in velocity.values())


STILL = {"adamw": {"weight_decay": 0.0}}


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
@pytest.mark.parametrize("name", NAMES)
def test_a_zero_gradient_does_no_harm(name, schedule):
    optimizer = make_optimizer(Optimizer(name, 0.05, schedule, **STILL.get(name, {})), STEPS)
    params, state, trail = start(), optimizer.init(start()), []
    for step in range(STEPS):
        grads = optree.tree_map(lambda g, step=step: g * (step == 1), gradient(1))
        updates, state = optimizer.update(grads, state, params=params, inplace=False, value=torch.tensor(0.0))
        params = torchopt.apply_updates(params, updates, inplace=False)
        trail.append(params)
    assert_equal(trail[0], start())
    assert not torch.equal(trail[1]["hood"], start()["hood"])
    assert all(bool(torch.isfinite(leaf).all()) for leaf in optree.tree_leaves((trail[-1], state)))


def test_one_patch_without_a_gradient_does_not_stop_the_other():
    for name in NAMES:
        optimizer = make_optimizer(Optimizer(name, 0.05, **STILL.get(name, {})), STEPS)
        grads = gradient(0) | {"roof": torch.zeros(1, 4, 2)}
        updates, _ = optimizer.update(grads, optimizer.init(start()), params=start(), inplace=False)
        assert bool((updates["hood"] != 0).all())
        assert bool((updates["roof"] == 0).all())


@SLOW_UNDER_VMAP
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("name", NAMES)
def test_a_population_moves_as_its_members(name, schedule):
    more = {"patience": 0, "fall_factor": 0.5} if schedule == "plateau" else {}
    optimizer = make_optimizer(Optimizer(name, 0.05, schedule, **more), STEPS)
    ahead = optimizer.look_ahead or (lambda params, state: params)

    def move(params, state, grads, value):
        point = ahead(params, state)
        grads = optree.tree_map(lambda g, x: g * x.cos(), grads, point)
        updates, state = optimizer.update(grads, state, params=params, inplace=False, value=value)
        return torchopt.apply_updates(params, updates, inplace=False), state

    members = [optree.tree_map(lambda v, i=i: [v, 1 - v, 2 * v][i], start()) for i in range(3)]
    states = [optimizer.init(member) for member in members]
    params = optree.tree_map(lambda *v: torch.stack(v), *members)
    state = torch.func.vmap(optimizer.init)(params)
    for step in range(4):
        grads = optree.tree_map(lambda g: torch.stack([g, -2 * g, g * g]), gradient(step))
        values = torch.tensor([1.0, -2.0, 1.0 - step])
        params, state = torch.func.vmap(move)(params, state, grads, values)
        for i in range(3):
            own = optree.tree_map(lambda g, i=i: g[i], grads)
            members[i], states[i] = move(members[i], states[i], own, values[i])
            assert_equal(optree.tree_map(lambda v, i=i: v[i], (params, state)), (members[i], states[i]), 1e-7)
    if schedule == "plateau":
        assert state[1].scale.tolist() == [0.125, 0.125, 1.0]


def moved(name, schedule):
    """An optimizer, and what its update is given after a step."""
    optimizer = make_optimizer(Optimizer(name, 0.05, schedule), STEPS)
    more = {"params": start(), "inplace": False, "value": torch.tensor(1.5)}
    _, state = optimizer.update(gradient(0), optimizer.init(start()), **more)
    return optimizer, gradient(1), state, more


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_in_place(name, schedule):
    optimizer, grads, state, more = moved(name, schedule)
    before = optree.tree_map(Tensor.clone, (grads, state, more["params"], more["value"]))
    optimizer.update(grads, state, **more)
    if optimizer.look_ahead:
        optimizer.look_ahead(more["params"], state)
    assert_equal((grads, state, more["params"], more["value"]), before)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [*((name, "cosine") for name in NAMES), *(("sgd", s) for s in ("constant", "exponential", "plateau"))],
)
def test_updates_compile(name, schedule):
    optimizer, grads, state, more = moved(name, schedule)
    torch._dynamo.reset()
    compiled = torch.compile(lambda g, s: optimizer.update(g, s, **more), backend="aot_eager", fullgraph=True)
    updates, after = compiled(grads, state)
    expected, expected_after = optimizer.update(grads, state, **more)
    assert_equal(updates, expected, 1e-7)
    assert_equal(after, expected_after, 1e-7)


# -- schedules


def rates(config: dict, num_steps: int = 40, epoch: Fraction | None = None, losses=None) -> list[float]:
    """The learning rates of a run of gradient descent, read off its updates."""
    optimizer = make_optimizer(Optimizer("sgd", 0.5, momentum=0.0, **config), num_steps, epoch)
    state, found = optimizer.init(torch.zeros(1)), []
    for step in range(num_steps):
        value = None if losses is None else torch.tensor(losses[step])
        updates, state = optimizer.update(torch.ones(1), state, inplace=False, value=value)
        found.append(-float(updates))
    return found


def rates_of_torch(*makers, num_steps: int = 40, advance=lambda step: [()]) -> list[float]:
    """Those of torch's schedulers, multiplied; `advance` gives the arguments of each call after a step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedulers = [make(optimizer) for make in makers]
    found = []
    for step in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for arguments in advance(step):
            for scheduler in schedulers:
                scheduler.step(*arguments)
    return found


lr = torch.optim.lr_scheduler
WARM = {"warmup_steps": 5}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("config", "reference"),
    [
        ({"schedule": "constant"}, lambda o: lr.ConstantLR(o, factor=1.0)),
        ({"schedule": "cosine"}, lambda o: lr.CosineAnnealingLR(o, T_max=40)),
        ({"schedule": "exponential"}, lambda o: lr.ExponentialLR(o, 0.001 ** (1 / 40))),
        ({"schedule": "exponential", "final_frac": 0.2}, lambda o: lr.ExponentialLR(o, 0.2 ** (1 / 40))),
        ({"schedule": "step", "fall_every": 7}, lambda o: lr.StepLR(o, 7, 0.1)),
        ({"schedule": "step", "fall_every": 1, "fall_factor": 0.9}, lambda o: lr.StepLR(o, 1, 0.9)),
        ({"schedule": "multi_step", "milestones": (3, 20)}, lambda o: lr.MultiStepLR(o, [3, 20], 0.1)),
        (
            {"schedule": "multi_step", "milestones": (9, 2, 9), "fall_factor": 0.5},
            lambda o: lr.MultiStepLR(o, [9, 2, 9], 0.5),
        ),
    ],
)
def test_schedules_equal_those_of_torch(config, reference, warm):
    warming = [lambda o: lr.LinearLR(o, start_factor=1 / 6, total_iters=5)] if warm else []
    found = rates(config | (WARM if warm else {}))
    assert found == pytest.approx(rates_of_torch(*warming, reference), rel=2e-5, abs=1e-7)
    assert len(set(found)) > 1 or config["schedule"] == "constant"


def test_the_end_of_cosine_equals_that_of_torch():
    expected = rates_of_torch(lambda o: lr.CosineAnnealingLR(o, T_max=40, eta_min=0.5 * 0.3))
    assert rates({"schedule": "cosine", "final_frac": 0.3}) == pytest.approx(expected, rel=1e-5)


def test_exponential_falls_by_three_orders_of_magnitude():
    found = rates({"schedule": "exponential"}, 101)
    assert found[0] == 0.5
    assert found[-1] * 0.001 ** (1 / 101) == pytest.approx(0.5e-3, rel=1e-4)


@pytest.mark.parametrize(("photographs", "batch"), [(7, 4), (8, 4), (4, 4), (3, 8), (10, 3)])
@pytest.mark.parametrize(
    ("config", "reference"),
    [
        ({"schedule": "step", "fall_every": 2}, lambda o: lr.StepLR(o, 2, 0.5)),
        ({"schedule": "multi_step", "milestones": (1, 5)}, lambda o: lr.MultiStepLR(o, [1, 5], 0.5)),
    ],
)
def test_schedules_by_epoch(config, reference, photographs, batch):
    """Fall with the first batch that begins when the epochs are over."""
    found = rates(config | {"unit": "epoch", "fall_factor": 0.5}, epoch=Fraction(photographs, batch))

    def advance(step):
        return [()] * ((step + 1) * batch // photographs - step * batch // photographs)

    assert found == pytest.approx(rates_of_torch(reference, advance=advance), rel=1e-5)


def bumpy(num_steps: int) -> list[float]:
    """Losses that fall, hesitate and rise."""
    noise = random.uniform(random.key(8), (num_steps,)).tolist()
    return [2 + math.exp(-step / 9) + 0.1 * u for step, u in enumerate(noise)]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({"patience": 2}, {"patience": 2}),
        ({"patience": 0, "fall_factor": 0.7}, {"patience": 0, "factor": 0.7}),
        ({"patience": 1, "threshold": 0.03}, {"patience": 1, "threshold": 0.03}),
        ({"patience": 0, "final_frac": 0.02}, {"patience": 0, "min_lr": 0.01}),
        ({"patience": 1, "warmup_steps": 5}, {"patience": 1}),
        ({}, {}),
    ],
)
def test_plateau_equals_that_of_torch(config, settings, every):
    losses = bumpy(60)
    more = {"fall_every": every} if every > 1 else {}

    def advance(step):
        mean = sum(losses[step + 1 - every : step + 1]) / every
        return [(mean,)] if (step + 1) % every == 0 else []

    expected = rates_of_torch(
        lambda o: lr.ReduceLROnPlateau(o, eps=0.0, **settings), num_steps=60, advance=advance
    )
    warm = config.get("warmup_steps", 0)
    expected = [rate * min(1.0, (step + 1) / (warm + 1)) for step, rate in enumerate(expected)]
    found = rates({"schedule": "plateau"} | config | more, 60, losses=losses)
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) > 1 or (config, every) == ({}, 3)


def test_plateau_of_losses_below_zero():
    """A new best is lower by a fraction of the size of the last, whatever its sign."""
    losses = [-1.0, -1.00005, -1.001, -1.00105, -0.5, -2.0]
    rate = plateau(constant(1.0), factor=0.5, patience=0, threshold=1e-4)
    state, best = rate.init(), []
    for loss in losses:
        state = rate.after(state, torch.tensor(loss))
        best.append(round(float(state.best), 5))
    assert best == [-1.0, -1.0, -1.001, -1.001, -1.001, -2.0]
    assert float(rate.now(state)) == 0.5**3


def test_plateau_compares_means():
    rate = plateau(constant(1.0), every=2)
    state = rate.init()
    for loss in (3.0, 4.0, 1.0):
        state = rate.after(state, torch.tensor(loss))
    assert (float(state.best), float(state.total), int(state.num_bad)) == (3.5, 1.0, 0)


def test_plateau_needs_the_loss():
    optimizer = make_optimizer(Optimizer(schedule="plateau"), STEPS)
    with pytest.raises(
        ValueError, match="plateau: update must be given the loss of the step; call it with val"
    ):
        optimizer.update(gradient(0), optimizer.init(start()), inplace=False)


@pytest.mark.parametrize("library", ["torchopt", "fpatch"])
def test_adamw_needs_the_parameters(library):
    optimizer = make_optimizer(Optimizer("adamw", library=library), STEPS)
    with pytest.raises((ValueError, AssertionError), match=r"with params=params|, params=params\)"):
        optimizer.update(gradient(0), optimizer.init(start()), inplace=False)


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


WRONG = [
    ({"name": "adan"}, "optimizer.name must be 'adam' or 'adamw' or .*, got 'adan'"),
    ({"schedule": "cos"}, "optimizer.schedule must be 'cosine' or .*, got 'cos'"),
    (
        {"schedule": "step", "fall_every": 2, "unit": "epochs"},
        "optimizer.unit must be 'step' or 'epoch', got",
    ),
    ({"betas": (0.9,)}, r"optimizer.betas must be two numbers, got \(0.9,\)"),
    ({"learning_rate": -1.0}, "optimizer.learning_rate must be between 1e-12 and 1000000, got -1.0"),
    ({"learning_rate": 0.0}, "optimizer.learning_rate must be between 1e-12 and 1000000, got 0.0"),
    ({"learning_rate": 1e300}, r"optimizer.learning_rate must be between 1e-12 and 1000000, got 1e\+300"),
    ({"momentum": 1.5}, "optimizer.momentum must be between 0 and 1, got 1.5"),
    ({"betas": (0.9, 1.0)}, "optimizer.betas must be between 0 and 0.999999, got 1.0"),
    ({"eps": 0.0}, "optimizer.eps must be at least 1e-30, got 0.0"),
    ({"weight_decay": -0.1}, "optimizer.weight_decay must be at least 0, got -0.1"),
    ({"square_decay": 1.0}, "optimizer.square_decay must be between 0 and 0.999999, got 1.0"),
    ({"warmup_steps": -1}, "optimizer.warmup_steps must be at least 0, got -1"),
    ({"final_frac": 1.5}, "optimizer.final_frac must be between 0 and 1, got 1.5"),
    (
        {"schedule": "exponential", "final_frac": 0.0},
        "optimizer.final_frac must be between 1e-09 and 1, got 0.0",
    ),
    ({"fall_factor": 1.1}, "optimizer.fall_factor must be between 0 and 1, got 1.1"),
    ({"schedule": "step", "fall_every": 0}, "optimizer.fall_every must be at least 1, got 0"),
    ({"schedule": "step"}, "optimizer.fall_every is required by schedule 'step'; add it"),
    ({"schedule": "multi_step"}, "optimizer.milestones is required by schedule 'multi_step'; add it"),
    ({"schedule": "multi_step", "milestones": (3, 0)}, "optimizer.milestones must be at least 1, got 0"),
    ({"patience": -1}, "optimizer.patience must be at least 0, got -1"),
    ({"name": "Adam"}, "optimizer.name must be 'adam' or 'adamw' or .*, got 'Adam'"),
    ({"schedule": "linear"}, "optimizer.schedule must be 'cosine' or .*, got 'linear'"),
    ({"threshold": 2.0}, "optimizer.threshold must be between 0 and 1, got 2.0"),
    (
        {"name": "rmsprop", "momentum": 0.5},
        "optimizer.momentum = 0.5 applies to 'sgd', 'mifgsm', 'nifgsm', not to 'rmsprop' with 'cosine'",
    ),
    (
        {"schedule": "plateau", "milestones": (3,)},
        r"optimizer.milestones = \(3,\) applies to 'multi_step', not to",
    ),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message), unchecked():
        Optimizer(**settings)


OTHERS = {
    "betas": (0.5, 0.5), "eps": 1e-3, "weight_decay": 0.5, "momentum": 0.5, "square_decay": 0.5,
    "final_frac": 0.5, "fall_factor": 0.5, "fall_every": 3, "milestones": (2,), "unit": "epoch",
    "patience": 3, "threshold": 0.5, "clip_norm": 0.5, "rise_frac": 0.6, "start_frac": 0.5,
    "peak_momentum": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("setting", OTHERS)
def test_a_setting_acts_or_is_refused(setting):
    """No setting is ignored: with every optimizer and schedule it changes the updates, or it is an error."""
    schedules = ("cosine", "one_cycle", "constant", "exponential", "step", "multi_step", "plateau")
    needed = {"step": {"fall_every": 2}, "multi_step": {"milestones": (1,)}, "plateau": {"patience": 0}}
    accepted = 0
    for name, schedule in itertools.product(NAMES, schedules):
        base = needed.get(schedule, {}) | {"name": name, "schedule": schedule, "learning_rate": 0.1}
        refused = ""
        try:
            other = Optimizer(**{**base, setting: OTHERS[setting]})
        except ValueError as error:
            refused = str(error)
        if refused:
            assert f"optimizer.{setting} = " in refused
            continue
        accepted += 1
        trails = []
        for config in (Optimizer(**base), other):
            optimizer = make_optimizer(config, 8, Fraction(3, 2))
            params, state, trail = start(), optimizer.init(start()), []
            for step in range(8):
                point = optimizer.look_ahead(params, state) if optimizer.look_ahead else params
                grads = optree.tree_map(lambda g, x: g + x, gradient(step), point)
                value = torch.tensor(1.0 - 0.1 * step if step < 3 else 1.0)
                updates, state = optimizer.update(grads, state, params=params, inplace=False, value=value)
                params = torchopt.apply_updates(params, updates, inplace=False)
                trail.append(params["hood"])
            trails.append(torch.stack(trail))
        assert not torch.equal(*trails), (name, schedule)
    assert accepted >= len(NAMES) if setting in ("final_frac", "fall_factor") else accepted


@pytest.mark.parametrize("name", NAMES)
def test_the_library_acts_where_there_are_two(name):
    settings = {"learning_rate": 0.05, "schedule": "constant"}
    trails = [descend(Optimizer(name, library=one, **settings), gradient) for one in ("torchopt", "fpatch")]
    assert torch.equal(trails[0][-1]["hood"], trails[1][-1]["hood"]) == (
        name not in ("adam", "adamw", "rmsprop")
    )


def test_what_needs_the_run_is_refused_with_it():
    with pytest.raises(ValueError, match="warmup_steps must be less than the steps of the run, 10, got 10"):
        make_optimizer(Optimizer(warmup_steps=10), 10)
    make_optimizer(Optimizer(warmup_steps=9), 10)
    with pytest.raises(
        ValueError, match=r"optimizer.unit is 'epoch', but .* have no epochs.*; count in steps"
    ):
        make_optimizer(Optimizer(schedule="step", fall_every=2, unit="epoch"), 10)
