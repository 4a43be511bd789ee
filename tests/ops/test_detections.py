"""The arithmetic of scores in float64, at its extremes too; suppression against torchvision's."""

import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fpatch import infer
from fpatch.infer.suppress import Suppress
from fpatch.ops.detections import ABSENT, boxes_of, log_odds, log_odds_of_log, log_scores, softmax_log_odds

LOGITS = torch.cat([torch.linspace(-95, 95, 381), torch.tensor([-1e4, -1e-30, 0.0, 1e-30, 1e4])])


def make_logits(seed: int, *shape: int, scale: float = 5.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient(function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def exact_log_sigmoid(z: Tensor) -> Tensor:
    z = z.double()
    return torch.minimum(z, torch.zeros_like(z)) - torch.log1p((-z.abs()).exp())


# -- scores


def test_a_score_is_that_of_the_class_times_that_of_being_there():
    logits, objectness = make_logits(1, 2, 7, 3, scale=20.0), make_logits(2, 2, 7, scale=20.0)
    torch.testing.assert_close(
        log_scores({"logits": logits}).double(), exact_log_sigmoid(logits), rtol=1e-6, atol=0
    )
    both = exact_log_sigmoid(logits) + exact_log_sigmoid(objectness)[..., None]
    found = log_scores({"logits": logits, "objectness": objectness})
    torch.testing.assert_close(found.double(), both, rtol=1e-6, atol=0)


def test_log_scores_have_gradients_everywhere():
    found = gradient(lambda z: log_scores({"logits": z}), LOGITS[None, :, None])[0, :, 0]
    torch.testing.assert_close(found.double(), torch.sigmoid(-LOGITS.double()), rtol=1e-5, atol=1e-37)
    assert bool((found[LOGITS < 80] > 0).all())


def test_what_is_absent_has_no_score_and_no_gradient():
    z = torch.full((1, 1, 1), ABSENT)
    assert float(log_scores({"logits": z}).exp()) < 1e-13
    assert float(gradient(lambda z: log_scores({"logits": z}).exp(), z)) < 1e-13


def test_boxes_are_those_of_the_class():
    boxes, labels = make_logits(3, 2, 5, 3, 4), torch.tensor([[0, 2, 1, 1, 0], [2, 2, 0, 1, 2]])
    found = boxes_of({"boxes": boxes}, labels)
    expected = [[boxes[row, i, int(labels[row, i])] for i in range(5)] for row in range(2)]
    assert torch.equal(found, torch.stack([torch.stack(row) for row in expected]))
    assert torch.equal(boxes_of({"boxes": boxes[:, :, 0]}, labels), boxes[:, :, 0])


# -- log-odds


def test_log_odds_undo_a_sigmoid():
    z = torch.linspace(-60, 12, 289)
    p = z.sigmoid()
    exact = p.double().log() - torch.log1p(-p.double())
    torch.testing.assert_close(log_odds(p).double(), exact, rtol=1e-6, atol=1e-6)
    low = z < 5
    torch.testing.assert_close(log_odds(p)[low], z[low], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        gradient(lambda z: log_odds(z.sigmoid()), z), torch.ones_like(z), rtol=0.01, atol=0
    )


def test_log_odds_of_what_is_certain_are_finite():
    p = torch.tensor([0.0, 1e-38, 1e-30, 1 - 2**-24, 1.0])
    expected = [math.log(1e-30)] * 3 + [math.log((1 - 2**-24) * 2**24)] * 2
    torch.testing.assert_close(log_odds(p), torch.tensor(expected))
    assert bool(gradient(log_odds, p).isfinite().all())


@pytest.mark.parametrize(("dtype", "largest"), [(torch.bfloat16, 1 - 2**-8), (torch.float16, 1 - 2**-11)])
def test_log_odds_of_half_precision_are_finite(dtype, largest):
    p = torch.tensor([0.0, 0.5, largest, 1.0], dtype=dtype)
    expected = [math.log(1e-30), 0.0, *2 * [math.log(largest / (1 - largest))]]
    torch.testing.assert_close(log_odds(p), torch.tensor(expected))
    assert bool(log_odds_of_log(torch.tensor([-1e-9, -90.0], dtype=dtype)).isfinite().all())
    assert bool(gradient(log_odds, p).isfinite().all())


def test_log_odds_of_a_logarithm_are_exact_at_both_ends():
    log_p = -torch.logspace(-29, 4, 200)
    exact = log_p.double() - (-torch.expm1(log_p.double())).log()
    torch.testing.assert_close(log_odds_of_log(log_p).double(), exact, rtol=1e-6, atol=1e-6)
    slope = 1 / -torch.expm1(log_p.double())
    torch.testing.assert_close(gradient(log_odds_of_log, log_p).double(), slope, rtol=1e-5, atol=0)
    z = torch.linspace(-90, 68, 159)
    undone = log_odds_of_log(torch.nn.functional.logsigmoid(z))
    torch.testing.assert_close(undone.double(), z.double(), rtol=1e-5, atol=1e-5)


def test_log_odds_of_the_logarithm_of_one_are_finite():
    one = torch.tensor([0.0, -1e-38, -1e-30])
    torch.testing.assert_close(log_odds_of_log(one), torch.full((3,), -math.log(1e-30)))
    assert bool(gradient(log_odds_of_log, one).isfinite().all())


def exact_softmax_log_odds(logits: Tensor) -> Tensor:
    """Of every class by itself: `z_k - logsumexp` of the others."""
    z = logits.double()
    others = [torch.cat([z[..., :k], z[..., k + 1 :]], -1).logsumexp(-1) for k in range(z.shape[-1])]
    return z - torch.stack(others, -1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0, 60.0])
@pytest.mark.parametrize("num_classes", [2, 5, 91])
def test_softmax_log_odds_are_those_of_every_class_by_itself(num_classes, scale):
    logits = make_logits(num_classes, 40, num_classes, scale=scale)
    exact = exact_softmax_log_odds(logits)
    torch.testing.assert_close(softmax_log_odds(logits).double(), exact, rtol=2e-6, atol=4e-6 * max(1, scale))
    p = logits.double().softmax(-1)
    torch.testing.assert_close(softmax_log_odds(logits).double().sigmoid(), p, rtol=1e-4, atol=1e-6)
    weights = make_logits(1, 40, num_classes)
    found = gradient(lambda z: softmax_log_odds(z) * weights, logits)
    slope = gradient(lambda z: exact_softmax_log_odds(z) * weights, logits)
    torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-4 * num_classes)


