"""Grids of sampled values: every cell is an evaluation of its own, and the rest is drawn alike in all."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from study_fixture import run_fpatch
from torch import Tensor

from fpatch import compose, implant, random
from fpatch.cli.main import main
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.evaluation import evaluate
from fpatch.evaluation.grid import cells_of, evaluate_grid
from fpatch.evaluation.rates import Success, success
from fpatch.evaluation.replaying import replay
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import override
from fpatch.metrics import Rate, wilson
from fpatch.runs.evaluating import load_trained
from fpatch.runs.grid import _over_strongest, evaluate_grid_run
from fpatch.runs.naming import grid_name, table_name
from fpatch.viz import HeatMap, plot_heat_maps
from fpatch.viz.names import short_paths, show_values, wrap_name

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
        ({STOPS: [0.1, 0.1000000001]}, "must have different finite values"),
        ({STOPS: [1e40, 1.0]}, "must have different finite values"),
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


def test_a_placement_that_an_image_lacks_is_refused(tmp_path):
    """No patch would be there, and the rates would count its rows."""
    study = tiny_study(tmp_path)
    with (tmp_path / "placements.csv").open("a") as file:
        file.write("\n4.png,tag,test,2,2,6,6")  # a second placement in one of the images
    made = study.pipeline | {"implant": implant.warp(boxes="one")}
    test, scenes = made.at("test"), study.data.open().split("test")
    settings = test, test.init(random.key(0)), scenes, KEY
    every = evaluate_grid(*settings, {"implant/placement": [-1, 0]})
    assert (every.table["covered_image_tag"] > 0).all()
    for placement in (1, 2, -2):
        with pytest.raises(ValueError, match=rf"implant/placement = {placement}: image \d has no such place"):
            evaluate_grid(*settings, {"implant/placement": [placement]})
    drawn = evaluate(*settings)
    with pytest.raises(ValueError, match=r"implant/placement = 1: image 5 has no such placement"):
        replay(
            test, drawn.conditions, scenes, drawn.table, edit=lambda s: override(s, {"implant/placement": 1})
        )


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
    (name,) = {path.name.partition(".")[0] for path in (run.folder / "tables").glob("test-grid-*.parquet")}
    assert name.startswith("test-grid-stops-std_frac-angle_deg-")
    table = run.load_table(name)
    cells = cells_of(table)
    assert len(cells) == 12
    assert [c.values[STOPS] for c in cells[::4]] == [-0.3, 0.0, 0.3]
    assert {n.partition("/")[2] for n in table if n.startswith("found/") and "delta" not in n} == {
        *("patch", "none", "noise"),
    }
    for figure in (name, f"{name}-cells"):
        assert (run.folder / f"figures/{figure}.png").stat().st_size > 5000
    again = run_fpatch("replay", run.folder, "--table", name, "--rows", "40:56", "--verify", cwd=tmp_path)
    assert "identical 16 different 0" in again.stdout, again.stdout + again.stderr
    one = run_fpatch("grid", run.folder, "--over", f"{STOPS}=0,0.2", "--split", "validation", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert len(cells_of(run.load_table(grid_name("validation", "best", {STOPS: [0, 0.2]})))) == 2


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


def rate(value, half=0.1, count=60):
    return Rate(value, value - half, value + half, count, 30)


def two_maps(num_columns, num_rows, x="camera/exposure/stops", y="camera/blur/sigma_px"):
    """A patch that is as good as noise in the hottest column only."""
    success = np.linspace(0.3, 0.9, num_columns)
    over = np.linspace(0.3, 0.0, num_columns)
    return HeatMap(
        (x, np.linspace(-1, 1, num_columns).tolist()),
        (y, np.linspace(0, 3, num_rows).tolist()),
        [[rate(v) for v in success]] * num_rows,
        [[rate(v) for v in over]] * num_rows,
        [[rate(1 - v / 2) for v in success]] * num_rows,
        "noise",
    )


def texts_of(axis):
    return [text.get_text() for text in axis.texts]


def test_the_map_beside_shows_where_the_patch_is_no_better_than_noise(tmp_path, saved_figures):
    plot_heat_maps(tmp_path / "a.png", [two_maps(3, 2)])
    success, difference = saved_figures[0].axes[:2]
    assert texts_of(success)[:2] == ["30", "n 60\nclean 85 %"]
    assert texts_of(difference)[:6] == ["+30", "[20, 40]", "+15", "[5, 25]", "0", "[-10, 10]"]
    hatched = {(p.get_x() + 0.5, p.get_y() + 0.5) for p in difference.patches if p.get_hatch()}
    assert hatched == {(2.0, 0.0), (2.0, 1.0)}  # the hottest column of the other map
    low, high = difference.images[0].get_clim()
    assert low == -high  # zero is the neutral color
    red, green, blue, _ = difference.images[0].to_rgba(0.0)
    assert min(red, green, blue) > 0.95


@pytest.mark.parametrize(("low", "rest"), [(-0.1, ""), (math.nan, " or is unknown")])
def test_the_map_beside_says_what_is_hatched(tmp_path, saved_figures, low, rest):
    few = Rate(0.3, low, 0.7, 4, 4)
    plot_heat_maps(tmp_path / "a.png", [two_maps(1, 1)._replace(over=[[few]])])
    difference = saved_figures[0].axes[1]
    assert len([p for p in difference.patches if p.get_hatch()]) == 1
    assert " ".join(difference.get_title(loc="left").split()) == f"hatched: the interval holds 0{rest}"


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 3), (12, 12)])
@pytest.mark.parametrize(
    "name", ["stops", "victims/a_group_with_a_long_name/another_one_inside/exposure/stops"]
)
def test_numbers_fit_their_cells_and_names_the_figure(tmp_path, saved_figures, columns, rows, name):
    """Every warning is an error here, also that no layout is possible."""
    plot_heat_maps(tmp_path / "a.png", [two_maps(columns, rows, name, name)])
    figure = saved_figures[0]
    FigureCanvasAgg(figure).draw()  # all extents in pixels of one resolution
    for axis in figure.axes[:2]:
        cell_width, cell_height = axis.bbox.width / columns, axis.bbox.height / rows
        for text in axis.texts:
            extent = text.get_window_extent()
            assert extent.width < cell_width
            assert extent.height < cell_height / 1.5
        for label in (axis.xaxis.label, axis.yaxis.label):
            extent = label.get_window_extent()
            assert extent.x0 >= 0
            assert extent.y0 >= 0
            assert extent.y1 <= figure.bbox.height


def test_the_strongest_control_is_the_one_to_beat():
    rates = {"patch": rate(0.9), "noise": rate(0.2), "flat": rate(0.7)}
    over = {"noise": rate(0.7), "flat": rate(0.2)}
    nothing = {"displaced": {}, "gone": {}, "missed": {}, "drop": {}}
    assert _over_strongest(Success(rates=rates, over=over, clean=rate(1.0), **nothing)) is over["flat"]


def test_names_are_shortened_in_the_middle_and_numbers_stay_apart():
    assert wrap_name("abc") == "abc"
    assert wrap_name("x" * 100).split("\n")[1] == "..."
    assert show_values([0.1234567, 0.1234568]) == ["0.1234567", "0.1234568"]


def test_an_axis_that_is_a_number_keeps_the_name_before_it():
    assert short_paths(["implant/scale/0", "implant/ratio/0"]) == ["scale/0", "ratio/0"]
    assert short_paths(["front/exposure/stops", "rear/exposure/stops"]) == [
        "front/exposure/stops",
        "rear/exposure/stops",
    ]
    assert grid_name("test", "best", {"implant/scale/0": [0.5]}).startswith("test-grid-scale-0-")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_of_another_name_is_named_once(split):
    name = table_name(split, "best", {f"data.{split}": "last"})
    assert name == {"test": "test-split-last", "validation": "validation-best-split-last"}[split]
    assert name != table_name(split, "last")
