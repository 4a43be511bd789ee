"""Samples as columns: the exact inverse, and edits by path."""

import json
import math

import numpy as np
import pytest
import torch
from cases import case, demo
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_equal

from fpatch import random
from fpatch.graph.samples import from_columns, override, to_columns

KEY = random.key(8)
DTYPES = (torch.float32, torch.int64, torch.bool)


def make_sample() -> dict:
    return {
        "tilt": {"angle_deg": torch.tensor([1.5, -2.0, 0.1]), "on": torch.tensor([True, False, True])},
        "camera/noise": {"key": torch.tensor([[1, 2**32 - 1], [3, 4], [5, 6]])},
        "implant": {"jitter": torch.arange(3 * 2 * 4).view(3, 2, 4).float() / 7},
    }


def test_columns_are_named_by_path_and_index():
    columns = to_columns(make_sample())
    assert list(columns)[:4] == ["tilt/angle_deg", "tilt/on", "camera/noise/key/0", "camera/noise/key/1"]
    assert list(columns)[4:] == [f"implant/jitter/{i}/{j}" for i in range(2) for j in range(4)]
    assert all(column.shape == (3,) for column in columns.values())
    assert columns["camera/noise/key/1"].tolist() == [2**32 - 1, 4, 6]
    assert columns["implant/jitter/1/2"][2] == np.float32(22 / 7)


def test_from_columns_is_the_inverse():
    assert_equal(from_columns(to_columns(make_sample())), make_sample())
    one = {"angle_deg": torch.tensor([1.0]), "shift": torch.tensor([[0.5, 0.25]])}
    assert_equal(from_columns(to_columns(one)), one)


@given(st.data())
def test_any_sample_survives_json(data):
    rows = data.draw(st.integers(1, 5))
    sample = {}
    for node in data.draw(st.lists(st.sampled_from(["a", "b/c", "d9", "e2/f/0x"]), min_size=1, unique=True)):
        sample[node] = {}
        for field in data.draw(st.lists(st.sampled_from(["x", "x_px", "y2"]), min_size=1, unique=True)):
            shape = (rows, *data.draw(st.lists(st.integers(1, 12), max_size=2)))
            dtype = data.draw(st.sampled_from(DTYPES))
            values = torch.tensor(
                data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=rows, max_size=rows))
            )
            values = values.view(-1, *[1] * (len(shape) - 1)).expand(shape) + torch.arange(
                math.prod(shape)
            ).view(shape)
            sample[node][field] = values.bool() if dtype == torch.bool else (values / 3).to(dtype)
    columns = {name: column.tolist() for name, column in to_columns(sample).items()}
    assert_equal(from_columns(json.loads(json.dumps(columns))), sample)


def test_every_float_survives():
    bits = torch.tensor([0, 1, 0x7F7FFFFF, 0x00800000, 0x3DCCCCCD, 0x7F800000, -0x800000], dtype=torch.int32)
    sample = {"x": bits.view(torch.float32)}
    lists = json.loads(json.dumps({"x": to_columns(sample)["x"].tolist()}))
    assert torch.equal(from_columns(lists)["x"].view(torch.int32), bits)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a/x/0": [1.0], "a/x/2": [1.0]}, r"columns of 'a/x': 2 of 3 are there"),
        ({"a/x/0": [1.0], "a/x/1": [1.0, 2.0]}, r"with lengths \[1, 2\]"),
        ({"a/x": ["cold", "warm"]}, "column 'a/x' must be a 1-D list of numbers or booleans"),
        ({"a/x": [[1.0], [2.0]]}, "must be a 1-D list"),
        ({"a/x": [1.0, None]}, "must be a 1-D list"),
    ],
)
def test_broken_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        from_columns(columns)


def test_override_replaces_and_broadcasts():
    sample = make_sample()
    changed = override(sample, {"tilt/angle_deg": 30.0, "camera/noise/key": torch.tensor([7, 8, 9])})
    assert changed["tilt"]["angle_deg"].tolist() == [30.0, 30.0, 30.0]
    assert changed["camera/noise"]["key"].tolist() == [[7, 7], [8, 8], [9, 9]]
    assert_equal(changed["implant"], sample["implant"])
    assert_equal(sample, make_sample())


def test_override_of_parts_and_of_whole_fields():
    sample, whole = make_sample(), torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    part = override(sample, {"implant/jitter/1/2": [0.0, 1.0, 2.0]})["implant"]["jitter"]
    assert part[:, 1, 2].tolist() == [0.0, 1.0, 2.0]
    part[:, 1, 2] = sample["implant"]["jitter"][:, 1, 2]
    assert torch.equal(part, sample["implant"]["jitter"])
    row = override(sample, {"implant/jitter/1": -1.0})["implant"]["jitter"]
    assert bool((row[:, 1] == -1).all())
    assert torch.equal(row[:, 0], sample["implant"]["jitter"][:, 0])
    assert torch.equal(override(sample, {"implant/jitter": whole})["implant"]["jitter"], whole)
    assert override(sample, {"tilt/on": False})["tilt"]["on"].tolist() == [False] * 3


@pytest.mark.parametrize("shape", [(3, 3), (3, 1), (3, 2, 2)])
def test_override_of_another_width_is_refused(shape):
    with pytest.raises(ValueError, match=r"'camera/noise/key' has 2 numbers per row, got shape \[3, "):
        override(make_sample(), {"camera/noise/key": torch.ones(shape, dtype=torch.int64)})


def test_override_keeps_what_it_was_told_in_a_pipeline():
    subject = case(demo().at("train"))
    sample = subject.subject.sample(KEY, subject.batch)
    dark = override(sample, {"camera/exposure/stops": -10.0})
    image = subject.subject.apply(subject.params, dark, subject.batch, want=("image",))["image"]
    bright = subject.subject.apply(subject.params, sample, subject.batch, want=("image",))["image"]
    assert float(image.mean()) < 0.3 * float(bright.mean())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tilt/angel_deg": 1.0}, "no sampled value 'tilt/angel_deg'; did you mean 'tilt/angle_deg'"),
        ({"tilt": 1.0}, "no sampled value 'tilt'"),
        ({"implant/jitter/2": 1.0}, "no sampled value 'implant/jitter/2'; did you mean 'implant/jitter'"),
        ({"tilt/angle_deg": [1.0, 2.0]}, r"'tilt/angle_deg' takes one value or 3, got shape \[2\]"),
        ({"camera/noise/key": 0.5}, "'camera/noise/key' holds int64 values, got 0.5"),
        ({"tilt/on": 2}, "'tilt/on' holds bool values, got 2"),
        ({"camera/noise/key": float("nan")}, "'camera/noise/key' holds int64 values, got nan"),
        ({"camera/noise/key": 2**70}, "'camera/noise/key' holds int64 values, got 1180"),
        ({"tilt/angle_deg": 1e40}, r"'tilt/angle_deg' holds float32 values, got 1e\+40"),
        ({"tilt/angle_deg": "left"}, "'tilt/angle_deg' holds float32 values, got 'left'"),
        ({"tilt/angle_deg": None}, "'tilt/angle_deg' holds float32 values, got None"),
    ],
)
def test_wrong_overrides_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        override(make_sample(), values)


def test_a_field_whose_name_ends_in_a_digit_is_suggested_whole():
    with pytest.raises(ValueError, match="did you mean 'tilt/x2'"):
        override({"tilt": {"x2": torch.zeros(3)}}, {"tilt/x3": 1.0})
