"""Plain functions: what they draw is logged, replayed and overridden; configs name them."""

from functools import partial

import numpy as np
import plain_functions
import pytest
import torch
from cases import make_inputs
from laws import assert_equal
from plain_functions import haze, ink, wind
from study_fixture import make_study
from typecheck import unchecked

import fpatch
from fpatch import build, compose, control, create, from_columns, node, override, pipeline, random, to_columns
from fpatch.analysis.importance import _sampled_columns
from fpatch.core.tree import take_rows
from fpatch.evaluation.replaying import drawn, replay
from fpatch.graph.drawable import check_drawable
from fpatch.graph.functions import find_function, gather, spread
from fpatch.runs.verifying import verify_run

KEY = random.key(5)


def outdoors(*more):
    return pipeline(
        {
            "air": {"wind": node(wind, reads=["quads", "quad_valid"], writes=["quads"])},
            "haze": node(haze, reads=["image"], writes=["image"]),
            **dict(more),
        }
    )


def test_what_functions_draw_is_in_the_sample_of_a_call():
    p, batch = outdoors(), make_inputs()
    out, sample = p({}, KEY, batch)
    assert set(to_columns(sample)) == {
        "air/wind/key/0", "air/wind/key/1", "air/wind/speed", "haze/key/0", "haze/key/1", "haze/share",
    }  # fmt: skip
    assert_equal(p.complete({}, p.sample(KEY, batch), batch), sample)
    assert_equal(p.apply({}, sample, batch), out)
    assert_equal(p.apply({}, from_columns(to_columns(sample)), batch), out)


def test_a_row_draws_the_same_beside_others():
    batch = make_inputs()
    _, whole = outdoors()({}, KEY, batch)
    _, second = outdoors()({}, KEY, take_rows(batch, slice(1, 2)))
    assert_equal(take_rows(whole, slice(1, 2)), second)


def test_a_function_that_takes_its_sample_is_overridden():
    p, batch = outdoors(), make_inputs()
    _, sample = p({}, KEY, batch)
    out = p.apply({}, override(sample, {"air/wind/speed": 2.0}), batch)
    moved = batch["quads"] + torch.tensor([2.0, 0.0])
    assert torch.equal(out["quads"][batch["quad_valid"]], moved[batch["quad_valid"]])


def test_an_override_of_a_function_that_draws_by_its_key_says_so():
    p, batch = outdoors(), make_inputs()
    _, sample = p({}, KEY, batch)
    with pytest.raises(
        ValueError, match=r"haze drew another 'share'.*give it a fourth argument, sample=None"
    ):
        p.apply({}, override(sample, {"haze/share": 0.25}), batch)
    with pytest.raises(ValueError, match="haze draws by its key, so that an override changes nothing"):
        check_drawable(p, {"haze/share": 0.25})
    check_drawable(p, {"air/wind/speed": 2.0})


def test_a_function_returns_the_sample_that_it_was_given():
    def stubborn(patch_params, key, batch, sample=None):
        return {"n": key}, {"speed": torch.zeros(len(key))}

    p = pipeline({"wind": node(stubborn, reads=["image"], writes=["n"])})
    _, sample = p({}, KEY, make_inputs())
    with pytest.raises(ValueError, match=r"drew another 'speed' .*; return the sample that was given"):
        p.apply({}, override(sample, {"wind/speed": 1.0}), make_inputs())


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"0": torch.ones(3)}, r"'0' is no name of a sampled value"),
        ({"speed/0": torch.ones(3)}, r"'speed/0' is no name of a sampled value"),
        ({"": torch.ones(3)}, r"'' is no name of a sampled value"),
        ({"camera": {"1": torch.ones(3)}}, r"'1' is no name of a sampled value"),
        ({"speed": 3.0}, r"sample\['speed'\] must be a float32, int64 or bool tensor of 3 rows, got float"),
        ({"speed": torch.zeros(3).double()}, r"got torch\.float64 \[3\]"),
        ({"speed": torch.zeros(2)}, r"of 3 rows, got torch\.float32 \[2\]"),
        ({"key": torch.zeros(3)}, "draws 'key', which is the name of its keys; rename the field"),
        ([1.0], r"the sample must be a mapping, got a list; return \(out, \{field: \[b, ...\]\}\)"),
    ],
)
def test_a_wrong_sample_is_named(sample, words):
    p = pipeline({"wind": node(lambda p, k, b: ({"n": k}, sample), reads=["image"], writes=["n"])})
    with unchecked(), pytest.raises(ValueError, match=words):
        p({}, KEY, make_inputs())


