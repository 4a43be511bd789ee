"""Answers, images and patches that are not finite never count: not as success, and in no mean."""

import json
import math

import numpy as np
import pytest
import torch
from study_fixture import OBJECT_METRICS, make_study

from fpatch import analysis, evaluate, pipeline, random, replay, success
from fpatch.cli.main import main
from fpatch.evaluation.columns import finite_mask
from fpatch.evaluation.conditions import make_patches
from fpatch.evaluation.evaluation import Evaluation
from fpatch.evaluation.grid import cells_of, evaluate_grid
from fpatch.evaluation.means import scalars, standard_errors
from fpatch.evaluation.rates import effects
from fpatch.evaluation.summaries import compute_states, merge_states
from fpatch.evaluation.thresholds import threshold_curve
from fpatch.evaluation.transfer import transfer
from fpatch.graph.finite import finite_rows
from fpatch.graph.node import node
from fpatch.optim.loop import fit
from fpatch.runs.folder import Run
from fpatch.runs.replaying import replay_run
from fpatch.runs.training import train, train_in
from fpatch.study.config import load_study
from fpatch.study.setup import make_training_step, set_up

METRICS = (
    OBJECT_METRICS
    + """[pipeline.own]
stage = "not_finite:own_hit"
phases = ["eval"]
[pipeline.mean]
stage = "metrics.torchmetric"
phases = ["eval"]
inputs = ["value"]
reads = {value = "best_score"}
metric = {loader = "metrics.torchmetrics", arguments = {name = "MeanMetric"}}
"""
)
WAYS = {"logits nan": ("logits", "nan"), "logits inf": ("logits", "inf"), "boxes nan": ("boxes", "nan")}


def broken_study(folder, what="logits", answer="nan"):
    """A victim that answers so where it sees a colored print, and every kind of metric."""
    path = make_study(folder, num_draws=1)
    victim = (
        '{loader = "not_finite:breaking", weights = "tiny.safetensors", '
        f'arguments = {{what = "{what}", answer = "{answer}"}}}}'
    )
    text = path.read_text()
    old = 'model = {loader = "study_fixture:tiny", weights = "tiny.safetensors"}'
    assert old in text
    text = text.replace(old, f"model = {victim}").replace("[objective]", f"{METRICS}[objective]")
    path.write_text(text)
    return load_study(path)


def colored(params):
    """Patches of one saturated color, which the victim cannot take."""
    return {
        name: torch.stack([torch.ones_like(p[0]), *[torch.zeros_like(p[0])] * 2])
        for name, p in params.items()
    }


@pytest.fixture(scope="module", params=WAYS)
def broken(request, tmp_path_factory):
    study = broken_study(tmp_path_factory.mktemp("broken"), *WAYS[request.param])
    parts = set_up(study)
    test, scenes = study.pipeline.at("test"), parts.dataset.split("test")
    params = colored(parts.initial.params)
    return test, params, scenes, evaluate(test, params, scenes, random.key(1))


def bad_conditions(result: Evaluation, group: str = "") -> dict[str, int]:
    counts = {c: int((~result.table[f"{group}finite/{c}"]).sum()) for c in result.conditions}
    return {c: n for c, n in counts.items() if n}


def test_without_the_column_it_would_be_a_number(broken):
    """The table alone says that the patch hides every object, or with infinity none."""
    *_, result = broken
    assert result.table["found/none"].all()
    assert len(set(result.table["found/patch"])) == 1
    blind = {n: c for n, c in result.table.items() if not n.startswith("finite/")}
    assert success(blind).rates["patch"].value == float(not result.table["found/patch"][0])


def test_a_rate_over_such_answers_is_refused_and_named(broken):
    *_, result = broken
    bad = bad_conditions(result)
    assert set(bad) >= {"patch", "flat"}
    assert not {"none", "noise"} & set(bad)
    for table, metric in ((result.table, "found"), (result.table, "own/found"), (result.objects, "found")):
        rates = success(table, metric)
        assert set(rates.not_finite) == set(bad)
        entry = rates.not_finite["patch"]
        assert entry.count == entry.total == len(table["image_id"])
        for entries in (rates.rates, rates.missed, rates.drop, rates.displaced, rates.gone):
            for c, rate in entries.items():
                assert math.isnan(rate.value) == (c in bad), c
        assert all(math.isnan(rate.value) for rate in rates.over.values())
        assert rates.clean.value == 1.0
        assert "condition 'patch'" in str(rates)
    assert result.table["path"][0] == success(result.table).not_finite["patch"].first


