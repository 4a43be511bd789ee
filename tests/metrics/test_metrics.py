"""Metrics that gather rows, per object, and of files: against torchmetrics and pycocotools."""

import contextlib
import io
import itertools
import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
import torch
import torchmetrics
from cases import make_inputs
from laws import assert_equal, clone
from study_fixture import OBJECT_METRICS, make_study, read_records
from torch import Tensor
from torchmetrics import classification
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.wrappers import ClasswiseWrapper

from fpatch import build, metrics, node, pipeline, random
from fpatch.cli.main import main
from fpatch.core.tree import take_rows
from fpatch.evaluation.conditions import make_conditions
from fpatch.evaluation.evaluation import evaluate
from fpatch.evaluation.rates import success
from fpatch.evaluation.summaries import compute_states, init_states, merge_states, update_states
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Stage, Summary
from fpatch.metrics._matching import answered_scores
from fpatch.study.config import load_study
from fpatch.study.setup import set_up

COCO_KEYS = ("map", "map_50", "map_75")


def make_detections(num_rows: int, seed: int = 0, spread: float = 80.0, places: int = 6) -> dict[str, Any]:
    """Objects of three classes, and detections near them, near nothing, doubled, and of the wrong class."""
    generator = torch.Generator().manual_seed(seed)
    corner = spread * torch.rand(num_rows, places, 2, generator=generator)
    size = 10 + 30 * torch.rand(num_rows, places, 2, generator=generator)
    boxes = torch.cat([corner, corner + size], dim=-1)
    labels = torch.randint(0, 3, (num_rows, places), generator=generator)
    moved = torch.cat([boxes, boxes, 100 - boxes[..., [2, 3, 0, 1]]], dim=1)
    moved = moved + 3 * torch.randn(*moved.shape[:2], 2, generator=generator).repeat(1, 1, 2)
    wrong = torch.rand(num_rows, 3 * places, generator=generator) < 0.2
    final = {
        "boxes": moved,
        "scores": torch.rand(num_rows, 3 * places, generator=generator),
        "labels": torch.where(wrong, (labels.repeat(1, 3) + 1) % 3, labels.repeat(1, 3)),
        "valid": torch.rand(num_rows, 3 * places, generator=generator) < 0.7,
    }
    return {
        "image_id": torch.arange(num_rows),
        "draw": torch.zeros(num_rows, dtype=torch.int64),
        "boxes": boxes,
        "labels": labels,
        "box_valid": torch.rand(num_rows, places, generator=generator) < 0.7,
        "detections": {"final": final},
    }


def summary_of(stage: Stage) -> Summary:
    summary = stage.definition.summary
    assert summary is not None
    return summary


def unpad(values: dict[str, Any]) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """As a user of torchmetrics would write it."""
    final = values["detections"]["final"]
    found = [
        {n: final[n][i][final["valid"][i]] for n in ("boxes", "scores", "labels")}
        for i in range(len(values["boxes"]))
    ]
    truth = [
        {n: values[n][i][values["box_valid"][i]] for n in ("boxes", "labels")} for i in range(len(found))
    ]
    return found, truth


def gather(p: Pipeline, values, sizes: list[int]) -> dict[str, float]:
    """The numbers of shards, merged in their order."""
    states, start = init_states(p), 0
    for size in sizes:
        rows = take_rows(values, slice(start, start + size))
        _, seen, _ = p.observe({}, {}, rows, want=())
        states = merge_states(p, states, update_states(p, init_states(p), seen))
        start += size
    return compute_states(p, states)


# Mean average precision


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 1, 6], [0, 12, 0]])
def test_mean_average_precision_equals_a_plain_run_however_it_is_cut(sizes):
    values = make_detections(12)
    plain = MeanAveragePrecision(class_metrics=True, backend="pycocotools")
    plain.update(*unpad(values))
    expected = plain.compute()
    found = gather(pipeline({"ap": metrics.mean_average_precision()}), values, sizes)
    assert {n: found[f"ap/{n}"] for n in COCO_KEYS} == pytest.approx(
        {n: float(expected[n]) for n in COCO_KEYS}, abs=1e-6
    )
    assert 0.03 < found["ap/map"] < found["ap/map_50"] < 0.9
    for label, value in zip(expected["classes"].tolist(), expected["map_per_class"].tolist(), strict=True):
        assert found[f"ap/map/{label}"] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("score", "iou"), [(0.5, 0.5), (0.2, 0.7), (0.9, 0.3)])
