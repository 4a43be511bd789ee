"""An object of 300 x 300 pixels is found in whatever type a model answers: its area overflows float16."""

import pytest
import torch
from torch import nn
from typecheck import unchecked

from fpatch import infer, losses, metrics
from fpatch.evaluation.columns import result_columns
from fpatch.graph.pipeline import pipeline
from fpatch.ops.geometry import box_area, pairwise_iou, quad_area, quad_to_homography

TYPES = [torch.float16, torch.bfloat16, torch.float64]
OBJECT = [104.0, 104.0, 404.0, 404.0]


class Sees(nn.Module):
    """One box on the object; all that it answers is in one type."""

    def __init__(self, dtype, boxes=None):
        super().__init__()
        self.dtype, self.box_type = dtype, boxes or dtype

    def forward(self, images):
        logits = 2 + images.mean((1, 2, 3))[:, None, None]
        boxes = torch.tensor([[OBJECT]]).expand(len(images), 1, 4)
        return {"boxes": boxes.to(self.box_type), "logits": logits.to(self.dtype)}


def detect(model, **settings):
    return pipeline(
        {
            "victim": infer.detector(model.eval()),
            "vanish": losses.vanish(),
            "suppress": infer.suppress(),
            "hit": metrics.detection_hit(**settings),
            "objects": metrics.object_hit(),
        }
    )


def batch(rows=2):
    return {
        "image": torch.full((rows, 3, 64, 64), 0.5),
        "boxes": torch.tensor([[OBJECT]]).repeat(rows, 1, 1),
        "labels": torch.zeros(rows, 1, dtype=torch.int64),
        "box_valid": torch.ones(rows, 1, dtype=torch.bool),
    }


def check_like_float32(found, model, **settings):
    expected = detect(model, **settings).apply({}, {}, batch())
    for name in ("found", "best_score", "object_found", "object_score", "vanish"):
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-3)
    assert found["found"].all()
    assert found["object_found"].all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_large_object_is_found_in_any_type(dtype, grad):
    with torch.set_grad_enabled(grad):
        check_like_float32(detect(Sees(dtype)).apply({}, {}, batch()), Sees(torch.float32))


@pytest.mark.parametrize("boxes", [torch.int64, torch.int32, torch.int16])
def test_a_large_object_is_found_by_whole_boxes(boxes):
    check_like_float32(detect(Sees(torch.float32, boxes)).apply({}, {}, batch()), Sees(torch.float32))


def test_the_compiled_boundary_answers_in_float32():
    victim = detect(Sees(torch.float16)).upto("victim")
    torch._dynamo.reset()
    compiled = torch.compile(victim.apply, backend="eager", fullgraph=True)
    with unchecked():
        dense = compiled({}, {}, batch())["detections"]["dense"]
    assert {part.dtype for part in dense.values()} == {torch.float32}


def test_reduced_precision_finds_it_too():
    light = infer.lighter(detect(Sees(torch.float32)), "bfloat16")
    check_like_float32(light.apply({}, {}, batch()), Sees(torch.float32))


def test_the_gradient_passes_the_conversion():
    values = batch()
    values["image"].requires_grad_()
    detect(Sees(torch.float16)).apply({}, {}, values)["vanish"].sum().backward()
    assert (values["image"].grad != 0).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_final_detections_of_a_users_stage_are_read_in_float32(dtype):
    final = {
        "boxes": torch.tensor([[OBJECT]] * 2, dtype=dtype),
        "scores": torch.full((2, 1), 0.75, dtype=dtype),
        "labels": torch.zeros(2, 1, dtype=torch.int32),
        "valid": torch.ones(2, 1, dtype=torch.uint8),
    }
    values = batch() | {"detections": {"final": final}}
    assert metrics.detection_hit().apply({}, {}, values)["found"].all()
    assert metrics.object_hit().apply({}, {}, values)["object_found"].all()
    truth = (values["boxes"], values["labels"], values["box_valid"])
    assert metrics.average_precision(final, *truth) == 1.0
    summary = metrics.mean_average_precision().definition.summary
    config = metrics.mean_average_precision().config
    numbers = summary.compute(config, summary.update(config, summary.init(config), values))
    assert (numbers["map"], numbers["recall"]) == (1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16])
def test_areas_are_finite_and_exact(dtype):
    box = torch.tensor([OBJECT], dtype=dtype)
    assert box_area(box).item() == 90000.0
    assert pairwise_iou(box, box).item() == 1.0


def test_quads_of_half_precision_are_computed_in_float32():
    quad = torch.tensor([[100.0, 100.0], [400.0, 100.0], [400.0, 400.0], [100.0, 400.0]])
    assert quad_area(quad.half()).item() == 90000.0
    assert torch.equal(quad_to_homography(quad.half()), quad_to_homography(quad))


def test_a_sum_over_many_rows_of_half_precision_does_not_stop_at_2048():
    """Half precision has no number between 2048 and 2050."""
    stage = metrics.torchmetric(metrics.torchmetrics(name="SumMetric"), inputs=("value",))
    summary = stage.definition.summary
    state = summary.init(stage.config)
    for _ in range(3):
        state = summary.update(stage.config, state, {"value": torch.ones(1025).half()})
    assert summary.compute(stage.config, state) == {"SumMetric": 3075.0}


def test_metrics_of_bfloat16_become_columns():
    values = {"score": torch.tensor([0.5], dtype=torch.bfloat16), "digest": ["a"], "finite": {}}
    columns = result_columns({"patch": values, "none": values}, ["score"])
    assert columns["score/patch"].dtype == "float32"


def test_losses_of_half_precision_are_averaged_in_float32():
    from fpatch.optim.objective import Objective

    nodes = detect(Sees(torch.float32))
    terms = {"vanish": torch.full((4096,), 3000.0).half()}
    assert Objective(nodes, {"vanish": 1.0}).weigh(terms).value.dtype == torch.float32