def test_entries_of_a_sample_are_spread_and_gathered():
    inner = {"key": torch.ones(2, 2), "dim": {"stops": torch.zeros(2)}, "a/b": {"x": torch.ones(2)}}
    assert_equal(gather("camera", spread("camera", inner)), inner)
    assert_equal(from_columns(to_columns({"camera": inner})), spread("camera", inner))


# -- no way of the patch past a control


@pytest.mark.parametrize(
    "read", [lambda p: p["hood"], lambda p: list(p.values()), lambda p: p.get("hood"), dict]
)
@pytest.mark.parametrize("written", ["image", "scene"])
def test_a_function_that_paints_parameters_into_an_image_is_refused(read, written):
    def paint(patch_params, key, batch):
        read(patch_params)
        return {written: batch["scene"]}, {}

    made = {
        "pixels": create.pixels({"hood": (3, 4, 4)}),
        "paint": node(paint, reads=["scene"], writes=[written]),
    }
    params = {"hood": torch.rand(3, 4, 4)}
    with (
        unchecked(),
        pytest.raises(ValueError, match="writes an image and reads the patch parameters, so no con"),
    ):
        pipeline(made)(params, KEY, make_inputs())


def test_a_stage_that_paints_parameters_into_an_image_is_refused():
    def apply(config, patch_params, sample, values):
        return {"image": values["image"] + patch_params["hood"].mean()}

    paint = fpatch.define(
        "paint", plain_config(), fpatch.deterministic, apply, reads=("image",), writes=("image",)
    )
    with unchecked(), pytest.raises(ValueError, match="writes an image and reads the patch parameters"):
        pipeline({"paint": paint()}).apply({"hood": torch.rand(3)}, {}, make_inputs())


def plain_config():
    import dataclasses

    return dataclasses.make_dataclass("Paint", [], frozen=True)


# -- configs


def test_a_function_that_can_be_imported_is_named_by_a_config():
    p = outdoors(("ink", node(ink, writes=["ink"], phases="eval")))
    again = build(p.config)
    assert again.config == p.config
    assert p.config["air/wind"] == {
        "stage": "plain_functions:wind", "reads": ["quads", "quad_valid"], "writes": ["quads"],
    }  # fmt: skip
    assert p.config["ink"] == {
        "stage": "plain_functions:ink",
        "writes": ["ink"],
        "phases": ["test", "validation"],
    }
    batch = make_inputs()
    assert_equal(again.at("train")({}, KEY, batch), p.at("train")({}, KEY, batch))


def test_names_relative_to_a_group_are_written_absolute():
    p = pipeline({"air": {"wind": node(wind, reads=["./quads", "quad_valid"], writes=["./quads"])}})
    assert p.config["air/wind"]["reads"] == ["air/quads", "quad_valid"]
    assert build(p.config).config == p.config


@pytest.mark.parametrize(
    "function",
    [lambda p, key, batch: ({"image": batch["image"]}, {}), partial(haze), plain_functions.Holder().method],
)
def test_a_function_that_cannot_be_imported_stays_a_live_object(function):
    p = pipeline({"f": node(function, reads=["image"], writes=["image"])})
    assert "live" in p.config["f"]["function"]
    with pytest.raises(ValueError, match=r"pipeline\.f\.stage: no definition"):
        build(p.config)


@pytest.mark.parametrize(
    "identity", ["plain_functions:random", "plain_functions:Holder", "plain_functions:no", "no:f"]
)
def test_only_a_function_of_the_module_itself_is_found(identity):
    assert find_function(identity) is None


def test_a_setting_of_a_function_is_refused():
    config = {"wind": {"stage": "plain_functions:wind", "writes": ["quads"], "gain": 2.0}}
    with pytest.raises(ValueError, match=r"pipeline\.wind: a plain function has no setting 'gain'"):
        build(config)
    with pytest.raises(
        ValueError, match=r"pipeline\.wind: .*a plain function declares no names; give writes"
    ):
        build({"wind": {"stage": "plain_functions:wind"}})


# -- evaluations