def test_recall_at_a_score_equals_pycocotools(score, iou, tmp_path):
    values = make_detections(12, seed=1, spread=20.0)  # objects lie over each other
    found, truth = unpad(values)
    files = write_coco(tmp_path, found, truth)
    evaluation = run_pycocotools(*files, iou)
    hits, total = recall_of(evaluation, score)
    result = gather(pipeline({"ap": metrics.mean_average_precision(score, iou)}), values, [4, 8])
    assert result["ap/recall"] == pytest.approx(hits / total)
    assert 0 < hits < total
    labels = torch.cat([t["labels"] for t in truth])
    by_class = sum(result[f"ap/recall/{c}"] * int((labels == c).sum()) for c in range(3))
    assert by_class == pytest.approx(hits)


def test_the_function_for_one_iou_equals_a_plain_run():
    values = make_detections(9, seed=2)
    final = values["detections"]["final"]
    for iou in (0.5, 0.8):
        plain = MeanAveragePrecision(iou_thresholds=[iou], backend="pycocotools")
        plain.update(*unpad(values))
        found = metrics.average_precision(final, values["boxes"], values["labels"], values["box_valid"], iou)
        assert found == pytest.approx(float(plain.compute()["map"]), abs=1e-6)


@pytest.mark.parametrize(("name", "value"), [("boxes", math.nan), ("scores", math.inf), ("scores", math.nan)])
def test_of_detections_that_are_not_finite_there_is_no_precision(name, value):
    values = make_detections(4)
    final = values["detections"]["final"]
    assert not final["valid"].all()
    final[name][~final["valid"]] = value  # padding, which does not count
    truth = values["boxes"], values["labels"], values["box_valid"]
    assert math.isfinite(metrics.average_precision(final, *truth))
    final[name][2, int(final["valid"][2].nonzero()[0])] = value
    assert math.isnan(metrics.average_precision(final, *truth))
    p = pipeline({"precision": metrics.mean_average_precision()})
    numbers = gather(p, values, [4])
    assert "precision/recall/1" in numbers
    assert all(map(math.isnan, numbers.values()))


def test_without_objects_or_photographs_there_is_no_precision():
    p = pipeline({"ap": metrics.mean_average_precision()})
    assert all(map(math.isnan, compute_states(p, init_states(p)).values()))
    values = make_detections(3)
    values["box_valid"] = torch.zeros_like(values["box_valid"])
    found = gather(p, values, [3])
    assert all(math.isnan(found[f"ap/{n}"]) for n in (*COCO_KEYS, "recall"))
    values["detections"]["final"]["valid"] = torch.zeros_like(values["detections"]["final"]["valid"])
    assert math.isnan(gather(p, values, [3])["ap/map"])
    assert gather(p, make_detections(3) | {"detections": values["detections"]}, [3])["ap/map"] == 0.0


def test_one_detection_answers_one_object_and_the_one_it_fits_best():
    truth = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]),
        "labels": torch.tensor([0, 0, 1]),
    }
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 8], [50, 50, 60, 60]]),
        "scores": torch.tensor([0.6, 0.9, 0.8]),
        "labels": torch.tensor([0, 0, 0]),
    }
    assert answered_scores(found, truth, 0.5).tolist() == [
        pytest.approx(0.6), pytest.approx(0.9), -math.inf
    ]  # fmt: skip
    crowd = truth | {"iscrowd": torch.tensor([0, 1, 0])}
    answered = answered_scores(found, crowd, 0.5)
    assert answered[0] == pytest.approx(0.9)
    assert answered[1].isnan()


def test_by_name():
    stage = metrics.by_name("detection", score=0.3)
    assert stage == metrics.mean_average_precision(score=0.3)
    with pytest.raises(ValueError, match="no evaluation 'detections'; did you mean 'detection'"):
        metrics.by_name("detections")
    with pytest.raises(ValueError, match=r"mean_average_precision\(iou\) must be between 0 and 1, got 2"):
        metrics.mean_average_precision(iou=2)


# Any metric of torchmetrics


