"""Losses by goal on dense detections: against loops in float64, at their edges, and 5 steps of training."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import NUM_ROWS, make_dense, make_inputs, noise, randomize
from laws import clone, take
from library_victims import make_transformer, make_ultralytics, need_ultralytics
from torch import Tensor, nn
from torchvision_victims import ARCHITECTURES
from torchvision_victims import make_victim as torchvision_victim
from typecheck import unchecked

from fpatch import create, implant, infer, losses, metrics, random
from fpatch.demo.victim import TinyDetector
from fpatch.graph.pipeline import pipeline
from fpatch.graph.stage import Stage
from fpatch.ops.detections import ABSENT, log_odds_of_log, log_scores, score_logits, softmax_log_odds
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.objective import Objective
from fpatch.optim.schedules import constant, scheduled
from fpatch.optim.transforms import scale_by_adam, scale_by_learning_rate

OWN, TARGET = 1, 2
DENSE = {
    "one box, classes": {},
    "one box, objectness": {"objectness": True},
    "class boxes": {"class_boxes": True},
    "class boxes, objectness": {"objectness": True, "class_boxes": True},
}


# -- the reference: a loop over rows, places and boxes


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds_of_product(x: float, y: float | None) -> float:
    if y is None:
        return x
    log_p = -softplus(-x) - softplus(-y)
    return log_p - math.log(-math.expm1(log_p))


def is_near(place: list[float], box: list[float], iou: float) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if place[0] <= x <= place[2] and place[1] <= y <= place[3]:
        return True
    width, height = (min(place[i + 2], box[i + 2]) - max(place[i], box[i]) for i in (0, 1))
    common = max(width, 0) * max(height, 0)
    areas = sum(max(b[2] - b[0], 0) * max(b[3] - b[1], 0) for b in (place, box))
    return common / max(areas - common, 1e-9) >= iou


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


class Row:
    """One row of dense detections as lists."""

    def __init__(self, dense: dict[str, Tensor], row: int) -> None:
        self.logits = dense["logits"][row].double().tolist()
        self.objectness = dense["objectness"][row].double().tolist() if "objectness" in dense else None
        boxes = dense["boxes"][row].double()
        if boxes.ndim == 2:
            boxes = boxes[:, None].expand(-1, len(self.logits[0]), 4)
        self.boxes = boxes.tolist()

    def __len__(self) -> int:
        return len(self.logits)

    def best(self, i: int) -> int:
        return self.logits[i].index(max(self.logits[i]))

    def score(self, i: int, label: int, score: str = "product") -> float:
        y = None if self.objectness is None else self.objectness[i]
        if score == "objectness":
            assert y is not None
            return y
        return log_odds_of_product(self.logits[i][label], y if score == "product" else None)

    def present(self, i: int) -> bool:
        return any(x != ABSENT for x in self.logits[i])


def objects(inputs: dict[str, Any], row: int) -> Iterator[tuple[list[float], int]]:
    for box, label, valid in zip(
        inputs["boxes"][row].tolist(), inputs["labels"][row].tolist(), inputs["box_valid"][row], strict=True
    ):
        if valid:
            yield box, label


def vanish_of(
    inputs, row, num_boxes=6, iou=0.2, on="logit", score="product", boxes="overlapping", label="own"
) -> float:
    dense, terms = Row(inputs["detections"]["dense"], row), []
    for box, own in objects(inputs, row):
        near = []
        for i in range(len(dense)):
            k = own if label == "own" else dense.best(i)
            if boxes == "all" or is_near(box, dense.boxes[i][k], iou):
                near.append(dense.score(i, k, score))
        count = min(num_boxes, len(dense))
        highest = (sorted(near, reverse=True) + [-30.0] * count)[:count]
        terms.append(mean([softplus(x) if on == "logit" else sigmoid(x) for x in highest]))
    return mean(terms)


def relabel_of(inputs, row, target=None, margin=10.0, num_boxes=6, iou=0.2) -> float:
    dense, terms = Row(inputs["detections"]["dense"], row), []
    for box, own in objects(inputs, row):
        near = []
        for i in range(len(dense)):
            best = dense.best(i)
            if dense.present(i) and is_near(box, dense.boxes[i][best], iou):
                goal = own if target is None else target
                rival = max(x for k, x in enumerate(dense.logits[i]) if k != goal)
                lead = dense.logits[i][goal] - rival
                near.append((dense.score(i, best), max((lead if target is None else -lead) + margin, 0.0)))
        count = min(num_boxes, len(dense))
        terms.append(sum(term for _, term in sorted(near, reverse=True)[:count]) / count)
    return mean(terms)


def hallucinate_of(inputs, row, label, box=None, num_boxes=6, iou=0.2) -> float:
    dense, terms = Row(inputs["detections"]["dense"], row), []
    if box is None:
        corners = zip(inputs["quads"][row].tolist(), inputs["quad_valid"][row].tolist(), strict=True)
        places = [[f(p[i] for p in quad) for f in (min, max) for i in (0, 1)] for quad, ok in corners if ok]
    else:
        height, width = inputs["image"].shape[-2:]
        places = [[f * side for f, side in zip(box, (width, height, width, height), strict=True)]]
    for place in places:
        near = [
            dense.score(i, label) for i in range(len(dense)) if is_near(place, dense.boxes[i][label], iou)
        ]
        count = min(num_boxes, len(dense))
        terms.append(mean([softplus(-x) for x in (sorted(near, reverse=True) + [-30.0] * count)[:count]]))
    return mean(terms)


def latency_of(inputs, row, score=0.25, on="logit") -> tuple[float, float]:
    dense, below, areas = Row(inputs["detections"]["dense"], row), [], []
    threshold, size = math.log(score / (1 - score)), inputs["image"].shape[-2:]
    for i in range(len(dense)):
        if dense.present(i):
            best = dense.best(i)
            x, box = dense.score(i, best), dense.boxes[i][best]
            below.append(max(threshold - x if on == "logit" else score - sigmoid(x), 0.0))
            area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0) / (size[0] * size[1])
            areas += [area] if x >= threshold else []
    return mean(below), mean(areas)


def score_rows(stage: Stage, inputs: dict[str, Any], term: str | None = None) -> Tensor:
    return stage.apply({}, {}, inputs)[term or stage.definition.writes[0]]


def compare(stage: Stage, reference: Callable[..., float], inputs: dict[str, Any], **settings: Any) -> Tensor:
    """Rows of three and a row alone are what the loop says."""
    found = score_rows(stage, inputs)
    for row in range(NUM_ROWS):
        expected = reference(inputs, row, **settings)
        assert float(found[row]) == pytest.approx(expected, rel=2e-5, abs=1e-6)
        assert torch.equal(score_rows(stage, take(inputs, [row])), found[row : row + 1])
    return found


@pytest.fixture(scope="module", params=DENSE)
def made(request) -> dict[str, Any]:
    """Objects with labels, one of them invalid with a label that no victim has, and one placement absent."""
    inputs = make_inputs(detections=make_dense(**DENSE[request.param]))
    assert bool(inputs["quads"].isnan().any())
    return inputs | {"labels": torch.tensor([[0, 1], [2, 77], [-1, 1]])}


@pytest.fixture
def inputs(made) -> dict[str, Any]:
    return clone(made)


def with_objectness(inputs: dict[str, Any]) -> bool:
    return "objectness" in inputs["detections"]["dense"]


# -- values


@pytest.mark.parametrize("settings", [
    {},
    {"num_boxes": 1, "iou": 0.0},
    {"num_boxes": 500, "iou": 0.05, "on": "probability"},
    {"score": "class", "iou": 0.1},
    {"boxes": "all", "num_boxes": 20},
    {"label": "any", "iou": 0.1},
    {"label": "any", "boxes": "all", "score": "class", "on": "probability"},
    {"label": None, "num_boxes": 500},
], ids=str)  # fmt: skip
def test_vanish_by_a_loop(inputs, settings):
    found = compare(losses.vanish(**settings), vanish_of, inputs, **settings)
    assert len(set(found.tolist())) == NUM_ROWS


@pytest.mark.parametrize("settings", [{}, {"boxes": "all", "on": "probability"}, {"iou": 0.05}], ids=str)
@pytest.mark.parametrize("dense", ["one box, objectness", "class boxes, objectness"])
def test_vanish_by_objectness(dense, settings):
    inputs = make_inputs(detections=make_dense(**DENSE[dense]))
    settings = {"score": "objectness", "label": "any", **settings}
    compare(losses.vanish(**settings), vanish_of, inputs, **settings)
    objectness = inputs["detections"]["dense"]["objectness"].requires_grad_()
    stage = losses.vanish(**settings)
    (gradient,) = torch.autograd.grad(score_rows(stage, inputs).sum(), objectness)
    assert bool((gradient >= 0).all() and (gradient > 0).any())

    def by(objectness: Tensor) -> Tensor:
        dense = inputs["detections"]["dense"] | {"objectness": objectness}
        return score_rows(stage, inputs | {"detections": {"dense": dense}})

    population = torch.stack([objectness.detach() + shift for shift in (-3.0, 0.0, 2.0)])
    expected = torch.stack([by(member) for member in population])
    torch.testing.assert_close(torch.func.vmap(by)(population), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", [
    {},
    {"target": 2},
    {"target": 3, "margin": 25.0},
    {"num_boxes": 1, "iou": 0.0, "margin": 0.0},
    {"target": 0, "margin": 0.4, "iou": 0.05},
    {"num_boxes": 500, "iou": 0.0},
], ids=str)  # fmt: skip
def test_relabel_by_a_loop(inputs, settings):
    found = compare(losses.relabel(**settings), relabel_of, inputs, **settings)
    assert len(set(found.tolist())) == NUM_ROWS or not settings["margin"]


@pytest.mark.parametrize("settings", [
    {"label": 1},
    {"label": 0, "num_boxes": 1},
    {"label": 2, "num_boxes": 500, "iou": 0.05},
    {"label": 2, "iou": 0.0, "num_boxes": 30},
    {"label": 1, "box": (0.1, 0.3, 0.55, 0.9)},
    {"label": 0, "box": (0.7, 0.0, 1.0, 0.25), "iou": 0.4},
], ids=str)  # fmt: skip
def test_hallucinate_by_a_loop(inputs, settings):
    found = compare(losses.hallucinate(**settings), hallucinate_of, inputs, **settings)
    assert len(set(found.tolist())) == NUM_ROWS


@pytest.mark.parametrize("on", ["logit", "probability"])
@pytest.mark.parametrize("score", [0.25, 0.6, 0.95])
def test_latency_by_a_loop(inputs, score, on):
    stage = losses.latency(score, on=on)
    compare(stage, lambda *a, **k: latency_of(*a, **k)[0], inputs, score=score, on=on)
    area = score_rows(stage, inputs, "latency_area")
    expected = [latency_of(inputs, row, score)[1] for row in range(NUM_ROWS)]
    torch.testing.assert_close(area, torch.tensor(expected), rtol=1e-5, atol=0)
    assert bool(area.any()) == (score < 0.95)


def test_the_log_odds_of_a_product():
    """As from the logarithm of the score, and with a gradient where float32 has no product any more."""
    x, y = 12 * noise("x", 3, 50, 4) - 6, 12 * noise("y", 3, 50) - 6
    dense = {"logits": x, "objectness": y}
    double = {name: value.double() for name, value in dense.items()}
    torch.testing.assert_close(score_logits(dense), log_odds_of_log(log_scores(double)).float())
    assert score_logits({"logits": x}) is x
    assert torch.equal(score_logits(dense, "class"), x)
    assert torch.equal(score_logits(dense, "objectness"), y[..., None])
    for a, b in [(90.0, 80.0), (-90.0, 80.0), (-200.0, -300.0), (1e4, 2e4)]:
        leaf = torch.tensor([a, b]).requires_grad_()
        value = score_logits({"logits": leaf[:1].view(1, 1, 1), "objectness": leaf[1:].view(1, 1)})
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert float(value.detach()) == pytest.approx(min(a, b) if max(a, b) > 0 else a + b, rel=1e-5)
        assert 1 - 1e-5 <= float(gradient.sum()) <= 2


# -- edges


STAGES = {
    "vanish": losses.vanish(label="any"),
    "vanish own": losses.vanish(),
    "relabel": losses.relabel(),
    "relabel targeted": losses.relabel(target=TARGET),
    "hallucinate": losses.hallucinate(TARGET),
    "hallucinate in a box": losses.hallucinate(TARGET, box=(0.2, 0.2, 0.8, 0.8)),
    "latency": losses.latency(0.75),
    "latency by probability": losses.latency(0.75, on="probability"),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_finite_with_a_finite_gradient_everywhere(stage, inputs):
    dense = inputs["detections"]["dense"]
    for level in (-1e4, -60.0, 0.0, 60.0, 1e4):
        moved = {n: dense[n] + level for n in ("logits", "objectness") if n in dense}
        logits = moved["logits"].requires_grad_()
        found = score_rows(stage, inputs | {"detections": {"dense": dense | moved}})
        assert bool(found.isfinite().all())
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", ["vanish", "vanish own", "relabel", "relabel targeted"])
def test_a_row_without_objects_is_zero_with_a_gradient_of_zero(name, inputs):
    logits = inputs["detections"]["dense"]["logits"].requires_grad_()
    inputs["box_valid"] = torch.tensor([[True, True], [False, False], [True, False]])
    inputs["labels"] = torch.tensor([[0, 1], [99, -5], [0, 99]])
    found = score_rows(STAGES[name], inputs)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert (found != 0).tolist() == [True, False, True]
    assert gradient.flatten(1).any(1).tolist() == [True, False, True]


def test_a_row_without_a_placement_is_zero_with_a_gradient_of_zero(inputs):
    logits = inputs["detections"]["dense"]["logits"].requires_grad_()
    inputs["quads"][1], inputs["quad_valid"][1] = math.nan, False
    found = score_rows(losses.hallucinate(TARGET), inputs)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert (found != 0).tolist() == [True, False, True]
    assert gradient.flatten(1).any(1).tolist() == [True, False, True]


def test_a_place_that_no_box_is_at_stays_far_from_the_goal(inputs):
    inputs["detections"]["dense"]["boxes"] = inputs["detections"]["dense"]["boxes"] + 1000
    found = score_rows(losses.hallucinate(TARGET), inputs)
    torch.testing.assert_close(found, torch.full((NUM_ROWS,), -ABSENT))
    assert score_rows(losses.relabel(), inputs).tolist() == [0.0] * NUM_ROWS
    assert float(score_rows(losses.vanish(), inputs).max()) < 1e-12


def test_a_goal_that_is_reached_costs_nothing(inputs):
    logits = torch.full((NUM_ROWS, 191, 4), -40.0)
    logits[..., TARGET] = 40.0
    inputs["labels"] = torch.ones(NUM_ROWS, 2, dtype=torch.int64)
    inputs["detections"]["dense"]["logits"] = logits
    if with_objectness(inputs):
        inputs["detections"]["dense"]["objectness"] = torch.full((NUM_ROWS, 191), 40.0)
    for name in ("vanish own", "relabel", "relabel targeted", "hallucinate", "latency"):
        assert float(score_rows(STAGES[name], inputs).max()) < 1e-12, name
    assert bool((score_rows(losses.latency(), inputs, "latency_area") > 0).all())
    assert float(score_rows(STAGES["vanish"], inputs).min()) > 30


def test_padding_is_no_box():
    """Corner boxes of zeros lie in an object at the corner, and count for nothing."""
    inputs = make_inputs(detections=make_dense())
    inputs["boxes"][..., :2] = -1.0
    padded = {name: value.clone() for name, value in inputs["detections"]["dense"].items()}
    padded["boxes"][:, -7:] = 0.0
    short = {name: value[:, :-7] for name, value in padded.items()}
    for stage in (losses.relabel(num_boxes=184), losses.vanish(num_boxes=184), losses.latency()):
        for term in stage.definition.writes:
            found = score_rows(stage, inputs | {"detections": {"dense": padded}}, term)
            torch.testing.assert_close(
                found, score_rows(stage, inputs | {"detections": {"dense": short}}, term)
            )


def test_small_boxes_are_wanted_by_the_area(inputs):
    boxes = inputs["detections"]["dense"]["boxes"].requires_grad_()
    (gradient,) = torch.autograd.grad(score_rows(losses.latency(), inputs, "latency_area").sum(), boxes)
    outward = gradient[..., 2:] - gradient[..., :2]
    assert bool((outward >= 0).all() and (outward > 0).any())


@pytest.mark.parametrize("name", [n for n in STAGES if n != "latency"])
def test_the_gradient_leads_to_the_goal(name, inputs):
    """Down for what is to vanish, up for what is to appear, and never into what is not there."""
    dense = inputs["detections"]["dense"]
    dense["logits"].requires_grad_()
    (gradient,) = torch.autograd.grad(score_rows(STAGES[name], inputs).sum(), dense["logits"])
    down, up = bool((gradient > 0).any()), bool((gradient < 0).any())
    assert (down, up) == {"vanish": (True, False), "vanish own": (True, False)}.get(
        name, (True, True) if "relabel" in name else (False, True)
    )
    if "relabel" not in name:
        assert not bool(gradient[:, -7:].any())


# -- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.vanish(num_boxes=0), r"vanish\(num_boxes\) must be at least 1, got 0"),
        (lambda: losses.vanish(iou=1.5), r"vanish\(iou\) must be between 0 and 1, got 1.5"),
        (lambda: losses.vanish(on="score"), r"vanish\(on\) must be 'logit' or 'probability', got 'score'"),
        (lambda: losses.vanish(score="obj"), r"vanish\(score\) must be 'class' or .* got 'obj'"),
        (lambda: losses.vanish(boxes="one"), r"vanish\(boxes\) must be 'overlapping' or 'all', got 'one'"),
        (lambda: losses.vanish(label=3), r"vanish\(label\) must be 'own' or 'any' or None, got 3"),
        (
            lambda: losses.vanish(score="objectness"),
            r"vanish\(label='own'\) needs a score by class, .* take score='product', or label='any'",
        ),
        (lambda: losses.relabel(target=-1), r"relabel\(target\) must be at least 0, got -1"),
        (lambda: losses.relabel(margin=-1.0), r"relabel\(margin\) must be at least 0, got -1"),
        (lambda: losses.relabel(num_boxes=0), r"relabel\(num_boxes\) must be at least 1"),
        (lambda: losses.relabel(iou=-0.1), r"relabel\(iou\) must be between 0 and 1"),
        (lambda: losses.hallucinate(-1), r"hallucinate\(label\) must be at least 0, got -1"),
        (lambda: losses.hallucinate(1, num_boxes=0), r"hallucinate\(num_boxes\) must be at least 1"),
        (lambda: losses.hallucinate(1, iou=2.0), r"hallucinate\(iou\) must be between 0 and 1"),
        (lambda: losses.hallucinate(1, (0.5, 0, 0.2, 1)), r"hallucinate\(box\) must be .* got \(0.5, 0, 0.2"),
        (lambda: losses.hallucinate(1, (0, 0, 40, 60)), r"hallucinate\(box\) must be .* in fractions"),
        (lambda: losses.hallucinate(1, (0, 0, 1)), r"hallucinate\(box\) must be .* got \(0, 0, 1\)"),
        (lambda: losses.misclassify(-1), r"misclassify\(target\) must be at least 0, got -1"),
        (lambda: losses.misclassify(margin=math.nan), r"misclassify\(margin\) must be at least 0, got nan"),
        (lambda: losses.latency(1.0), r"latency\(score\) must be between 0.001 and 0.999, got 1"),
        (lambda: losses.latency(on="box"), r"latency\(on\) must be 'logit' or 'probability', got 'box'"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong(make, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            losses.vanish(score="objectness", label="any"),
            r"vanish\(score='objectness'\): .* no objectness; take score='class'",
        ),
        (
            losses.vanish(),
            "vanish: a label is 4, but the victim has 4 classes, 0 to 3; labels are",
        ),
        (losses.relabel(), "relabel: a label is 4, but the victim has 4 classes"),
        (losses.relabel(target=4), r"relabel\(target\) is 4, but the victim has 4 classes, 0 to 3"),
        (losses.hallucinate(4), r"hallucinate\(label\) is 4, but the victim has 4 classes, 0 to 3"),
    ],
)
def test_inputs_that_are_wrong(stage, message):
    inputs = make_inputs(detections=make_dense())
    inputs["labels"] = torch.tensor([[0, 1], [2, 1], [1, 4]])
    with pytest.raises(ValueError, match=message):
        score_rows(stage, inputs)


def test_one_class_has_no_other_name():
    inputs = make_inputs()
    inputs["detections"]["dense"]["logits"] = inputs["detections"]["dense"]["logits"][..., :1]
    inputs["labels"] = torch.zeros(NUM_ROWS, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"relabel: the victim must have two classes .* use losses"):
        score_rows(losses.relabel(), inputs)


def test_the_default_is_done_when_the_metric_finds_nothing():
    """A box of another class answers no object, neither for the loss nor for the metrics."""
    inputs = make_inputs(detections=make_dense())
    logits = torch.full_like(inputs["detections"]["dense"]["logits"], -40.0)
    logits[..., TARGET] = 40.0
    inputs["detections"]["dense"]["logits"] = logits
    for labels, found in ((1, False), (TARGET, True)):
        seen = inputs | {"labels": torch.full((NUM_ROWS, 2), labels)}
        seen = seen | infer.suppress(num_candidates=200).apply({}, {}, seen)
        hit = metrics.object_hit(iou=0.0).apply({}, {}, seen)["object_found"] & seen["box_valid"]
        assert bool(hit.any()) is found
        assert bool((score_rows(losses.vanish(), seen) > 1e-12).any()) is found


def test_own_labels_are_read_where_they_count():
    inputs = make_inputs()
    del inputs["labels"]
    score_rows(losses.vanish(label="any"), inputs)
    with pytest.raises(ValueError, match="vanish reads 'labels', which is not there"):
        score_rows(losses.vanish(), inputs)
    del inputs["image"]
    score_rows(losses.hallucinate(1), inputs)
    with pytest.raises(ValueError, match="hallucinate reads 'image', which is not there"):
        score_rows(losses.hallucinate(1, box=(0, 0, 1, 1)), inputs)


# -- what the doctor asks


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        (losses.vanish(), "object"),
        (losses.relabel(), "object"),
        (losses.hallucinate(1), "place"),
        (losses.hallucinate(1, box=(0.0, 0.0, 0.5, 0.5)), "place"),
    ],
)
def test_the_doctor_hears_of_places_that_no_box_is_near(stage, what, inputs):
    d = stage.definition
    read = {name: inputs[name] for name in (*d.reads, *d.optional)}
    assert d.check(stage.config, read) == {}
    read["detections"]["dense"]["boxes"][1] += 1000
    ((rule, places),) = d.check(stage.config, read).items()
    assert f"no dense box of the victim is near the {what}" in rule
    valid = inputs["box_valid" if what == "object" else "quad_valid"][1].nonzero().flatten().tolist()
    assert places == [f"image 7, {what} {i}" for i in ([0] if "image" in read else valid)]


def test_the_doctor_hears_of_a_class_that_the_victim_does_not_give():
    inputs = make_inputs(detections=make_dense(objectness=True))
    stage = losses.hallucinate(3)
    (places,) = stage.definition.check(stage.config, inputs).values()
    assert len(places) == int(inputs["quad_valid"].sum())


# -- training


class TwoStage(nn.Module):
    """Fixed proposals, a softmax with background, a box by class."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.logits, self.boxes = nn.Conv2d(3, 16, 16, 8), nn.Linear(16, 4), nn.Linear(16, 16)
        randomize(self, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images - 0.5).tanh()
        rows, columns = features.shape[-2:]
        features = features.flatten(2).transpose(1, 2)
        shift = 6 * self.boxes(features).tanh().unflatten(-1, (4, 4))
        logits = softmax_log_odds(self.logits(2 * features))
        background = torch.full_like(logits[..., :1], ABSENT)
        return {
            "boxes": proposals(rows, columns)[:, None] + shift,
            "logits": torch.cat([background, logits[..., 1:]], dim=-1),
        }