@pytest.fixture
def measured(tmp_path):
    study = fpatch.load_study(make_study(tmp_path))
    test, scenes = study.pipeline.at("test"), study.data.open().split("test")
    first = next(iter(test))
    body = test.without(*test.parameterizations)
    p = (
        pipeline({first: test[first], "wind": node(wind, reads=["quads", "quad_valid"], writes=["quads"])})
        | body
    )
    params = p.init(random.key(0))
    return p, scenes, params, fpatch.evaluate(p, params, scenes, KEY, num_draws=2, block=3)


def test_the_table_of_an_evaluation_has_what_functions_drew(measured):
    p, scenes, _, result = measured
    assert len(np.unique(result.table["sample/wind/speed"])) == len(result.table["image_id"])
    assert (result.table["digest/patch"] != result.table["digest/none"]).any()
    again = replay(p, result.conditions, scenes, result.table, block=3)
    assert again.differences == {}
    ids, draw = (torch.from_numpy(result.table[n][:3]) for n in ("image_id", "draw"))
    columns = drawn(p, scenes, KEY, ids, draw, result.conditions, block=3)
    assert columns["sample/wind/speed"].tolist() == result.table["sample/wind/speed"][:3].tolist()
    assert columns["sample"].tolist() == result.table["sample"][:3].tolist()


def test_a_grid_over_what_a_function_draws(measured):
    from fpatch.evaluation.grid import evaluate_grid

    p, scenes, params, _ = measured
    grid = evaluate_grid(p, params, scenes, KEY, {"wind/speed": [0.0, 3.0]}, block=3)
    assert sorted(set(grid.table["sample/wind/speed"].tolist())) == [0.0, 3.0]
    still, windy = np.split(grid.table["digest/none"], 2)
    assert (still == windy).all()  # no patch moves
    still, windy = np.split(grid.table["digest/patch"], 2)
    assert (still != windy).any()


def test_an_edited_column_of_a_function_differs(measured):
    p, scenes, _, result = measured
    table = dict(result.table)
    table["sample/wind/speed"] = table["sample/wind/speed"] + np.float32(0.5)
    assert replay(p, result.conditions, scenes, table, rows=[0], block=3).differences[0]


def test_a_control_keeps_what_functions_drew():
    p, batch = outdoors(), make_inputs()
    _, sample = p({}, KEY, batch)
    assert_equal(control(sample), sample)


# -- slices


def test_slices():
    p = pipeline({"a": compose.exposure(), "camera": {"b": compose.blur()}, "c": compose.read_noise()})
    assert list(p[1:3]) == ["camera/b", "c"]
    assert list(p["a":"camera/b"]) == ["a", "camera/b"]
    assert list(p["camera/b":]) == list(p.since("camera/b")) == ["camera/b", "c"]
    assert list(p[:"a"]) == list(p.upto("a")) == ["a"]
    assert list(p[:-1]) == ["a", "camera/b"]
    batch = make_inputs()
    sample = p.sample(KEY, batch)
    middle = p["camera/b":"camera/b"].apply({}, sample, p["a":"a"].apply({}, sample, batch))
    assert torch.equal(p["c":].apply({}, sample, middle)["image"], p.apply({}, sample, batch)["image"])
    with pytest.raises(KeyError, match="no node 'camera'"):
        p["camera":]
    with pytest.raises(ValueError, match="the node 'c' stands below 'a'; swap the two"):
        p["c":"a"]


# -- a study


def test_a_study_with_functions_trains_measures_verifies_and_replays(tmp_path):
    path = make_study(tmp_path)
    text = path.read_text()
    added = """
[pipeline.wind]
stage = "plain_functions:wind"
reads = ["quads", "quad_valid"]
writes = ["quads"]

[pipeline.implant]"""
    path.write_text(text.replace("\n[pipeline.implant]", added))
    run = fpatch.train(fpatch.load_study(path))
    assert "plain_functions" in run.read_json("environment.json")["sources"]["modules"]
    fpatch.evaluate_run(run.folder)
    assert verify_run(run.folder).differences == []
    table = run.load_table("test")
    speeds = table["sample/wind/speed"]
    assert len(set(speeds.tolist())) == len(speeds)
    sampled = _sampled_columns(table, np.ones(len(speeds), dtype=bool))[0]
    assert "sample/wind/speed" in sampled
    again, differences = fpatch.replay_run(run.folder, slice(0, 4), edits={"wind/speed": 0.0})
    assert differences == []
    assert any(again.differences.values())
    with pytest.raises(ValueError, match="no sampled value 'wind/sped'; did you mean 'wind/speed'"):
        fpatch.replay_run(run.folder, slice(0, 1), edits={"wind/sped": 0.0})