def test_no_scalar_no_error_and_no_summary_is_a_number(broken):
    test, _, _, result = broken
    flat, errors = scalars(result), standard_errors(result)
    for name, value in flat.items():
        rests = name.split("/")[-1] in ("patch", "flat") or "delta" in name or "over" in name
        if name.startswith(("success/not_finite", "objects/success/not_finite")):
            assert value == bad_conditions(result)[name.rpartition("/")[2]]
        elif rests and "none" not in name:
            assert math.isnan(value), name
            assert math.isnan(errors.get(name, math.nan)), name
    for name in (
        "success/none",
        "found/none",
        "precision/map_50/none",
        "mean/MeanMetric/none",
        "success/clean",
    ):
        assert name not in flat or math.isfinite(flat[name])
    assert {"precision/map", "precision/recall", "mean/MeanMetric"} <= set(result.summaries["patch"])
    assert all(map(math.isnan, result.summaries["patch"].values()))
    joined = merge_states(test, result.states["none"], result.states["patch"])
    assert all(map(math.isnan, compute_states(test, joined).values()))


def test_curves_effects_and_importances_leave_them_out(broken):
    *_, result = broken
    assert np.isnan(effects(result.table)).all()
    assert all(math.isnan(r.value) for r in threshold_curve(result.table, [0.1, 0.5], "patch"))
    assert math.isfinite(threshold_curve(result.table, [0.5], "noise")[0].value)
    assert not finite_mask(result.table, "found/delta/noise").any()
    with pytest.raises(ValueError, match=r"must be finite on at least|nowhere finite"):
        analysis.permutation_importance(result.table, "found/delta")


def test_a_replay_computes_the_same_columns(broken):
    test, _, scenes, result = broken
    again = replay(test, result.conditions, scenes, result.table, block=16)
    assert not again.differences
    assert not again.columns["finite/patch"].any()
    forged = result.table | {"finite/patch": np.ones(len(result.table["image_id"]), bool)}
    named = replay(test, result.conditions, scenes, forged).differences
    assert all("finite/patch: True was logged, False came out" in text for text in named[0][:1])
    old = {n: c for n, c in result.table.items() if "finite/" not in n}
    assert len(replay(test, result.conditions, scenes, old).differences) == len(old["image_id"])


def test_cells_of_a_grid_and_patches_of_others(broken):
    test, params, scenes, _ = broken
    table = evaluate_grid(test, params, scenes, random.key(1), {"camera/exposure/stops": [0.0, 0.1]}).table
    assert all(math.isnan(cell.success.rates["patch"].value) for cell in cells_of(table))
    gray = {name: torch.full_like(p, 0.5) for name, p in params.items()}
    patches = {"red": make_patches(test, params), "gray": make_patches(test, gray)}
    found = transfer({"red": test}, patches, scenes, random.key(1))
    assert math.isnan(found.rates["red"]["red"].value)
    assert math.isfinite(found.rates["red"]["gray"].value)
    assert any("condition 'red'" in text for text in found.warnings["red"])


def test_where_the_clean_image_breaks_it_there_is_no_rate_at_all():
    yes, no = np.ones(6, bool), np.zeros(6, bool)
    finite = np.array([True, True, False, True, True, True])
    table = {"image_id": np.arange(6), "found/none": yes, "found/patch": no, "found/noise": yes}
    rates = success(table | {"finite/none": finite, "finite/patch": yes, "finite/noise": yes})
    named = [*rates.rates.values(), *rates.over.values(), rates.clean, rates.missed["none"]]
    assert all(math.isnan(rate.value) for rate in named)
    assert rates.rates["patch"].count == 0
    assert rates.missed["patch"].value == 1.0
    assert rates.not_finite["none"][:] == (1, 6, "image 2")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_patch_that_is_not_finite_is_refused(tmp_path, value):
    study = load_study(make_study(tmp_path))
    parts = set_up(study)
    params = {name: p.clone() for name, p in parts.initial.params.items()}
    params["rear"][0, 1, 2:4] = value
    scenes = parts.dataset.split("test")
    with pytest.raises(ValueError, match=r"2 of 90 numbers of the patch 'rear' under the condition 'patch'"):
        evaluate(study.pipeline.at("test"), params, scenes, random.key(0))


