"""Entries of detections that a stage needs are checked when a pipeline is made, or else at the first call."""

import pytest
import torch
from torch import nn

from fpatch import infer, losses, metrics, node, pipeline

METRICS = [metrics.detection_hit, metrics.object_hit, metrics.mean_average_precision]
LOSSES = [losses.vanish, losses.relabel, losses.latency, lambda: losses.hallucinate(0)]


def victim():
    return infer.detector(nn.Conv2d(3, 1, 1).eval())


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_without_suppression_names_the_node_to_add(metric):
    with pytest.raises(
        ValueError,
        match=r"node 'hit' \(metrics\.\w+\) needs the entry 'final' of 'detections', but "
        r"'victim' leaves only 'dense'; add the node infer.suppress\(\) after the victim",
    ):
        pipeline({"victim": victim(), "hit": node(metric(), phases="eval")})


def test_a_metric_above_suppression_is_told_to_move():
    with pytest.raises(ValueError, match="move 'hit' below 'suppress'"):
        pipeline({"victim": victim(), "hit": metrics.object_hit(), "suppress": infer.suppress()})


def test_suppression_in_other_phases_is_named():
    with pytest.raises(ValueError, match="'suppress' makes it, in other phases; add 'validation' to them"):
        pipeline(
            {
                "victim": victim(),
                "suppress": node(infer.suppress(), phases="test"),
                "hit": node(metrics.object_hit(), phases="eval"),
            }
        )


def test_a_metric_that_training_skips_needs_nothing_there():
    nodes = {"suppress": node(infer.suppress(), phases="eval"), "hit": metrics.object_hit()}
    assert pipeline({"victim": victim(), **nodes}).at("train")


def test_every_victim_of_an_ensemble_is_checked():
    with pytest.raises(ValueError, match="'victims/0/victim' leaves only 'dense'"):
        pipeline({"victims": infer.ensemble([victim()], {"hit": metrics.object_hit()})})


def test_a_stage_of_the_users_may_write_any_entry():
    def own(values, patch_params):
        return {"detections": values["detections"]}

    nodes = {"own": node(own, reads=["detections"], writes=["detections"]), "hit": metrics.object_hit()}
    assert pipeline({"victim": victim(), **nodes})


def test_a_part_of_a_pipeline_takes_detections_from_its_batch():
    whole = pipeline({"victim": victim(), "suppress": infer.suppress(), "hit": metrics.object_hit()})
    assert whole.since("hit").required() == ("detections", "boxes", "labels", "box_valid")


VALUES = {
    "boxes": torch.zeros(1, 1, 4),
    "labels": torch.zeros(1, 1, dtype=torch.int64),
    "box_valid": torch.ones(1, 1, dtype=torch.bool),
    "image": torch.zeros(1, 3, 8, 8),
    "quads": torch.zeros(1, 1, 4, 2),
    "quad_valid": torch.ones(1, 1, dtype=torch.bool),
}


@pytest.mark.parametrize("metric", METRICS)
def test_the_first_call_names_the_node_too(metric):
    stage = metric()
    summary = stage.definition.summary
    values = VALUES | {"detections": {"dense": {}}}
    with pytest.raises(ValueError, match=r"no entry 'final', only 'dense'; add the node infer\.suppress"):
        (stage.apply if summary is None else gather(stage))({}, {}, values)


def gather(stage):
    config, (init, update, _, _) = stage.config, stage.definition.summary
    return lambda params, sample, values: update(config, init(config), values)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_on_final_detections_alone_is_told_what_to_do(loss):
    values = VALUES | {"detections": {"final": {}}}
    with pytest.raises(ValueError, match=r"no entry 'dense', only 'final'; let the victim answer all boxes"):
        loss().apply({}, {}, values)


def test_an_entry_without_one_of_its_parts_is_named():
    final = {"boxes": torch.zeros(1, 1, 4), "scores": torch.zeros(1, 1), "labels": torch.zeros(1, 1)}
    with pytest.raises(ValueError, match=r"the entry 'final' must have boxes, .* but lacks 'valid'"):
        metrics.object_hit().apply({}, {}, VALUES | {"detections": {"final": final}})
