"""`transform="func"`: the step by `torch.func` is that by plain autograd, eager and compiled."""

import functools

import pytest
import torch
from cases import TinyNet, case, demo, make_inputs
from laws import assert_equal
from test_population import Population
from torch import Tensor, nn
from typecheck import unchecked

import fpatch
from fpatch import create, graph, infer, node, random
from fpatch.core.inner_autograd import Inner, run_inner
from fpatch.core.tree import is_traced
from fpatch.optim import step as step_module
from fpatch.optim.compiled import compiled
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.population import make_population_step
from fpatch.optim.step import make_state, make_step

KEY = random.key(4)
SGD = make_optimizer(Optimizer("sgd", 1.0, "constant"), 10)


def wrong(values, patch_params):
    return {"wrong": nn.functional.cross_entropy(values["logits"], values["target"], reduction="none")}


def patch() -> tuple[Objective, dict]:
    subject = case(demo().at("train"))
    return Objective(subject.subject, dict.fromkeys(subject.subject.terms, 1.0)), dict(subject.batch)


def network() -> tuple[Objective, dict]:
    """A network that is trained, with batch statistics and dropout."""
    part = graph.module(TinyNet(seed=3, norm="batch", dropout=0.3), trainable=True)
    loss = node(wrong, reads=["logits", "target"], writes=["wrong"])
    made = fpatch.pipeline({"net": node(part, reads=["image"], writes=["logits"]), "loss": loss})
    batch = {name: make_inputs()[name] for name in ("image", "image_id", "draw", "target")}
    return Objective(made.at("train"), {"wrong": 1.0}), batch


def run(made, **settings):
    objective, batch = made
    state, step = make_state(objective, SGD, KEY), make_step(objective, SGD, **settings)
    for _ in range(2):
        state, info = step(state, batch)
    return state, info


def assert_same(found, expected, tolerance: float) -> None:
    (state, info), (own, own_info) = found, expected
    assert_equal(state.all_params, own.all_params, tolerance)
    assert_equal(info.terms, own_info.terms, tolerance)
    assert_equal(info.sample, own_info.sample)
    torch.testing.assert_close(info.grad_norm, own_info.grad_norm, rtol=1e-4, atol=1e-7)


MADE = {"patch": patch, "network": network}
WAYS = {"whole": {}, "micro_batch": {"micro_batch": 2, "local_statistics": True}, "rho": {"rho": 0.1}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MADE)
def test_an_eager_step_has_the_bits_of_autograd(name, way):
    made = MADE[name]()
    expected = run(made, **WAYS[way])
    assert_same(run(made, transform="func", **WAYS[way]), expected, 0.0)
    assert not torch.equal(
        torch.cat([x.flatten() for x in expected[0].params.values()]),
        torch.cat([x.flatten() for x in make_state(made[0], SGD, KEY).params.values()]),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [("patch", {"micro_batch": 1, "rho": 0.1}), ("network", {})])
def test_a_compiled_step_is_that_of_autograd(name, settings, monkeypatch):
    monkeypatch.setattr(step_module, "compiled", functools.partial(compiled, backend="aot_eager"))
    made = MADE[name]()
    eager = run(made, **settings)
    found = []
    for transform in "autograd", "func":
        torch._dynamo.reset()
        with unchecked():
            found.append(run(made, transform=transform, compile=True, **settings))
    assert_same(found[1], found[0], 1e-6)
    assert_same(found[1], eager, 1e-4)


@pytest.mark.parametrize("members_at_once", [None, 2])
def test_a_population_has_the_bits_of_autograd(members_at_once):
    population = Population(case(demo().at("train")))
    expected, infos = population.together(1, members_at_once=members_at_once)
    found, others = population.together(1, members_at_once=members_at_once, transform="func")
    for i, state in enumerate(expected):
        assert_equal(found[i].params, state.params, 0.0)
        assert_equal(others[i][-1].terms, infos[i][-1].terms, 0.0)


def test_a_population_of_networks_has_the_bits_of_autograd():
    objective, batch = network()
    states = [make_state(objective, SGD, random.key(seed)) for seed in range(2)]
    found = [
        make_population_step([objective] * 2, [SGD] * 2, transform=transform)(states, [batch] * 2)[0]
        for transform in ("autograd", "func")
    ]
    for one, other in zip(*found, strict=True):
        assert_equal(one.all_params, other.all_params, 0.0)


def test_a_victim_that_computes_again_is_differentiated_too():
    """A checkpoint needs hooks on saved tensors, which `torch.func` forbids."""
    objective, batch = patch()
    light = Objective(infer.lighter(objective.pipeline, recompute=True), objective.weights)
    assert_same(run((light, batch), transform="func"), run((objective, batch)), 0.0)