def test_a_run_names_them_in_table_summary_and_figure(tmp_path, capsys):
    """A run whose patch is red: the command prints no success, and exits as always."""
    study = broken_study(tmp_path)
    run = train(study)
    state, facts = run.load_checkpoint("last", set_up(study).initial)
    run.save_checkpoint("best", state._replace(params=colored(state.params)), **facts)
    capsys.readouterr()
    assert main(["evaluate", str(run.folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "condition 'patch': 4 of 4 rows are not finite, first" in printed
    assert "100.0" not in printed.partition("noise")[0]
    summary = json.loads((run.folder / "tables/test.summary.json").read_text())
    assert summary["not_finite"]["patch"]["count"] == 4
    assert summary["rates"]["patch"]["value"] is None
    assert summary["objects"]["rates"]["patch"]["value"] is None
    assert summary["summaries"]["patch"]["precision/map"] is None
    again, _ = replay_run(run.folder)
    assert not again.differences
    assert main(["grid", str(run.folder), "--over", "camera/exposure/stops=0,0.1"]) == 0
    assert "2 cells have rows that are not finite" in " ".join(capsys.readouterr().out.split())
    assert main(["analyze", str(run.folder)]) == 0


def test_a_patch_that_breaks_in_the_last_update_is_no_finished_training(tmp_path):
    """Its loss and its gradient are those of the state before, and finite."""
    study = load_study(make_study(tmp_path))
    parts = set_up(study)

    def steps(state, loader, num_steps):
        for after, info in fit(state, make_training_step(study, parts), loader, num_steps):
            if after.step == num_steps:
                after.params["rear"][0, 0, 0] = math.nan
            yield after, info

    with pytest.raises(ValueError, match=r"update 6: 1 of 90 parameters of the patch 'rear' are not finite"):
        list(train_in(tmp_path / "run", study, parts=parts, steps=steps))
    run = Run.open(tmp_path / "run")
    assert run.checkpoint_step("last") == 5
    assert all(bool(p.isfinite().all()) for p in run.load_params("last").values())


# The mask itself


def test_entries_that_are_not_valid_do_not_count():
    final = {
        "boxes": torch.zeros(2, 3, 4),
        "scores": torch.zeros(2, 3),
        "labels": torch.zeros(2, 3, dtype=torch.int64),
        "valid": torch.tensor([[True, False, False], [True, True, False]]),
    }
    final["boxes"][0, 1], final["scores"][1, 2] = torch.nan, torch.inf
    assert finite_rows({"final": final}, 2).tolist() == [True, True]
    final["boxes"][1, 1, 3] = torch.nan
    assert finite_rows({"final": final, "dense": {"logits": torch.zeros(2, 5, 1)}}, 2).tolist() == [
        True,
        False,
    ]


def test_nan_that_a_later_node_hides_still_counts():
    def break_row(params, key, batch):
        broken = batch["image"].clone()
        broken[1, :, 0, 0] = torch.nan
        return {**batch, "image": broken}, {}

    def hide(params, key, batch):
        return {**batch, "image": batch["image"].nan_to_num(0.0)}, {}

    def look(params, key, batch):
        return {**batch, "bright": batch["image"].mean((1, 2, 3)) > 0.1}, {}

    rows = {"image": torch.ones(3, 3, 4, 4), "image_id": torch.arange(3)}
    rows["draw"] = torch.zeros(3, dtype=torch.int64)
    p = pipeline(
        {
            "break": node(break_row, reads=["image"], writes=["image"]),
            "hide": node(hide, reads=["image"], writes=["image"]),
            "look": node(look, reads=["image"], writes=["bright"]),
        }
    )
    out, _, finite = p.observe({}, p.sample(random.key(0), rows), rows, want=("bright",))
    assert out["bright"].tolist() == [True] * 3
    assert finite.names["bright"].tolist() == [True, False, True]
