"""Grids of sampled values: every cell is an evaluation of its own, and the rest is drawn alike in all."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from study_fixture import run_fpatch
from torch import Tensor

from fpatch import compose, random
from fpatch.cli.main import main
from fpatch.evaluation.evaluation import evaluate
from fpatch.evaluation.grid import cells_of, evaluate_grid
from fpatch.evaluation.rates import success
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import override
from fpatch.metrics import wilson
from fpatch.runs.evaluating import load_trained
from fpatch.runs.grid import evaluate_grid_run
from fpatch.viz import HeatMap, plot_heat_maps

KEY = random.key(8)
STOPS = "camera/exposure/stops"
GRID = {"camera/noise/std_frac": [0.0, 0.05], STOPS: [-0.3, 0.0, 0.25]}


Parts = tuple[Pipeline, dict[str, Tensor], Any]


@pytest.fixture(scope="module")
def parts(trained):
    """Pipeline, trained parameters and test photographs."""
    with load_trained(trained.folder) as found:
        return found.pipeline, found.params, found.dataset


@pytest.fixture(scope="module")
def stratified(parts: Parts):
    return evaluate_grid(*parts, KEY, GRID, num_draws=2, block=8)


def test_every_cell_is_the_evaluation_of_an_edited_sample(parts, stratified):
    pipeline, params, dataset = parts
    cells = list(itertools.product(*GRID.values()))
    count = 2 * len(dataset.image_ids)
    assert len(stratified.table["image_id"]) == len(cells) * count
    for i, (std, stops) in enumerate(cells):
        edit = {"camera/noise/std_frac": std, STOPS: stops}
        alone = evaluate(
            pipeline, params, dataset, KEY, num_draws=2, block=8, edit=lambda s, e=edit: override(s, e)
        )
        rows = slice(i * count, (i + 1) * count)
        for name, column in alone.table.items():
            np.testing.assert_array_equal(stratified.table[name][rows], column, err_msg=name)
        assert set(stratified.table["grid/camera/noise/std_frac"][rows]) == {std}
        assert set(stratified.table["sample/camera/exposure/stops"][rows]) == {np.float32(stops)}


def test_cells_count_their_rows(stratified):
    cells = cells_of(stratified.table)
    assert [tuple(c.values.values()) for c in cells] == list(itertools.product(*GRID.values()))
    for cell in cells:
        part = {n: c[cell.rows] for n, c in stratified.table.items()}
        assert repr(cell.success) == repr(success(part))  # NaN is not equal to itself
    marginal = cells_of(stratified.table, axes=[STOPS])
    assert [c.values for c in marginal] == [{STOPS: v} for v in GRID[STOPS]]
    assert sum(len(c.rows) for c in marginal) == len(stratified.table["image_id"])
    expected = np.flatnonzero(stratified.table["grid/camera/exposure/stops"] == 0.0)
    np.testing.assert_array_equal(marginal[1].rows, expected)


def test_what_is_not_on_the_grid_is_drawn_alike_in_every_cell(stratified):
    names = [n for n in stratified.table if n.startswith("sample/") and n.removeprefix("sample/") not in GRID]
    cells = cells_of(stratified.table)
    assert names
    for name in names:
        first = stratified.table[name][cells[0].rows]
        assert all(np.array_equal(stratified.table[name][c.rows], first) for c in cells), name


def test_progress_counts_all_cells(parts: Parts):
    seen = []
    grid = {STOPS: [0.0, 1.0]}
    result = evaluate_grid(
        *parts, KEY, grid, block=8, progress=lambda done, total: seen.append((done, total))
    )
    total = len(result.table["image_id"])
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "there must be at least one path"),
        ({STOPS: []}, "'camera/exposure/stops' must have different finite values"),
        ({STOPS: [1.0, 1.0]}, "must have different finite values"),
        ({STOPS: [float("nan")]}, "must have different finite values"),
        (
            {"camera/exposure/stop": [1.0]},
            r"no sampled value .*; did you mean 'camera/exposure/stops'",
        ),
    ],
)
def test_bad_grids(parts: Parts, grid, message):
    with pytest.raises(ValueError, match=message):
        evaluate_grid(*parts, KEY, grid, block=8)


def test_a_stage_that_is_skipped_at_random_cannot_be_stratified(parts):
    pipeline, params, dataset = parts
    blurred = pipeline | {"tilt": compose.motion_blur(p=0.5)}
    with pytest.raises(ValueError, match=r"'tilt/length_px' does nothing.*add 'tilt/on' = \[1\]"):
        evaluate_grid(blurred, params, dataset, KEY, {"tilt/length_px": [3.0]}, block=8)
    on = evaluate_grid(blurred, params, dataset, KEY, {"tilt/on": [1], "tilt/length_px": [3.0]}, block=8)
    assert on.table["sample/tilt/on"].all()


def test_an_unknown_axis_is_named(stratified):
    with pytest.raises(ValueError, match=r"no axis .*; did you mean 'camera/exposure/stops'"):
        cells_of(stratified.table, axes=["camera/exposure/stop"])


def test_a_deterministic_study_is_measured_so(run):
    config = run.read_json("config.json")
    config["train"]["deterministic"] = True
    run.write_json("config.json", config)
    asked = []
    evaluate_grid_run(
        run.folder,
        {STOPS: [0.0]},
        on_progress=lambda *_: asked.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert set(asked) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_the_command_leaves_a_table_to_replay_and_figures(run, tmp_path):
    axes = (
        "--over",
        f"{STOPS}=-0.3:0.3:3",
        "--over",
        "camera/noise/std_frac=0,0.05",
        "--over",
        "affine/angle_deg=0,2",
    )
    done = run_fpatch("grid", run.folder, *axes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "found without" in done.stdout
    table = run.load_table("test-grid")
    cells = cells_of(table)
    assert len(cells) == 12
    assert [c.values[STOPS] for c in cells[::4]] == [-0.3, 0.0, 0.3]
    assert {n.partition("/")[2] for n in table if n.startswith("found/") and "delta" not in n} == {
        *("patch", "none", "noise"),
    }
    for figure in ("test-grid", "test-grid-cells"):
        assert (run.folder / f"figures/{figure}.png").stat().st_size > 5000
    again = run_fpatch(
        "replay", run.folder, "--table", "test-grid", "--rows", "40:56", "--verify", cwd=tmp_path
    )
    assert "identical 16 different 0" in again.stdout, again.stdout + again.stderr
    one = run_fpatch("grid", run.folder, "--over", f"{STOPS}=0,0.2", "--split", "validation", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert len(cells_of(run.load_table("validation-best-grid"))) == 2


@pytest.mark.parametrize("values", ["", "a", "1:2", "0:1:x", "1,,2"])
def test_values_of_another_form_are_refused(trained, capsys, values):
    assert main(["grid", str(trained.folder), "--over", f"{STOPS}={values}"]) == 2
    assert "--over must be PATH=-1,0,1 or PATH=LOW:HIGH:COUNT" in capsys.readouterr().err


def test_a_heat_map_tells_every_rate_and_its_count(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    written = []
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **style: written.append((x, y, text)))
    rates = [[wilson(np.array([True, False]), np.array([0, 1])), None]]
    plot_heat_maps(tmp_path / "a.png", [HeatMap(("x", [1.0, 2.0]), ("y", ["only"]), rates)])
    assert written == [(0, 0, "50"), (0, 0, "n 2")]
