"""A patch that is drawn at one of several objects, and a metric that asks about another one."""

from dataclasses import replace

import pytest

from fpatch import implant, metrics, node
from fpatch.demo.tiny import tiny_study
from fpatch.study.elsewhere import find_elsewhere


def detect(params, key, batch):
    return {"detections": {}}, {}


def make(folder, boxes, more=()):
    """The tiny study with a detector, and further rows of placements and objects."""
    study = tiny_study(folder)
    for name, line in more:
        with (folder / name).open("a") as file:
            file.write(f"\n{line}")
    parts = {
        "implant": implant.warp(boxes=boxes),
        "detector": node(detect, reads=["image"], writes=["detections"]),
        "hit": node(metrics.detection_hit(), phases="eval"),
    }
    return replace(study, pipeline=study.pipeline.without("victim", "misclassify", "hit") | parts)


PLACE, OBJECT = ("placements.csv", "4.png,tag,test,1,1,5,5"), ("objects.csv", "4.png,lamp,test,0,0,6,6")


@pytest.mark.parametrize(
    ("boxes", "more", "count"),
    [
        ("one", (PLACE, OBJECT), 1),
        ("all", (PLACE, OBJECT), 0),
        ("one", (PLACE,), 0),  # the other lies at no object
        ("one", (OBJECT,), 0),  # the patch lies at the one that it fits
        ("one", (), 0),
    ],
)
def test_a_patch_that_may_lie_at_another_object_is_said(tmp_path, boxes, more, count):
    study = make(tmp_path, boxes, more)
    found = list(find_elsewhere(study, study.data.open()))
    assert len(found) == count
    for where, what in found:
        assert where == "hit"
        assert "in 1 of 4 test images the patch may lie at another object" in what
