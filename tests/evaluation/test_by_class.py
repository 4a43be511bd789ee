"""Results by class: rates against loops over the rows, answers, and rows that are not finite."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fpatch import metrics, pipeline
from fpatch.cli.class_tables import NUM_CLASSES, class_table, precision_tables
from fpatch.cli.main import main
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.by_class import NO_DETECTION, NOT_FINITE, by_class, from_json
from fpatch.evaluation.rates import success
from fpatch.evaluation.summaries import compute_states, init_states, name_classes, update_states
from fpatch.log.values import to_json
from fpatch.ops.intervals import wilson
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.replaying import replay_run
from fpatch.runs.training import train
from fpatch.runs.verifying import verify_run


def make_table(seed, num_classes, rows=60, bad=0.0):
    """Rows of random labels and answers; a label of -1 is a row without an object."""
    draws = np.random.default_rng(seed)
    label = draws.integers(-1, num_classes, rows)
    table = {"image_id": np.arange(rows) // 2, "label": label, "has_object/none": label >= 0}
    for condition, share in (("patch", 0.4), ("none", 0.9), ("noise", 0.8)):
        hit = (draws.random(rows) < share) & (label >= 0)
        wrong = (label + draws.integers(1, num_classes + 1, rows)) % (num_classes + 1)
        wrong = np.where(wrong == num_classes, -1, wrong)
        table[f"found/{condition}"] = hit
        table[f"answer/{condition}"] = np.where(label < 0, -1, np.where(hit, label, wrong))
        table[f"finite/{condition}"] = draws.random(rows) >= bad
    return table


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_every_rate_and_answer_is_that_of_a_loop(seed, num_classes):
    table = make_table(seed, num_classes)
    names = tuple(f"class-{i}" for i in range(num_classes))
    found = by_class(table, "found", names)
    assert list(found.classes) == [names[i] for i in sorted(set(table["label"].tolist()) - {-1})]
    for label, name in ((i, n) for i, n in enumerate(names) if n in found.classes):
        own = table["label"] == label
        counted = own & table["found/none"]
        entry = found.classes[name]
        assert entry.clean.count == own.sum()
        for condition in ("patch", "noise"):
            expected = wilson(~table[f"found/{condition}"][counted], table["image_id"][counted])
            assert repr(entry.rates[condition]) == repr(expected)
        counts = {}
        for answer in table["answer/patch"][own].tolist():
            called = NO_DETECTION if answer < 0 else names[answer]
            counts[called] = counts.get(called, 0) + 1
        assert entry.answers["patch"] == counts
        assert list(entry.answers["patch"].values()) == sorted(counts.values(), reverse=True)
    total = sum(entry.rates["patch"].count for entry in found.classes.values())
    assert total == success(table).rates["patch"].count
    assert repr(from_json(json.loads(to_json(found.to_json())))) == repr(found)


def test_rows_that_are_not_finite_are_counted_apart_in_their_class_alone():
    table = make_table(3, 3)
    first = int(np.flatnonzero(table["label"] == 1)[0])
    table["finite/patch"][first] = False
    found = by_class(table, "found", ("stop", "turn"))
    stop, turn, unnamed = found.classes.values()
    assert math.isnan(turn.rates["patch"].value)
    assert turn.not_finite == {"patch": 1}
    assert turn.answers["patch"][NOT_FINITE] == 1
    assert sum(turn.answers["patch"].values()) == turn.clean.count == sum(turn.answers["none"].values())
    assert not math.isnan(turn.rates["noise"].value)
    assert not math.isnan(stop.rates["patch"].value)
    assert stop.not_finite == unnamed.not_finite == {}
    assert "class 2" in found.classes  # a class beyond the names
    shown = show(class_table("by class", found))
    assert "not finite" in shown


def show(table, width=80):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    assert max(map(len, capture.get().splitlines())) <= width
    return capture.get()


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_the_table_names_the_largest_classes_and_counts_the_others(num_classes):
    names = tuple(f"a rather long name of the class {i:03d}" for i in range(num_classes))
    table = make_table(1, num_classes, rows=400)
    found = by_class(table, "found", names)
    shown = show(class_table("by class", found))
    flat = " ".join(shown.replace("│", " ").split())
    written = [n for n in found.classes if n[-3:] in flat]
    assert len(found.largest(12)) == min(num_classes, 12)
    assert set(found.largest(12)) <= set(written)
    if num_classes > 12:
        least = min(found.classes[n].rates["patch"].count for n in found.largest(12))
        others = [n for n in found.classes if n not in found.largest(12)]
        assert all(found.classes[n].rates["patch"].count <= least for n in others)
        rows = sum(found.classes[n].clean.count for n in others)
        assert f"and {len(others)} more classes with {rows} rows" in shown
    else:
        assert "more classes with" not in shown


def test_a_table_without_labels_has_no_classes():
    table = make_table(1, 2)
    del table["label"]
    assert by_class(table, "found", ("a", "b")) is None


def test_average_precision_names_the_classes_with_objects_alone():
    box = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]).expand(3, 2, 4)
    final = {
        "boxes": box,
        "scores": torch.full((3, 2), 0.9),
        "labels": torch.tensor([[4, 1], [4, 4], [0, 0]]),  # 1 and 0 have no object
        "valid": torch.ones(3, 2, dtype=torch.bool),
    }
    values = {"detections": {"final": final}, "boxes": box[:, :1], "labels": torch.tensor([[4], [4], [79]])}
    values |= {"box_valid": torch.ones(3, 1, dtype=torch.bool)}
    test = pipeline({"ap": metrics.mean_average_precision()})
    _, seen, _ = test.observe({}, {}, values, want=())
    states = update_states(test, init_states(test), seen)
    names = [f"name {i}" for i in range(79)]
    found = compute_states(test, states, names)
    by_name = {n.removeprefix("ap/map/") for n in found if n.startswith("ap/map/")}
    assert by_name == {"name 4", "79"}  # one beyond the names keeps its number
    assert not any(map(math.isnan, found.values()))
    assert found["ap/recall/name 4"] == 1.0
    overall, classes = precision_tables({"none": found, "patch": found}, ["name 4", "79", "absent"])
    assert f"{found['ap/map']:.3f}" in show(overall)
    assert "name 4" in show(classes)
    assert "absent" not in show(classes)


def test_a_class_that_success_leaves_out_is_in_the_table_of_precision():
    """Such as the goal of a targeted attack: the mean counts it, and so the table shows it."""
    numbers = {"ap/map": 0.3, "ap/map_50": 0.5, "ap/map_75": 0.2, "ap/recall": 0.1, "ap/map/left_out": 2.0}
    few = numbers | {f"ap/map/{name}": 0.3 for name in ("red", "green", "blue")}
    _, classes = precision_tables({"none": few, "patch": few}, ["green", "red"])
    assert [str(cell) for cell in classes.columns[0].cells] == ["green", "red", "blue"]
    _, unordered = precision_tables({"none": few, "patch": few})
    assert [str(cell) for cell in unordered.columns[0].cells] == ["red", "green", "blue"]
    many = numbers | {f"ap/map/c{i}": 0.3 for i in range(NUM_CLASSES + 3)}
    _, classes = precision_tables({"patch": many})
    assert len(list(classes.columns[0].cells)) == NUM_CLASSES
    assert str(classes.caption).startswith("and 3 more classes in the mean")


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ("MulticlassAccuracy", {"MulticlassAccuracy/stop", "MulticlassAccuracy/turn"}),
        ("MulticlassConfusionMatrix", {f"MulticlassConfusionMatrix/{i}/{j}" for i in "01" for j in "01"}),
        ("BinaryROC", {f"BinaryROC/{i}/{j}" for i in range(3) for j in range(5)}),
    ],
)
def test_only_numbers_by_class_get_the_names_of_classes(metric, names):
    arguments = {"average": None} if metric == "MulticlassAccuracy" else {"thresholds": 5}
    arguments = {} if metric == "MulticlassConfusionMatrix" else arguments
    sized = {} if metric == "BinaryROC" else {"num_classes": 2}
    stage = metrics.torchmetric(metrics.torchmetrics(name=metric, **sized, **arguments))
    test = pipeline({"m": stage})
    answers = torch.tensor([0, 1, 1]) if sized else torch.tensor([0.1, 0.8, 0.6])
    seen = {"m": {"preds": answers, "target": torch.tensor([0, 1, 0])}}
    found = compute_states(test, update_states(test, init_states(test), seen), ("stop", "turn"))
    assert set(found) == {f"m/{name}" for name in names}


def test_a_vector_longer_than_the_classes_keeps_its_indices():
    vector = {f"curve/{i}": float(i) for i in range(3)}
    assert name_classes(vector, ("stop", "turn")) == vector


def test_a_classifier_says_by_class_what_became_what(tmp_path, capsys):
    run = train(tiny_study(tmp_path))
    assert main(["evaluate", str(run.folder)]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("│ lamp"))
    assert [cell.strip() for cell in row.strip("│").split("│")][-1] == "4 nothing"
    summary = run.read_json("tables/test.summary.json")
    assert summary["classes"]["lamp"]["answers"]["none"] == {"lamp": 4}
    assert summary["classes"]["lamp"]["rates"]["patch"]["count"] == 4
    assert run.load_table("test")["label"].tolist() == [0] * 4
    assert "label/delta" not in run.load_table("test")
    assert verify_run(run.folder).is_proved
    path = run.folder / "tables/test.summary.json"
    path.write_text(path.read_text().replace('"nothing": 4', '"nothing": 3', 1))
    assert any("classes.lamp.answers" in said for said in verify_run(run.folder).differences)


def test_a_targeted_rate_stands_by_class(tmp_path):
    study = tiny_study(tmp_path, {"pipeline.misclassify.target": "nothing", "pipeline.hit.goal": "nothing"})
    run, rates = evaluate_run(train(study).folder)
    found = from_json(run.read_json("tables/test.summary.json")["classes"], rates.goal)
    assert found.classes["lamp"].rates["patch"].value == rates.rates["patch"].value == 1.0
    assert "answered nothing" in show(class_table("rows", found)).replace("\n", " ")


def test_a_table_of_an_older_version_replays_without_labels(tmp_path):
    run = train(tiny_study(tmp_path))
    evaluate_run(run.folder)
    from fpatch.evaluation.replaying import compare

    table = run.load_table("test")
    result, _ = replay_run(run.folder)
    old = {name: column for name, column in table.items() if name != "label"}
    assert list(compare(old, result.columns, np.arange(4))) == []
    forged = table | {"label": table["label"] + 1}
    assert len(list(compare(forged, result.columns, np.arange(4)))) == 4