class WithObjectness(nn.Module):
    """One box, an objectness and three classes for every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Conv2d(3, 16, 16, 8), nn.Linear(16, 8)
        randomize(self, 6)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images - 0.5).tanh()
        rows, columns = features.shape[-2:]
        shift, objectness, logits = self.head(features.flatten(2).transpose(1, 2)).split([4, 1, 3], dim=-1)
        return {
            "boxes": proposals(rows, columns) + 6 * shift.tanh(),
            "logits": logits,
            "objectness": objectness[..., 0],
        }


class ThreeClasses(nn.Module):
    """What a network with objectness says, in the format of YOLO v4 or v5."""

    def __init__(self, model: nn.Module, form: str) -> None:
        super().__init__()
        self.model, self.form = model.eval(), form
        self.eval()

    def forward(self, images: Tensor) -> Any:
        said = self.model(images)
        objectness, classes = said["objectness"].sigmoid()[..., None], said["logits"].sigmoid()
        low, high = said["boxes"].chunk(2, dim=-1)
        if self.form == "v4":
            return said["boxes"][:, :, None] / images.shape[-1], objectness * classes
        return torch.cat([(low + high) / 2, high - low, objectness, classes], dim=-1)


def proposals(rows: int, columns: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    low = 8.0 * torch.stack([x, y], dim=-1).flatten(0, 1) - 4
    return torch.cat([low, low + 24], dim=-1)


def ultralytics(name: str, form: Any, end2end: bool = False) -> Stage:
    need_ultralytics()
    return infer.yolo(make_ultralytics(name, end2end), format=form)


def transformer(kind: str) -> Stage:
    pytest.importorskip("transformers", exc_type=ImportError)
    return infer.transformers_detector(make_transformer(kind))


VICTIMS: dict[str, Callable[[], Stage]] = {
    "tiny": lambda: infer.detector(TinyDetector(3, 32, torch.Generator().manual_seed(2)).eval()),
    "two-stage": lambda: infer.detector(TwoStage()),
    "objectness": lambda: infer.detector(WithObjectness()),
    **{
        f"torchvision's {name}": lambda name=name: infer.torchvision_detector(torchvision_victim(name))
        for name in ARCHITECTURES
    },
    "yolov4's format": lambda: infer.yolo(ThreeClasses(WithObjectness(), "v4"), format="v4"),
    "yolov5's format": lambda: infer.yolo(ThreeClasses(WithObjectness(), "v5"), format="v5"),
    "yolo11n": lambda: ultralytics("yolo11n", "v8"),
    "yolov10n, end to end": lambda: ultralytics("yolov10n", "v10", end2end=True),
    "DETR": lambda: transformer("detr"),
    "YOLOS": lambda: transformer("yolos"),
}


def moves(goal: Stage, victim: Stage, steps: int) -> tuple[list[float], float]:
    """Train a patch of 32 x 32 pixels on two photographs of 128 x 128 pixels.

    Args:
        goal: A loss; its first term counts.
        victim: A stage from `image` to `detections`, of three classes; the objects are of class `OWN`.
        steps: Number of updates by Adam.

    Returns:
        The loss before each step and after the last, and the norm of the first gradient.
    """
    term = goal.definition.writes[0]
    whole = pipeline({
        "pixels": create.pixels({"sign": (3, 32, 32)}),
        "implant": implant.warp(),
        "victim": victim,
        "goal": goal,
    })  # fmt: skip
    quad = torch.tensor([[44.0, 40.0], [84.0, 42.0], [86.0, 82.0], [42.0, 80.0]])
    batch = {
        "image_id": torch.arange(2),
        "draw": torch.zeros(2, dtype=torch.int64),
        "scene": 0.2 + 0.6 * noise("photographs", 2, 3, 128, 128),
        "quads": (quad + torch.tensor([0.0, 9.0])[:, None, None])[:, None],
        "quad_patch": torch.zeros(2, 1, dtype=torch.int64),
        "quad_valid": torch.ones(2, 1, dtype=torch.bool),
        "boxes": torch.tensor([[[30.0, 28.0, 98.0, 96.0]]]).repeat(2, 1, 1),
        "labels": torch.full((2, 1), OWN),
        "box_valid": torch.ones(2, 1, dtype=torch.bool),
    }
    objective = Objective(whole, {term: 1.0})
    step = value_and_grad(objective)
    optimizer = scale_by_learning_rate(scale_by_adam(), scheduled(constant(0.01)))
    params = whole.init(random.key(3))
    state, sample = optimizer.init(params), whole.sample(random.key(4), batch)
    values, norms = [], []
    for _ in range(steps):
        gradients, loss = step(params, sample, batch)
        values.append(float(loss.value))
        norms.append(float(gradients["sign"].norm()))
        updates, state = optimizer.update(gradients, state, params=params, inplace=False)
        params = whole.project({name: value + updates[name] for name, value in params.items()})
    with torch.no_grad():
        values.append(float(objective(params, sample, batch).value))
    return values, norms[0]


@cache
def make_victim(name: str) -> Stage:
    return VICTIMS[name]()


PAIRS = [pair for pair in product(STAGES, VICTIMS) if pair != ("hallucinate", "DETR")]
"""The boxes of DETR's queries leave a place as small as a patch, and no gradient holds them there."""


