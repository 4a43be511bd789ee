"""From terms to one number and its gradient: weights, checks, and the two ways to differentiate."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import NUM_ROWS, SHAPES, Case, case, demo, detector, make_inputs, three_patches
from inductor import with_inductor
from laws import assert_equal
from study_fixture import environment
from typecheck import unchecked

from fpatch import compose, create, implant, infer, losses, random
from fpatch.graph.node import node
from fpatch.graph.pipeline import pipeline
from fpatch.graph.samples import control
from fpatch.graph.stage import Stage
from fpatch.optim.compiled import _cut, compiled
from fpatch.optim.finite import NotFiniteError
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.objective import Loss, Objective, check_terms
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.step import make_state, make_step

KEY = random.key(4)
WEIGHTS = {"vanish": 1.0, "total_variation": 0.2, "non_printability": 0.05}


def prepared() -> tuple[Case, Objective, dict]:
    subject = case(demo().at("train"))
    return subject, Objective(subject.subject, WEIGHTS), subject.subject.sample(KEY, subject.batch)


def test_the_value_is_the_weighted_sum_of_means_and_terms_stay_unweighted():
    subject, objective, sample = prepared()
    loss = objective(subject.params, sample, subject.batch)
    out = subject.subject.apply(subject.params, sample, subject.batch)
    assert_equal(loss.terms, {name: out[name] for name in subject.subject.terms})
    expected = sum(weight * out[name].double().mean() for name, weight in WEIGHTS.items())
    torch.testing.assert_close(loss.value.double(), expected)


def test_terms_without_a_weight_are_computed_and_count_nothing():
    subject, _, sample = prepared()
    objective = Objective(subject.subject, {"total_variation": 2.0})
    loss = objective(subject.params, sample, subject.batch)
    assert set(loss.terms) == set(WEIGHTS)
    torch.testing.assert_close(loss.value, 2 * loss.terms["total_variation"].mean())
    zero = Objective(subject.subject, {"total_variation": 2.0, "vanish": 0.0})
    assert float(zero.weigh({**loss.terms, "vanish": torch.full((3,), torch.nan)}).value) == float(loss.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"vanis": 1.0}, "no loss term 'vanis'; did you mean 'vanish'"),
        ({}, "at least one weight must differ from 0; terms: total_variation, non_printability, vanish"),
        ({"vanish": 0.0}, "at least one weight must differ from 0"),
        ({"vanish": float("nan")}, "the weight of 'vanish' must be finite, got nan"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Objective(demo().at("train"), weights)


def test_a_pipeline_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="the pipeline has no loss; add one"):
        Objective(pipeline({"blur": compose.blur()}), {"vanish": 1.0})


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            torch.zeros(()),
            r"must be a tensor, unreduced, one number per row \[3\], got shape \[\]; leave the mean",
        ),
        (torch.zeros(3, 2), r"got shape \[3, 2\]"),
        (torch.zeros(2), r"got shape \[2\]"),
        (torch.zeros(3, dtype=torch.int64), "must be floating point, got torch.int64"),
        (torch.tensor([0.0, float("nan"), 1.0]), "'size' is nan in row 1 of the test batch"),
        (torch.tensor([0.0, 1.0, -float("inf")]), "'size' is -inf in row 2 of the test batch"),
        (3.0, r"must be a tensor, unreduced, one number per row \[3\], got a float; leave the mean"),
    ],
)
def test_wrong_terms_are_refused(term, message):
    with pytest.raises(ValueError, match=message):
        check_terms({"fine": torch.zeros(3), "size": term}, 3)
    if not isinstance(term, torch.Tensor) or term.ndim != 1:
        with pytest.raises(ValueError, match="unreduced, one number per row"):
            prepared()[1].weigh({"size": term})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda values, params: {"tone": values["scene"].mean()},
            "'tone' must be a tensor, unreduced, one number",
        ),
        (
            lambda values, params: {"tone": values["scene"].mean((1, 2, 3)).log1p() * float("nan")},
            "is nan in row 0",
        ),
    ],
)
def test_an_objective_with_a_test_batch_refuses_wrong_terms_when_it_is_made(loss, message):
    made = pipeline({"pixels": create.pixels(SHAPES), "tone": loss})
    batch = make_inputs()
    Objective(made, {"tone": 1.0})
    with pytest.raises(ValueError, match=message):
        Objective(made, {"tone": 1.0}, batch)
    fine = pipeline(
        {"pixels": create.pixels(SHAPES), "tone": lambda v, p: {"tone": v["scene"].mean((1, 2, 3))}}
    )
    assert Objective(fine, {"tone": 1.0}, batch) == Objective(fine, {"tone": 1.0})


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("shape", [(1,), (9,)])
def test_a_step_refuses_a_term_that_is_no_number_per_row(shape, micro_batch):
    """A mean of its own would count a part of one row as much as one of two."""

    def tone(values, params):
        rows = values["image"] * params["hood"].mean()
        return {"tone": rows.mean().expand(1) if shape == (1,) else rows.mean((2, 3)).flatten()}

    made = pipeline({"pixels": create.pixels(SHAPES), "tone": tone})
    objective, optimizer = Objective(made, {"tone": 1.0}), make_optimizer(Optimizer(), 3)
    state = make_state(objective, optimizer, random.key(0))
    batch = {name: value for name, value in make_inputs().items() if name in ("image", "image_id", "draw")}
    step = make_step(objective, optimizer, micro_batch=micro_batch)
    if shape == (1,) and micro_batch == 1:
        assert step(state, batch)[1].terms["tone"].shape == (3,)
        return
    with pytest.raises(
        ValueError, match=r"'tone' must be .* one number per row \[3\], got shape \[[19236]\]"
    ):
        step(state, batch)


def test_a_step_stops_at_a_loss_that_is_not_finite():
    def tone(values, params):
        mean = params["hood"].mean() + values["image_id"]
        return {"tone": torch.where(values["image_id"] == 3, torch.nan, mean)}

    made = pipeline({"pixels": create.pixels(SHAPES), "dim": compose.exposure(), "tone": tone})
    objective, optimizer = Objective(made, {"tone": 1.0}), make_optimizer(Optimizer(), 3)
    state = make_state(objective, optimizer, random.key(0))
    batch = {name: value for name, value in make_inputs().items() if name in ("image", "image_id", "draw")}
    before = {name: value.clone() for name, value in state.params.items()}
    with pytest.raises(
        NotFiniteError,
        match=r"update 1: the loss term 'tone' is nan in row 2, image 3, draw 0, with the sample \{'dim/st",
    ) as raised:
        make_step(objective, optimizer)(state, batch)
    assert_equal(state.params, before)
    assert isinstance(raised.value, ValueError)
    assert raised.value.info.terms["tone"].isnan().tolist() == [False, False, True]


def test_right_terms_pass():
    check_terms({"fine": torch.zeros(3), "too": torch.ones(3, dtype=torch.float64)}, 3)


def test_autograd_equals_func():
    subject, objective, sample = prepared()
    grads, loss = value_and_grad(objective, "autograd")(subject.params, sample, subject.batch)
    func_grads, func_loss = value_and_grad(objective, "func")(subject.params, sample, subject.batch)
    assert_equal(func_grads, grads, 1e-6)
    assert_equal(func_loss.terms, loss.terms, 1e-6)
    torch.testing.assert_close(func_loss.value, loss.value)
    for tensor in (*grads.values(), *loss.terms.values(), loss.value):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
    assert set(grads) == set(subject.params)


def test_the_parameters_are_left_alone():
    subject, objective, sample = prepared()
    params = {name: value.clone().requires_grad_() for name, value in subject.params.items()}
    value_and_grad(objective)(params, sample, subject.batch)
    assert all(value.grad is None for value in params.values())
    assert_equal({n: v.detach() for n, v in params.items()}, subject.params)


def test_the_gradient_is_the_slope():
    """Against central differences along random directions."""
    subject, objective, sample = prepared()
    grads, _ = value_and_grad(objective)(subject.params, sample, subject.batch)
    for name, value in subject.params.items():
        step = 0.02 * (random.uniform(random.fold_in(KEY, name), tuple(value.shape)) - 0.5)
        up, down = (
            objective({**subject.params, name: value + sign * step}, sample, subject.batch).value
            for sign in (1, -1)
        )
        assert float(up - down) / 2 == pytest.approx(float((grads[name] * step).sum()), rel=0.05, abs=1e-5)


def test_unused_parameters_have_a_gradient_of_zero():
    subject, objective, sample = prepared()
    params = {**subject.params, "spare": torch.ones(2, 2)}
    grads, _ = value_and_grad(objective, wrt=tuple(params))(params, sample, subject.batch)
    assert grads["spare"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_control_has_no_gradient():
    subject, _, sample = prepared()
    objective = Objective(subject.subject, {"vanish": 1.0})
    for transform in ("autograd", "func"):
        grads, _ = value_and_grad(objective, transform)(subject.params, control(sample), subject.batch)
        assert not any(bool(grad.any()) for grad in grads.values())


def test_a_plain_loss_of_the_parameters_is_a_term():
    def ink(values, patch_params):
        return {"ink": (1 - patch_params["hood"]).mean().expand(len(values["image_id"]))}

    made = pipeline({"pixels": create.pixels(SHAPES), "ink": ink})
    assert made.terms == ("ink",)
    grads, loss = value_and_grad(Objective(made, {"ink": 1.0}))(made.init(KEY), {}, make_inputs())
    torch.testing.assert_close(grads["hood"], torch.full((3, 20, 31), -1 / 1860))
    assert loss.terms["ink"].shape == (NUM_ROWS,)


def test_two_victims_make_two_terms():
    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "implant": implant.warp(),
            "a": {"victim": node(infer.detector(detector(seed=1)), writes=["./detections"])},
            "b": {"victim": node(infer.detector(detector(seed=2)), writes=["./detections"])},
            "vanish_a": node(losses.vanish(), reads={"detections": "a/detections"}, writes=["a/vanish"]),
            "vanish_b": node(losses.vanish(), reads={"detections": "b/detections"}, writes=["b/vanish"]),
        }
    )
    subject = case(made)
    sample = made.sample(KEY, subject.batch)
    one, other = (value_and_grad(Objective(made, w)) for w in ({"a/vanish": 1.0}, {"b/vanish": 0.5}))
    both = value_and_grad(Objective(made, {"a/vanish": 1.0, "b/vanish": 0.5}))
    grads = [f(subject.params, sample, subject.batch)[0] for f in (one, other, both)]
    assert_equal(grads[2], {n: grads[0][n] + grads[1][n] for n in grads[0]}, 1e-6)


def test_every_patch_of_three_learns():
    made = three_patches() | {"tv": node(losses.total_variation(), reads={"patch": "patch"})}
    subject = case(made, quad_patch=torch.tensor([[0, 1, 2], [2, 0, 1], [1, 1, 2]]))
    sample = made.sample(KEY, subject.batch)

    def brightness(params, sample, batch):
        term = made.apply(params, sample, batch, want=("image",))["image"].mean((1, 2, 3))
        return Loss(term.mean(), {"brightness": term})

    grads, _ = value_and_grad(brightness)(subject.params, sample, subject.batch)
    assert all(bool((grad > 0).any()) for grad in grads.values())


def compare_compiled() -> None:
    subject, objective, sample = prepared()
    eager, loss = value_and_grad(objective)(subject.params, sample, subject.batch)
    compiled = torch.compile(value_and_grad(objective, "func"), fullgraph=True)
    grads, compiled_loss = compiled(subject.params, sample, subject.batch)
    assert_equal(grads, eager, 1e-5)
    assert_equal(compiled_loss.terms, loss.terms, 1e-4)


@pytest.mark.slow
def test_a_compiled_objective_equals_eager():
    """One real compilation of the demo's objective and its gradient, where no annotations are checked."""
    words = [sys.executable, "-c", "import test_objective; test_objective.compare_compiled()"]
    done = subprocess.run(words, env=environment(Path(__file__).parent), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- compiled


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, with_inductor])]
)
def test_a_compiled_objective_has_the_value_and_the_gradient_of_the_plain_one(backend):
    subject, objective, sample = prepared()
    torch._dynamo.reset()
    expected, plain = value_and_grad(objective)(subject.params, sample, subject.batch)
    with unchecked():
        found, loss = value_and_grad(compiled(objective, backend=backend))(
            subject.params, sample, subject.batch
        )
    assert_equal(loss.terms, plain.terms, 1e-5)
    assert_equal(found, expected, 1e-5)
    assert any(bool((g != 0).any()) for g in found.values())


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, with_inductor])]
)
def test_color_matrices_are_compiled_with_their_neighbors(backend):
    """Forward and backward, on the channels of the image, where nothing but rounding may change."""
    camera = {
        "exposure": compose.exposure(),
        "saturation": compose.saturation(),
        "hue": compose.hue(),
        "jitter": compose.color_jitter(),
        "noise": compose.read_noise(),
    }
    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "stack": create.stack(3),
            "implant": implant.warp(),
            "camera": camera,
            "victim": infer.detector(detector(seed=1)),
            "vanish": losses.vanish(),
        }
    )
    subject, objective = case(made), Objective(made, {"vanish": 1.0})
    sample = made.sample(KEY, subject.batch)
    torch._dynamo.reset()
    expected, plain = value_and_grad(objective)(subject.params, sample, subject.batch)
    with unchecked():
        apply = value_and_grad(compiled(objective, backend=backend))
        found, loss = apply(subject.params, sample, subject.batch)
    assert_equal(loss.terms, plain.terms, 1e-5)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))
        assert bool((grad != 0).any())