def make_answers(num_rows: int) -> dict[str, Tensor]:
    logits = random.normal(random.key(3), (num_rows, 4))
    target = torch.where(torch.arange(num_rows) % 3 == 0, torch.arange(num_rows) % 4, logits.argmax(-1))
    return {"logits": logits, "target": target}


def wired(metric, **settings) -> Pipeline:
    return pipeline({"m": node(metrics.torchmetric(metric, **settings), reads=["logits", "target"])})


METRICS = {
    "sums": lambda: classification.MulticlassAccuracy(4, average="micro"),
    "vector": lambda: classification.MulticlassRecall(4, average=None),
    "lists": lambda: classification.MulticlassAUROC(4),
    "lists of two": lambda: classification.MulticlassCalibrationError(4),
    "task": lambda: torchmetrics.Accuracy(task="multiclass", num_classes=4, top_k=2),
    "dict": lambda: ClasswiseWrapper(classification.MulticlassF1Score(4, average=None)),
    "collection": lambda: torchmetrics.MetricCollection(
        [
            classification.MulticlassPrecision(4),
            classification.MulticlassRecall(4),  # shares its state with the first
            classification.MulticlassAUROC(4),
        ],
        prefix="a_",
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_torchmetric_equals_a_plain_run_however_it_is_cut(name):
    values, metric = make_answers(20), METRICS[name]()
    inside = [m for m in metric.modules() if isinstance(m, torchmetrics.Metric)]
    before = [(m.update_count, clone(m.metric_state)) for m in inside]
    plain = METRICS[name]()
    plain.update(values["logits"], values["target"])
    expected = np.concatenate([np.atleast_1d(v) for v in optree.tree_leaves(plain.compute())])
    for sizes in [20], [7, 13], [1] * 20:
        found = gather(wired(metric), values, sizes)
        np.testing.assert_allclose(sorted(found.values()), sorted(expected), atol=1e-6)
    assert len(set(expected.round(6))) >= (1 if len(expected) == 1 else 2)
    assert [m.update_count for m in inside] == [count for count, _ in before]
    assert_equal([m.metric_state for m in inside], [state for _, state in before])


def test_numbers_are_named():
    assert list(gather(wired(METRICS["sums"]()), make_answers(9), [9])) == ["m/MulticlassAccuracy"]
    assert list(gather(wired(METRICS["vector"]()), make_answers(9), [9])) == [
        f"m/MulticlassRecall/{i}" for i in range(4)
    ]
    names = {"m/a_MulticlassPrecision", "m/a_MulticlassRecall", "m/a_MulticlassAUROC"}
    assert set(gather(wired(METRICS["collection"]()), make_answers(9), [9])) == names


def test_a_batch_alone_and_two_phases_with_states_of_their_own():
    values = make_answers(12)
    stage = metrics.torchmetric(METRICS["sums"]())
    init, update, _, compute = summary_of(stage)
    config = stage.config

    def read(rows):
        return {"preds": values["logits"][rows], "target": values["target"][rows]}

    train = update(config, init(config), read(slice(0, 4)))
    test = update(config, init(config), read(slice(4, 12)))
    alone = [compute(config, update(config, init(config), read(s))) for s in (slice(0, 4), slice(4, 12))]
    assert [compute(config, train), compute(config, test)] == alone
    right = (values["logits"].argmax(-1) == values["target"]).float()
    assert alone[0]["MulticlassAccuracy"] == pytest.approx(float(right[:4].mean()))
    both = compute(config, update(config, train, read(slice(4, 12))))
    assert both["MulticlassAccuracy"] == pytest.approx(float(right.mean()))
    assert [compute(config, train), compute(config, test)] == alone  # nothing has moved since


def test_a_metric_that_has_counted_before_starts_afresh():
    values, used = make_answers(8), METRICS["sums"]()
    used.update(values["logits"], (values["target"] + 1) % 4)
    fresh = gather(wired(METRICS["sums"]()), values, [8])
    assert gather(wired(used), values, [8]) == fresh
    assert used.update_count == 1


def test_a_metric_that_adds_in_place_does_not_change_an_older_state():
    stage = metrics.torchmetric(torchmetrics.SumMetric(), inputs=("value",))
    init, update, merge, compute = summary_of(stage)
    states = [init(stage.config)]
    for value in (1.0, 2.0, 4.0):
        states.append(update(stage.config, states[-1], {"value": torch.tensor([value])}))
    assert [compute(stage.config, state)["SumMetric"] for state in states] == [0.0, 1.0, 3.0, 7.0]
    assert compute(stage.config, merge(stage.config, states[1], states[3])) == {"SumMetric": 8.0}


def test_a_metric_by_name():
    made = metrics.torchmetrics(name="MulticlassAccuracy", num_classes=4, average="micro")
    values = make_answers(9)
    assert gather(wired(made), values, [9]) == gather(wired(METRICS["sums"]()), values, [9])
    with pytest.raises(ValueError, match=r"no metric 'MulticlasAccuracy'; did you mean 'MulticlassAccuracy'"):
        _ = metrics.torchmetrics(name="MulticlasAccuracy").value
    with pytest.raises(ValueError, match=r"torchmetric\(metric\) must be a torchmetrics.Metric"):
        metrics.torchmetric(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"update takes preds, target, but is given logits"):
        gather(pipeline({"m": metrics.torchmetric(made, inputs=("logits",))}), values, [9])
    with pytest.raises(ValueError, match="must name at least one"):
        metrics.torchmetric(made, inputs=())


def test_what_cannot_be_merged_is_said():
    metric = torchmetrics.PearsonCorrCoef()
    p = pipeline({"m": node(metrics.torchmetric(metric), reads=["x", "y"])})
    values = {"x": torch.rand(6), "y": torch.rand(6), "image_id": torch.arange(6)}
    config = p["m"].stage.config
    init, update, merge, compute = summary_of(p["m"].stage)
    state = init(config)
    for rows in (slice(0, 2), slice(2, 6)):
        state = update(config, state, {"preds": values["x"][rows], "target": values["y"][rows]})
    expected = np.corrcoef(values["x"], values["y"])[0, 1]
    assert compute(config, state)["PearsonCorrCoef"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match=r"state 'mean_x' of PearsonCorrCoef cannot be merged"):
        merge(config, state, state)


def test_only_a_metric_may_gather():
    from fpatch.graph.stage import define, deterministic

    d = metrics.mean_average_precision
    for reads, role in ((("x",), "stage"), (("*",), "metric")):
        with pytest.raises(ValueError, match="a summary belongs to a metric with named reads"):
            define(
                "gatherer", d.config, deterministic, d.apply, reads=reads, writes=(), role=role,
                summary=d.summary,
            )  # fmt: skip


def test_a_gathering_node_reads_what_stands_there_at_its_place():
    p = pipeline(
        {
            "m": node(metrics.torchmetric(METRICS["sums"]()), reads=["logits", "target"]),
            "worse": node(
                lambda _, key, b: ({**b, "logits": -b["logits"]}, {}), reads=["logits"], writes=["logits"]
            ),
        }
    )
    values = make_answers(9) | {"image_id": torch.arange(9), "draw": torch.zeros(9, dtype=torch.int64)}
    sample = p.sample(random.key(0), values)
    out, seen, _ = p.observe({}, sample, values, want=("logits",))
    assert torch.equal(out["logits"], -values["logits"])
    assert torch.equal(seen["m"]["preds"], values["logits"])


# In an evaluation


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A pipeline with both kinds of metric, parameters, and photographs."""
    path = make_study(tmp_path_factory.mktemp("metrics"))
    path.write_text(path.read_text() + OBJECT_METRICS)
    with (path.parent / "objects.csv").open("a") as file:  # some photographs have two, the others padding
        file.writelines(f"photograph-{i:02d}.png,vehicle,test,3,4,20,19\n" for i in (8, 10))
    study = load_study(path)
    made = set_up(study)
    return study.pipeline.at("test"), made.initial.params, made.dataset.split("test")


@pytest.mark.parametrize("block", [3, 4, 5])
def test_padded_rows_are_never_counted_and_every_condition_has_its_own_state(parts, block):
    pipe, params, dataset = parts
    kept = ("detections", "boxes", "labels", "box_valid")
    result = evaluate(pipe, params, dataset, random.key(3), block=block, num_draws=2, keep=kept)
    assert set(result.summaries) == set(result.conditions)
    for condition, values in result.kept.items():
        counts = torch.cat(result.states[condition]["precision"]["truth/count"])
        assert counts.tolist() == values["box_valid"].sum(1).tolist()
        assert len(counts) == 8
        plain = MeanAveragePrecision(backend="pycocotools")
        plain.update(*unpad(values))
        assert result.summaries[condition]["precision/map"] == pytest.approx(float(plain.compute()["map"]))
    assert result.summaries["none"]["precision/map_50"] > result.summaries["patch"]["precision/map_50"] - 1
    assert len({s["precision/map"] for s in result.summaries.values()}) > 1


def test_two_shards_are_the_whole(parts):
    pipe, params, dataset = parts
    ids = dataset.image_ids
    whole = evaluate(pipe, params, dataset, random.key(3), block=2)
    conditions = make_conditions(pipe, params, random.fold_in(random.key(3), "control"))
    shards = [
        evaluate(pipe, params, dataset.select(i), random.key(3), block=2, conditions=conditions)
        for i in (ids[:2], ids[2:])
    ]
    for condition in whole.conditions:
        merged = merge_states(pipe, *(shard.states[condition] for shard in shards))
        assert compute_states(pipe, merged, dataset.class_names) == whole.summaries[condition]


# Objects


def test_object_hit_by_hand():
    values = make_inputs()
    out = metrics.object_hit(score=0.4, iou=0.3).apply({}, {}, values)
    final = values["detections"]["final"]
    for i, j in itertools.product(range(3), range(2)):
        best = 0.0
        for k in range(6):
            if final["valid"][i, k] and final["labels"][i, k] == values["labels"][i, j]:
                a, b = values["boxes"][i, j].double(), final["boxes"][i, k].double()
                low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
                both = float((high - low).clamp(min=0).prod())
                union = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - both
                if both / union >= 0.3:
                    best = max(best, float(final["scores"][i, k]))
        valid = bool(values["box_valid"][i, j])
        assert out["object_score"][i, j] == pytest.approx(best if valid else 0.0)
        assert bool(out["object_found"][i, j]) == (valid and best >= 0.4)
    assert torch.equal(out["object_valid"], values["box_valid"])
    assert torch.equal(out["object_label"], values["labels"])
    assert 0 < int(out["object_found"].sum()) < int(values["box_valid"].sum())


def test_at_score_zero_an_object_still_needs_a_detection():
    values = make_detections(4)
    values["detections"]["final"]["valid"][:] = False
    out = metrics.object_hit(score=0.0).apply({}, {}, values)
    assert not out["object_found"].any()
    assert not metrics.detection_hit(score=0.0).apply({}, {}, values)["found"].any()
    with pytest.raises(ValueError, match=r"object_hit\(score\) must be between 0 and 1, got 1.5"):
        metrics.object_hit(score=1.5)


def test_no_detections_at_all_is_no_crash():
    values = make_detections(2)
    values["detections"]["final"] = {n: v[:, :1] for n, v in values["detections"]["final"].items()}
    out = metrics.object_hit().apply({}, {}, values)
    assert out["object_found"].shape == (2, 6)


def test_the_table_of_objects(parts):
    pipe, params, dataset = parts
    result = evaluate(
        pipe,
        params,
        dataset,
        random.key(3),
        block=3,
        num_draws=2,
        keep=("box_valid", "object_score", "labels"),
    )
    objects, kept = result.objects, result.kept
    valid = kept["none"]["box_valid"].numpy()
    rows, places = valid.nonzero()
    assert 0 < len(rows) < valid.size
    assert objects["image_id"].tolist() == result.table["image_id"][rows].tolist()
    assert objects["draw"].tolist() == result.table["draw"][rows].tolist()
    assert objects["object"].tolist() == places.tolist()
    assert objects["label"].tolist() == kept["none"]["labels"].numpy()[rows, places].tolist()
    for c in result.conditions:
        assert objects[f"score/{c}"].tolist() == kept[c]["object_score"].numpy()[rows, places].tolist()
        assert objects[f"found/{c}"].dtype == np.bool_
        assert (objects[f"found/{c}"] == (objects[f"score/{c}"] >= 0.5)).all()
    assert np.array_equal(objects["score/delta/flat"], objects["score/patch"] - objects["score/flat"])
    assert not any(name.startswith("object_") for name in (*objects, *result.table))
    rates = success(objects)
    assert rates.clean.count == len(rows)
    assert rates.clean.photographs == 4


def test_without_such_a_metric_there_is_no_table_of_objects(parts):
    pipe, params, dataset = parts
    without = pipe.without("objects", "precision")
    result = evaluate(without, params, dataset, random.key(3), block=3, keep=("box_valid",))
    assert result.objects == {}
    assert all(numbers == {} for numbers in result.summaries.values())


def test_a_run_keeps_objects_and_summaries_and_replays(tmp_path, capsys):
    path = make_study(tmp_path)
    path.write_text(path.read_text() + OBJECT_METRICS)
    assert main(["train", str(path)]) == 0
    (folder,) = (tmp_path / "runs").glob("*-tiny")
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "test, checkpoint best (step 6): every object" in said
    assert "for an interval of +-5 points: about" in said
    assert "missed" in said and "no patch" in said  # noqa: PT018
    summary = json.loads((folder / "tables/test.summary.json").read_text())
    assert summary["objects"]["missed"]["none"]["count"] == summary["objects"]["clean"]["count"] == 8
    names = {"precision/map", "precision/map_50", "precision/recall/vehicle"}
    assert set(summary["summaries"]["patch"]) >= names
    assert set(summary["missed"]) == set(summary["summaries"])
    from fpatch.runs.folder import Run

    objects = Run(folder).load_objects("test")
    assert len(objects["found/patch"]) == 8
    lines = (folder / "tables/test.objects.csv").read_text().splitlines()
    assert len(lines) == 9
    assert lines[0].startswith('"image_id","draw","object","label","answer/patch"')
    assert main(["replay", str(folder), "--verify"]) == 0
    names = {n for r in read_records(folder) if r["kind"] == "scalars" for n in r["values"]}
    assert names >= {
        "test/precision/map_50/patch",
        "test/objects/success/missed/none",
        "test/success/drop/patch",
    }
    assert "validation/precision/map/noise" in names


def test_the_sections_of_the_documentation_are_a_pipeline():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "kinds-of-metrics.md").read_text()
    blocks = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    made = build(blocks[0]["pipeline"]).at("test")
    assert made.summaries == ("precision", "accuracy")
    assert made["accuracy"].reads == {"preds": "logits", "target": "target"}
    alone = made.without("objects", "precision")
    answers = {"logits": torch.eye(2), "target": torch.tensor([0, 1])}
    assert gather(alone, answers, [2]) == {"accuracy/MulticlassAccuracy": 1.0}
    with pytest.raises(ValueError, match="number of classes") as error:
        gather(alone, make_answers(9), [9])
    assert "in node 'accuracy'" in error.value.__notes__[0]
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "measuring.md").read_text()
    targeted, controls = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
    named = build(targeted["pipeline"]).with_classes(targeted["data"]["classes"])
    assert (named["misclassify"].stage.config.target, named["hit"].stage.config.goal) == (1, 1)
    assert controls["evaluate"]["controls"]


def test_doctor_and_describe_know_metrics_that_write_nothing(tmp_path, capsys):
    path = make_study(tmp_path)
    path.write_text(path.read_text() + OBJECT_METRICS)
    assert main(["describe", str(path)]) == 0
    assert "box_valid -> nothing  [test, validation]" in capsys.readouterr().out
    assert main(["doctor", str(path)]) == 0


# How many photographs


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("width", [0.04, 0.1, 0.35])
def test_num_photographs_against_a_search(rate, width):
    def is_narrow(n: int) -> bool:
        z = 1.959964
        half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
        return 2 * half <= width

    expected = next(n for n in itertools.count(5) if is_narrow(n))
    assert metrics.num_photographs(rate, width) == expected


def test_num_photographs_of_a_rate_that_was_measured():
    needed = metrics.num_photographs(0.25, 0.2)
    needed += -needed % 4
    rate = metrics.wilson(np.arange(needed) % 4 == 0, np.arange(needed))
    assert 0.19 < rate.high - rate.low <= 0.2
    with pytest.raises(ValueError, match=r"num_photographs\(width\) must be between 1e-06 and 1, got 0"):
        metrics.num_photographs(0.5, 0)
    with pytest.raises(ValueError, match=r"num_photographs\(rate\) must be"):
        metrics.num_photographs(float("nan"), 0.1)


# Files


CLASSES = {7: "car", 3: "bus", 11: "tree", 5: "lamp"}


def write_coco(folder, found, truth, crowd=()):
    """Ground truth and detections as files; the last category has no object."""
    ids = list(CLASSES)

    def to_xywh(box):
        x0, y0, x1, y1 = box.double().tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    annotations, results = [], []
    for i, (f, t) in enumerate(zip(found, truth, strict=True)):
        for box, label in zip(t["boxes"], t["labels"].tolist(), strict=True):
            x, y, w, h = to_xywh(box)
            number = len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": 100 + i, "category_id": ids[label], "bbox": [x, y, w, h],
                 "area": w * h, "iscrowd": int(number in crowd)}
            )  # fmt: skip
        for box, label, score in zip(f["boxes"], f["labels"].tolist(), f["scores"].tolist(), strict=True):
            results.append(
                {"image_id": 100 + i, "category_id": ids[label], "bbox": to_xywh(box), "score": score}
            )
    data = {
        "images": [
            {"id": 100 + i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(len(found))
        ],
        "categories": [{"id": i, "name": name} for i, name in CLASSES.items()],
        "annotations": annotations,
    }
    paths = folder / "truth.json", folder / "detections.json"
    for path, content in zip(paths, (data, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def run_pycocotools(truth, detections, iou=None):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(detections)), "bbox")
        if iou is not None:
            evaluation.params.iouThrs = np.array([iou])
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def recall_of(evaluation, score, category=None) -> tuple[int, int]:
    """Objects that a detection of at least the score is matched to, and all objects, of the whole area."""
    hits = total = 0
    for entry in evaluation.evalImgs:
        if entry is None or entry["aRng"] != evaluation.params.areaRng[0]:
            continue
        if category in (None, entry["category_id"]):
            total += int((np.array(entry["gtIgnore"]) == 0).sum())
            matched = (entry["dtMatches"][0] > 0) & ~entry["dtIgnore"][0].astype(bool)
            hits += int((matched & (np.array(entry["dtScores"]) >= score)).sum())
    return hits, total


def precision_of(evaluation, category=None) -> float:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    if category is not None:
        precision = precision[:, :, evaluation.params.catIds.index(category)]
    return float(precision[precision > -1].mean())


@pytest.mark.parametrize(("iou", "score"), [(0.5, 0.4), (0.75, 0.1)])
def test_scores_of_files_equal_pycocotools(tmp_path, iou, score):
    found, truth = unpad(make_detections(14, seed=4, spread=30.0))
    found[3] = {n: v[:0] for n, v in found[3].items()}
    truth[5] = {n: v[:0] for n, v in truth[5].items()}
    files = write_coco(tmp_path, found, truth, crowd=(2, 9, 17))
    result = metrics.score_detections(*files, iou=iou, score=score)
    evaluation = run_pycocotools(*files, iou)
    hits, total = recall_of(evaluation, score)
    assert (round(result.recall.value * result.recall.count), result.recall.count) == (hits, total)
    assert result.precision == pytest.approx(precision_of(evaluation), abs=1e-6)
    assert result.coco == pytest.approx(precision_of(run_pycocotools(*files)), abs=1e-6)
    assert (result.images, result.silent) == (14, 1)
    assert list(result.classes) == list(CLASSES.values())
    for i, name in list(CLASSES.items())[:3]:
        entry, (hits, total) = result.classes[name], recall_of(evaluation, score, i)
        assert (round(entry.recall.value * entry.recall.count), entry.objects) == (hits, total)
        assert entry.precision == pytest.approx(precision_of(evaluation, i), abs=1e-6)
    assert sum(e.detections for e in result.classes.values()) == sum(len(f["scores"]) for f in found)
    assert (result.classes["lamp"].objects, math.isnan(result.classes["lamp"].precision)) == (0, True)
    photographs = sum(bool(len(t["labels"])) for t in truth)
    assert photographs - 3 <= result.recall.photographs <= photographs
    assert result.recall.low < result.recall.value < result.recall.high


@pytest.mark.parametrize("seed", range(4))
def test_equal_scores_are_ordered_as_by_pycocotools(tmp_path, seed):
    """It sorts the images by id, in whatever order the file lists them, as COCO's own does."""
    found, truth = unpad(make_detections(9, seed=seed, spread=30.0))
    found = [f | {"scores": (f["scores"] * 4).round() / 4} for f in found]
    files = write_coco(tmp_path, found, truth)
    data = json.loads(files[0].read_text())
    data["images"] = data["images"][::-1]
    files[0].write_text(json.dumps(data))
    result = metrics.score_detections(*files)
    assert result.precision == pytest.approx(precision_of(run_pycocotools(*files, 0.5)), abs=1e-6)
    assert result.coco == pytest.approx(precision_of(run_pycocotools(*files)), abs=1e-6)


def test_fpatch_score(tmp_path, capsys):
    files = write_coco(tmp_path, *unpad(make_detections(6, seed=5)))
    assert main(["score", *map(str, files), "--iou", "0.5", "--score", "0.4"]) == 0
    said = capsys.readouterr().out
    result = metrics.score_detections(*files, 0.5, 0.4)
    for text in ("car", "lamp", f"{100 * result.recall.value:.1f}", f"{result.precision:.3f}", "6 images"):
        assert text in said
    assert main(["score", str(files[0]), str(tmp_path / "none.json")]) == 2
    assert "none.json: no such file" in capsys.readouterr().err


def change_entry(number, **values):
    def change(truth, detections):
        detections[number] |= values

    return change


def drop(section, name):
    def change(truth, detections):
        del (truth[section][0] if section else detections[0])[name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_entry(2, image_id=7), r"\[2\].image_id is 7, an image that the ground truth does not have"),
        (
            change_entry(1, category_id=1),
            r"\[1\].category_id is 1, which .* not have; known: 7 \(car\), 3 \(bus\)",
        ),
        (change_entry(0, bbox=[1, 2, 3]), r"\[0\] must have a bbox \[x, y, width, height\] and a score"),
        (change_entry(0, bbox=[1, 2, -3, 4]), r"\[0\] must have a bbox"),
        (change_entry(0, score="high"), r"finite numbers, got .* and 'high'"),
        (change_entry(0, score=math.nan), r"finite numbers, got .* and nan"),
        (change_entry(0, bbox=[1e308, 0, 1e308, 2]), r"finite numbers, got .*1e\+308"),
        (drop("", "score"), r"detections.json: \[0\] lacks 'score'"),
        (drop("annotations", "bbox"), r"truth.json: annotations\[0\] lacks 'bbox'"),
        (drop("images", "id"), r"images\[0\] lacks 'id'"),
        (lambda t, d: t.pop("categories"), r"the list 'categories' is required"),
        (lambda t, d: t["images"].append(t["images"][0]), r"images has 100 twice; ids must differ"),
        (lambda t, d: t["categories"].append({"id": 99, "name": "car"}), r"by name\) has 'car' twice"),
        (lambda t, d: t["images"].pop(0), r"annotations\[0\].image_id is 100, an image that"),
        (lambda t, d: t.update(images=[], annotations=[]), r"there are no images"),
        (lambda t, d: d.append(5), r"must be an object, got 5"),
    ],
)
def test_wrong_files_are_refused(tmp_path, change, message):
    files = write_coco(tmp_path, *unpad(make_detections(3, seed=6)))
    contents = [json.loads(path.read_text()) for path in files]
    change(*contents)
    for path, content in zip(files, contents, strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        metrics.score_detections(*files)


def test_files_that_are_something_else(tmp_path):
    truth, detections = write_coco(tmp_path, *unpad(make_detections(3, seed=6)))
    with pytest.raises(ValueError, match=r"detections must be a list"):
        metrics.score_detections(truth, truth)
    with pytest.raises(ValueError, match=r"ground truth must be an object"):
        metrics.score_detections(detections, detections)
    detections.write_text("{")
    with pytest.raises(ValueError, match=r"detections.json: not valid JSON"):
        metrics.score_detections(truth, detections)
    detections.write_text("[]")
    result = metrics.score_detections(truth, detections)
    assert (result.recall.value, result.precision, result.silent) == (0.0, 0.0, 3)
    with pytest.raises(ValueError, match=r"score_detections\(iou\) must be between 0 and 1, got 50"):
        metrics.score_detections(truth, detections, iou=50)