def test_no_way_to_the_parameters_is_an_error_of_both():
    made = fpatch.pipeline(
        {"pixels": create.pixels({"a": (3, 4, 4)}), "dim": lambda v, p: {"dim": v["image"].mean((1, 2, 3))}}
    )
    batch = {name: make_inputs()[name] for name in ("image", "image_id", "draw")}
    for transform in "autograd", "func":
        with pytest.raises(ValueError, match="no weighted term depends on the patch"):
            value_and_grad(Objective(made, {"dim": 1.0}), transform)(made.init(KEY), {}, batch)


def test_patches_by_vmap_have_the_gradients_of_each():
    objective, batch = patch()
    for n in objective.pipeline.values():
        n.stage.load()
    sample = objective.pipeline.sample(KEY, batch)
    members = [objective.pipeline.init(random.key(seed)) for seed in range(3)]
    stacked = {name: torch.stack([m[name] for m in members]) for name in members[0]}
    gradient = value_and_grad(objective, "func")
    found, loss = torch.func.vmap(gradient, in_dims=({name: 0 for name in stacked}, None, None))(
        stacked, sample, batch
    )
    for i, member in enumerate(members):
        expected, own = value_and_grad(objective)(member, sample, batch)
        assert_equal({name: grad[i] for name, grad in found.items()}, expected, 1e-5)
        assert_equal({name: term[i] for name, term in loss.terms.items()}, own.terms, 1e-5)


# -- values under a transformation


def seen(transform) -> list[bool]:
    found = []

    def total(x: Tensor) -> Tensor:
        found.append(is_traced(x * 2))
        return x.sum()

    transform(total)
    return found


def test_values_are_read_under_grad_and_not_under_vmap():
    x, rows = torch.ones(3), torch.ones(2, 3)
    grad, vmap = torch.func.grad, torch.func.vmap
    assert seen(lambda f: grad(f)(x)) == [False]
    assert seen(lambda f: grad(grad(f))(torch.ones(()))) == [False]
    assert seen(lambda f: vmap(grad(f))(rows)) == [True]
    assert seen(lambda f: grad(lambda y: vmap(f)(y).sum())(rows)) == [True]
    assert seen(lambda f: torch.compile(f, backend="eager")(x))[0] is True


def test_an_implant_computes_its_region_alone_under_grad():
    """As under plain autograd, where it reads the corners."""
    objective, batch = patch()
    params, sample = objective.pipeline.init(KEY), objective.pipeline.sample(KEY, batch)
    sizes = []
    for transform in "autograd", "func":
        with torch.profiler.profile(record_shapes=True) as profile:
            value_and_grad(objective, transform)(params, sample, batch)
        events = profile.events() or []
        sizes.append([e.input_shapes[1] for e in events if e.name == "aten::grid_sampler_2d"])
    assert sizes[0] == sizes[1]
    assert sizes[0]


# -- plain autograd inside


def square(x: Tensor, **settings) -> Tensor:
    return run_inner(Inner(lambda y: (y.square(),), (True,), **settings), x)[0]


def test_inside_a_transformation_a_function_is_differentiated_by_autograd():
    x = torch.tensor([1.0, 2.0])
    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(square(leaf).sum(), leaf)[0], 2 * x)
    assert torch.equal(torch.func.grad(lambda y: square(y).sum())(x), 2 * x)
    rows = torch.arange(6.0).reshape(2, 3)
    by_row = torch.func.vmap(torch.func.grad(lambda y: square(y, of_rows=True).sum()))(rows)
    assert torch.equal(by_row, 2 * rows)


def test_an_input_without_a_gradient_gets_none():
    x, y = torch.ones(2, requires_grad=True), torch.full((2,), 3.0, requires_grad=True)
    inner = Inner(lambda a, b: (a * b,), (True, False))
    found = torch.autograd.grad(run_inner(inner, x, y)[0].sum(), (x, y), allow_unused=True)
    assert torch.equal(found[0], y)
    assert found[1] is None


def test_what_a_compiled_part_cannot_do_is_refused():
    with pytest.raises(NotImplementedError, match="vmap over a compiled part"):
        torch.func.vmap(square)(torch.ones(2, 3))
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.func.grad(lambda y: torch.func.grad(square)(y))(torch.ones(()))


def test_hooks_that_the_program_forbids_stay_forbidden():
    x = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        square(x)
        with (
            pytest.raises(RuntimeError, match="not here"),
            torch.autograd.graph.saved_tensors_hooks(lambda a: a, lambda a: a),
        ):
            pass