def test_a_compiled_function_is_given_all_values():
    """Those of the batch, and what was written before as far as it is there: no boxes to move, say."""

    def brightness(values, patch_params):
        return {"brightness": values["image"].mean((1, 2, 3)) * values["scene"].mean((1, 2, 3))}

    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "view": compose.affine(),
            "implant": implant.warp(),
            "exposure": compose.exposure(),
            "brightness": brightness,
        }
    )
    subject, objective = case(made), Objective(made, {"brightness": 1.0})
    batch = {name: value for name, value in subject.batch.items() if name not in ("boxes", "box_valid")}
    sample = made.sample(KEY, batch)
    torch._dynamo.reset()
    with unchecked():
        found = compiled(objective, backend="aot_eager")(subject.params, sample, batch)
    torch.testing.assert_close(found.value, objective(subject.params, sample, batch).value)


def test_a_control_of_a_compiled_objective_has_no_gradient():
    subject, _, sample = prepared()
    torch._dynamo.reset()
    with unchecked():
        found, _ = value_and_grad(compiled(Objective(subject.subject, {"vanish": 1.0}), backend="aot_eager"))(
            subject.params, control(sample), subject.batch
        )
    assert all(bool((g == 0).all()) for g in found.values())


def test_what_is_compiled_follows_the_implants_and_can_be_traced():
    pixels, stack = create.pixels(SHAPES), create.stack(3)
    model = detector()
    cannot = dataclasses.replace(
        compose.exposure, traits=dataclasses.replace(compose.exposure.traits, compile=False)
    )
    made = pipeline(
        {
            "pixels": pixels,
            "stack": stack,
            "view": compose.affine(),
            "implant": implant.warp(),
            "contrast": compose.contrast(),
            "exposure": Stage(cannot, compose.exposure().config),
            "noise": compose.read_noise(),
            "victim": infer.detector(model),
            "vanish": losses.vanish(),
        }
    )
    parts = _cut(made)
    assert [(list(part.nodes), part.form) for part in parts] == [
        (["pixels", "stack", "view", "implant"], "eager"),
        (["contrast"], "pixelwise"),
        (["exposure"], "eager"),
        (["noise"], "pixelwise"),
        (["victim", "vanish"], "compiled"),
    ]
    assert [part.wants for part in parts] == [
        ("box_valid", "boxes", "image"),
        ("image",),
        ("image",),
        ("image",),
        ("vanish",),
    ]


def test_boxes_that_one_stage_writes_and_another_moves_are_handed_on():
    def find(patch_params, key, batch):
        b = len(batch["scene"])
        return {"boxes": torch.ones(b, 1, 4), "box_valid": torch.ones(b, 1, dtype=torch.bool)}, {"key": key}

    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "stack": create.stack(3),
            "find": node(find, reads=["scene"], writes=["boxes", "box_valid"]),
            "view": compose.affine(),
            "implant": implant.warp(),
            "victim": infer.detector(detector()),
            "vanish": losses.vanish(),
        }
    )
    before, _ = _cut(made)
    assert before.wants == ("box_valid", "boxes", "image")
    assert not before.if_there
