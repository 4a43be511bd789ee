"""Metrics with a goal, against loops in numpy."""

import numpy as np
import pytest
import torch
from cases import make_inputs

from fpatch import metrics, success
from fpatch.evaluation.rates import effects


def written(stage, inputs):
    return {name: value.numpy() for name, value in stage.written({}, {}, inputs).items()}


def test_class_hit_by_hand():
    logits = np.array([[2, 0, -1], [0, 1, 3], [0, 0, 9], [1, 5, 2], [4, 0, 6]], np.float32)
    target = np.array([0, 1, 0, 1, 2])
    inputs = {"logits": torch.from_numpy(logits), "target": torch.from_numpy(target)}
    out = written(metrics.class_hit(goal=2), inputs)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert out["answer"].tolist() == [0, 2, 2, 1, 2]
    assert out["reached"].tolist() == [False, True, True, False, False]  # the last one is of the class
    assert out["found"].tolist() == [True, False, False, True, False]
    assert out["has_object"].tolist() == [True, True, True, True, False]
    np.testing.assert_allclose(out["goal_score"], probability[:, 2], rtol=1e-6)
    plain = written(metrics.class_hit(), inputs)
    assert list(plain) == ["found", "confidence", "answer", "label"]
    assert plain["found"].tolist() == [True, False, False, True, True]
    assert np.array_equal(plain["confidence"], out["confidence"])


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.clip(high - low, 0, None))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def answers_to(inputs, i, j, iou):
    """Score and label of the detections that overlap an object, the best first."""
    final, box = inputs["detections"]["final"], inputs["boxes"][i, j].double().numpy()
    found = [
        (float(final["scores"][i, k]), int(final["labels"][i, k]))
        for k in range(final["scores"].shape[1])
        if final["valid"][i, k] and overlap(box, final["boxes"][i, k].double().numpy()) >= iou
    ]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("goal", [None, 0, 1])
@pytest.mark.parametrize(("score", "iou"), [(0.3, 0.3), (0.6, 0.1), (0.0, 0.5)])
def test_object_hit_by_a_loop(goal, score, iou):
    inputs = make_inputs()
    out = written(metrics.object_hit(score=score, iou=iou, goal=goal), inputs)
    assert ("object_reached" in out) == (goal is not None)
    for i, j in np.ndindex(*inputs["box_valid"].shape):
        real, own = bool(inputs["box_valid"][i, j]), int(inputs["labels"][i, j])
        found = answers_to(inputs, i, j, iou) if real else []
        sure = [label for value, label in found if value >= score]
        asked = real and own != goal
        assert out["object_answer"][i, j] == (sure[0] if sure else -1)
        assert out["object_valid"][i, j] == asked
        assert out["object_found"][i, j] == (asked and own in sure)
        if goal is not None:
            assert out["object_reached"][i, j] == (asked and goal in sure)
            best = max((value for value, label in found if label == goal), default=0.0)
            assert out["object_goal_score"][i, j] == pytest.approx(best)
    assert len(set(out["object_answer"].flat)) > 1


@pytest.mark.parametrize("goal", [None, 0, 1])
def test_detection_hit_by_a_loop(goal):
    inputs = {n: v for n, v in make_inputs().items() if not n.startswith("quad")}
    out = written(metrics.detection_hit(score=0.3, iou=0.3, goal=goal), inputs)
    for i, valid in enumerate(inputs["box_valid"].tolist()):
        j = valid.index(True)
        own, found = int(inputs["labels"][i, j]), answers_to(inputs, i, j, 0.3)
        sure = [label for value, label in found if value >= 0.3]
        asked = own != goal
        assert out["answer"][i] == (sure[0] if sure else -1)
        assert out["has_object"][i] == asked
        assert out["found"][i] == (asked and own in sure)
        if goal is not None:
            assert out["reached"][i] == (asked and goal in sure)
            assert out["goal_score"][i] == pytest.approx(
                max((value for value, label in found if label == goal), default=0.0)
            )


def test_at_score_zero_the_goal_still_needs_a_detection():
    inputs = make_inputs()
    inputs["detections"]["final"]["valid"][:] = False
    for stage, prefix in ((metrics.detection_hit, ""), (metrics.object_hit, "object_")):
        out = written(stage(score=0.0, goal=1), inputs)
        assert not out[f"{prefix}reached"].any()
        assert (out[f"{prefix}answer"] == -1).all()


@pytest.mark.parametrize("stage", [metrics.class_hit, metrics.detection_hit, metrics.object_hit])
def test_a_goal_that_is_no_class_is_refused(stage):
    for goal, said in ((-1, "at least 0, got -1"), ("", "the name or the number of a class, got ''")):
        with pytest.raises(ValueError, match=rf"\(goal\) must be {said}"):
            stage(goal=goal)
    with pytest.raises(ValueError, match=r"\(goal\) is 9, but the victim has \d classes"):
        stage(goal=9).written({}, {}, make_inputs())


def test_a_targeted_rate_counts_the_answers_of_the_goal():
    """Five rows: one is of the goal, one is not found without a patch, and of the others one reaches it."""
    table = {
        "image_id": np.arange(5),
        "goal": np.full(5, "stop"),
        "has_object/none": np.array([0, 1, 1, 1, 1], bool),
        "found/none": np.array([0, 0, 1, 1, 1], bool),
        "found/patch": np.array([0, 0, 0, 0, 1], bool),
        "reached/none": np.array([0, 1, 0, 0, 0], bool),
        "reached/patch": np.array([0, 1, 1, 0, 0], bool),
        "goal_score/none": np.array([0.9, 0.8, 0.1, 0.1, 0.0], np.float32),
        "goal_score/patch": np.array([0.9, 0.8, 0.7, 0.3, 0.2], np.float32),
    }
    rates = success(table)
    assert rates.rates["patch"].value == pytest.approx(1 / 3)
    assert (rates.clean.value, rates.clean.count) == (0.75, 4)
    assert rates.missed["patch"].value == 0.75
    assert rates.gain["patch"].value == pytest.approx((0.6 + 0.2 + 0.2) / 3)
    assert (rates.goal, rates.question) == ("stop", "answered 'stop' with the patch")
    assert rates.displaced == rates.gone == rates.drop == {}
    assert rates.to_json()["goal"] == "stop"
    assert rates.scalars()["success/gain/patch"] == rates.gain["patch"].value
    np.testing.assert_allclose(effects(table), [0, 0, 0.6, 0.2, 0.2], atol=1e-6)

    plain = success({name: column for name, column in table.items() if "reached" not in name})
    assert plain.rates["patch"].value == pytest.approx(2 / 3)
    assert (plain.goal, plain.question) == (None, "not found with the patch")
    assert not {"goal", "gain"} & set(plain.to_json())


def test_a_class_that_the_victim_lacks_is_named():
    values = {"logits": torch.zeros(2, 3), "target": torch.tensor([0, 3])}
    with pytest.raises(ValueError, match="class_hit: a target is 3, but the victim has 3 classes"):
        metrics.class_hit().apply({}, {}, values)