@pytest.mark.parametrize(
    "row",
    [[300.0, -300.0, 0.0], [0.0, 0.0, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4 - 50], [80.0, 0.0, -80.0]],
)
def test_softmax_log_odds_are_finite_at_the_extremes(row):
    logits = torch.tensor([row])
    torch.testing.assert_close(softmax_log_odds(logits).double(), exact_softmax_log_odds(logits))
    found, exact = gradient(softmax_log_odds, logits), gradient(exact_softmax_log_odds, logits)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


# -- suppression


def make_dense(seed: int, n: int, c: int, per_class: bool) -> dict[str, Tensor]:
    """Boxes with whole numbers as corners, so that overlaps are exact; scores that all differ."""
    generator = torch.Generator().manual_seed(seed)

    def whole(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator).float()

    shape = (2, n, c, 2) if per_class else (2, n, 2)
    corner, size = whole(24, *shape), whole(16, *shape)
    order = torch.stack([torch.randperm(n * c, generator=generator) for _ in range(2)])
    logits = (order.float() / (n * c) * 8 - 4).view(2, n, c)
    return {"boxes": torch.cat([corner, corner + size], -1), "logits": logits}


def library_answer(boxes: Tensor, scores: Tensor, config: Suppress) -> tuple[Tensor, Tensor, Tensor]:
    """Of one image, with `torchvision.ops.batched_nms` in float64."""
    n, c = scores.shape
    boxes = boxes if boxes.ndim == 3 else boxes[:, None].expand(n, c, 4)
    label = torch.arange(c).expand(n, c)
    asked = torch.ones(n, c, dtype=torch.bool) if config.multi_label else label == scores.argmax(1)[:, None]
    boxes, scores, labels = boxes[asked].double(), scores[asked].double(), label[asked]
    best = scores.argsort(descending=True)[: config.num_candidates]
    best = best[scores[best] >= config.score]
    keep = best[torchvision.ops.batched_nms(boxes[best], scores[best], labels[best], config.iou)]
    keep = keep[: config.num_detections]
    return boxes[keep], scores[keep], labels[keep]


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    c=st.integers(1, 4),
    per_class=st.booleans(),
    multi_label=st.booleans(),
    num_candidates=st.integers(1, 200),
    num_detections=st.integers(1, 60),
    iou=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    score=st.sampled_from([0.0, 0.1, 0.5, 0.97]),
)
def test_suppression_equals_torchvision_with_every_setting(seed, n, c, per_class, **settings):
    dense = make_dense(seed, n, c, per_class)
    stage = infer.suppress(**settings)
    final = stage.apply({}, {}, {"detections": {"dense": dense}})["detections"]["final"]
    scores = log_scores(dense).exp()
    for row in range(2):
        boxes, expected, labels = library_answer(dense["boxes"][row], scores[row], stage.config)
        valid = final["valid"][row]
        assert int(valid.sum()) == len(labels)
        assert bool(valid[: len(labels)].all())
        assert torch.equal(final["labels"][row][valid], labels)
        assert torch.equal(final["boxes"][row][valid].double(), boxes)
        assert torch.equal(final["scores"][row][valid].double(), expected)
        for name in ("boxes", "scores", "labels"):
            assert not bool(final[name][row][~valid].any())


def test_the_best_class_alone_answers_for_a_box():
    dense = {"boxes": torch.tensor([[[0.0, 0.0, 9.0, 9.0]]]), "logits": torch.tensor([[[1.0, 2.0, 0.5]]])}
    values = {"detections": {"dense": dense}}
    several = infer.suppress(score=0.1).apply({}, {}, values)["detections"]["final"]
    one = infer.suppress(score=0.1, multi_label=False).apply({}, {}, values)["detections"]["final"]
    assert several["labels"][several["valid"]].tolist() == [1, 0, 2]
    assert one["labels"][one["valid"]].tolist() == [1]


@pytest.mark.parametrize("name", ["num_candidates", "num_detections"])
def test_suppression_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=rf"suppress\({name}\) must be at least 1, got 0"):
        infer.suppress(**{name: 0})


def test_a_box_that_is_no_number_takes_no_part():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.stack([torch.cat([box, box, box + float("inf")])])
    logits = torch.tensor([[[float("nan")], [2.0], [-9.0]]])
    values = {"detections": {"dense": {"boxes": boxes, "logits": logits}}}
    final = infer.suppress(score=0.5, num_detections=3).apply({}, {}, values)["detections"]["final"]
    assert final["valid"].tolist() == [[True, False, False]]
    assert final["boxes"].tolist() == [[box[0].tolist(), [0.0] * 4, [0.0] * 4]]
    assert final["scores"][0, 0] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert final["scores"][0, 1:].tolist() == [0.0, 0.0]
