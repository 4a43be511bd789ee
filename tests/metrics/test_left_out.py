"""Average precision counts the best 100 detections of an image and class; it says when that matters."""

import json

import pytest
import torch

from fpatch import metrics
from fpatch.cli.main import main
from fpatch.metrics._matching import COUNTED, coco_precision

OBJECT = torch.tensor([10.0, 10.0, 40.0, 40.0])


def crowded(num, label=0):
    """An image with one object; its detection is the worst of `num`, the others are far away."""
    boxes = torch.tensor([200.0, 200.0, 220.0, 220.0]).repeat(num, 1) + torch.arange(num)[:, None]
    boxes[-1] = OBJECT
    found = {"boxes": boxes, "scores": torch.linspace(0.9, 0.3, num), "labels": torch.full((num,), label)}
    return found, {"boxes": OBJECT[None], "labels": torch.tensor([label])}


@pytest.mark.parametrize("num", [COUNTED - 1, COUNTED, COUNTED + 1, COUNTED + 37])
def test_the_count_says_when_the_object_is_left_out(num):
    found, truth = crowded(num)
    result = coco_precision([found], [truth], [0.5])
    assert result["left_out"] == max(num - COUNTED, 0)
    assert (result["map"] == 0) == (num > COUNTED)  # torchmetrics does leave it out


def test_each_class_is_counted_apart():
    both = [
        torch.cat(pair) for pair in zip(*(crowded(80, label)[0].values() for label in (0, 1)), strict=True)
    ]
    found = dict(zip(("boxes", "scores", "labels"), both, strict=True))
    assert coco_precision([found], [crowded(80)[1]], [0.5])["left_out"] == 0


def values(num):
    found, truth = crowded(num)
    final = {n: v[None] for n, v in found.items()} | {"valid": torch.ones(1, num, dtype=torch.bool)}
    given = {
        "boxes": truth["boxes"][None],
        "labels": truth["labels"][None],
        "box_valid": torch.tensor([[True]]),
    }
    return {"detections": {"final": final}, **given}


def test_the_summary_has_the_count_only_when_it_matters():
    stage = metrics.mean_average_precision()
    config, summary = stage.config, stage.definition.summary
    assert summary is not None
    init, update, _, compute = summary
    assert compute(config, update(config, init(config), values(120)))["map/left_out"] == 20.0
    assert "map/left_out" not in compute(config, update(config, init(config), values(100)))


def test_the_function_warns():
    given = values(103)
    arguments = (given["detections"]["final"], given["boxes"], given["labels"], given["box_valid"])
    with pytest.warns(UserWarning, match="leaves out 3 detections: as in COCO, it counts the best 100"):
        assert metrics.average_precision(*arguments) == 0.0


@pytest.mark.parametrize(("num", "said"), [(100, False), (142, True)])
def test_the_table_of_score_says_it(tmp_path, capsys, num, said):
    found, truth = crowded(num)

    def entry(box):
        return {"image_id": 1, "category_id": 1, "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]}

    data = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "truth.json").write_text(json.dumps({**data, "annotations": [entry(truth["boxes"][0])]}))
    scores = found["scores"].tolist()
    answers = [entry(b) | {"score": s} for b, s in zip(found["boxes"], scores, strict=True)]
    (tmp_path / "found.json").write_text(json.dumps(answers))
    assert main(["score", str(tmp_path / "truth.json"), str(tmp_path / "found.json")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "AP leaves out 42 detections: as in COCO, it counts the best 100 of an image and class" in text
    ) is said