def cover() -> list[tuple[str, str]]:
    """Every goal on every form of dense detections; every network with a goal on classes, and another."""
    forms = ("tiny", "two-stage", "objectness")
    networks = [name for name in VICTIMS if name not in forms]
    on_classes = [goal for goal in STAGES if "relabel" in goal]
    on_scores = [goal for goal in STAGES if goal not in on_classes]
    goals = zip(cycle(on_classes), cycle(on_scores), networks, strict=False)
    chosen = {(goal, name) for *two, name in goals for goal in two}
    return [pair for pair in PAIRS if pair in chosen or pair[1] in forms]


COVERED = cover()


def test_the_covered_pairs_hold_every_goal_and_every_victim():
    goals, victims = (Counter(pair[i] for pair in COVERED) for i in (0, 1))
    assert set(goals) == set(STAGES)
    assert set(victims) == set(VICTIMS)
    assert min(goals.values()) > 3
    assert min(victims.values()) > 1


@pytest.mark.parametrize(("goal", "victim"), COVERED)
def test_three_steps_move_the_loss_the_right_way(goal, victim):
    values, norm = moves(STAGES[goal], make_victim(victim), steps=3)
    assert norm > 0
    assert values[-1] < values[0]


@pytest.mark.slow
@pytest.mark.parametrize(("goal", "victim"), PAIRS)
def test_twenty_steps_move_it_too(goal, victim):
    values, _ = moves(STAGES[goal], make_victim(victim), steps=20)
    assert values[-1] < values[0]


# -- the page


def test_the_page_names_every_goal_and_score():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "losses-by-goal.md").read_text()
    for stage in STAGES.values():
        name = stage.definition.name
        assert f"| `{name}` |" in text
    assert f"a score of 0.8 costs {softplus(-math.log(0.8 / 0.2)):.2f}" in text
    for score in ("class", "objectness"):
        assert f'score="{score}"' in text
