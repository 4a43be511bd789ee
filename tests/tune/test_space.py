"""What a sweep may vary: how it is written, drawn and refused."""

import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fpatch import random
from fpatch.tune import Choice, Interval, SpaceError, parse_space
from fpatch.tune.search.parsing import encode_space
from fpatch.tune.search.space import combinations

TOML = """
[space]
seed = 7
optimizer.learning_rate = {low = 0.01, high = 1.0, scale = "log"}
train.batch_size = {low = 2, high = 9, type = "int"}
weights.tv = {low = 0, high = 2}
pipeline.implant.scale.high = {low = 0.8, high = 1.2}
"pipeline.implant.scale.low" = 0.5
optimizer.name = {choices = ["adam", "sgd", "bim"]}
optimizer.betas = {choices = [[0.9, 0.99], [0.5, 0.9]], when = {optimizer.name = "adam"}}
optimizer.momentum = {low = 0.5, high = 0.99, when = {"optimizer.name" = ["sgd", "bim"]}}
"""
CODE = {
    "seed": 7,
    "optimizer.learning_rate": (0.01, 1.0, "log"),
    "optimizer.name": ["adam", "sgd", "bim"],
    "optimizer.betas": {"choices": [[0.9, 0.99], [0.5, 0.9]], "when": {"optimizer.name": "adam"}},
    "optimizer.momentum": {"low": 0.5, "high": 0.99, "when": {"optimizer.name": ["sgd", "bim"]}},
    "train.batch_size": (2, 9, "int"),
    "weights.tv": (0, 2),
    "pipeline.implant.scale.high": (0.8, 1.2),
    "pipeline.implant.scale.low": 0.5,
}


def from_toml(text: str):
    return parse_space(tomllib.loads(text)["space"], toml=True)


def test_a_file_and_code_say_the_same():
    space = from_toml(TOML)
    other = parse_space(CODE)
    assert dict(space.fixed) == dict(other.fixed) == {"seed": 7, "pipeline.implant.scale.low": 0.5}
    assert dict(space.varied) == dict(other.varied)
    assert dict(space.when) == dict(other.when)
    assert space.varied["objective.weights.tv"] == Interval(0.0, 2.0)
    assert space.varied["optimizer.learning_rate"] == Interval(0.01, 1.0, log=True)
    assert space.varied["train.batch_size"] == Interval(2, 9, integer=True)
    assert space.varied["optimizer.name"] == Choice(("adam", "sgd", "bim"))
    assert space.when["optimizer.momentum"] == {"optimizer.name": ("sgd", "bim")}


def test_it_survives_json():
    space = parse_space(CODE)
    again = parse_space(encode_space(space))
    assert (again.fixed, again.varied, again.when) == (
        dict(space.fixed),
        dict(space.varied),
        dict(space.when),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a = [0.1, 1.0]", r"\{low = 0.1, high = 1.0\} for an interval or \{choices = \[0.1, 1.0\]\}"),
        ('a = ["x", "y", "z"]', r"\{low = ..., high = ...\} .* or \{choices = \['x', 'y', 'z'\]\}"),
        ("a = {low = 1, high = 1}", r"low must be less than high, got \(1, 1\); for one value, give 1"),
        ("a = {low = 2, high = 1}", r"low must be less than high, got \(2, 1\); swap the two"),
        ('a = {low = 0, high = 1, scale = "log"}', "must start above 0, got low = 0"),
        ('a = {low = -1, high = 1, scale = "log"}', "must start above 0, got low = -1"),
        ('a = {low = 0.5, high = 2, type = "int"}', r"must be integers, got \(0.5, 2\)"),
        ("a = {low = 0, high = inf}", "must be finite numbers, got inf"),
        ("a = {low = nan, high = 1}", "must be finite numbers, got nan"),
        ('a = {low = "0", high = 1}', "must be finite numbers, got '0'"),
        ("a = {low = false, high = 1}", "must be finite numbers, got False"),
        ("a = {low = 0}", "high is missing.*quote the whole name to fix one end: 'a.low' = 0"),
        ("a = {high = 1}", "low is missing.*'a.high' = 1"),
        ('a = {low = 0, high = 1, scale = "ln"}', "a.scale must be 'log' or 'linear', got 'ln'"),
        ('a = {low = 0, high = 1, type = "integer"}', "a.type must be 'int' or 'float', got 'integer'"),
        ("a = {low = 0, high = 1, scales = 1}", "unknown key 'scales'; did you mean 'scale'?"),
        ("a = {choices = []}", r"a list of at least one value, got \[\]"),
        ("a = {choices = 3}", "a list of at least one value, got 3"),
        ("a = {choices = [1, 2, 1]}", "1 occurs twice among the choices"),
        ("a = {choices = [1, {b = 2}]}", "a scalar or a list of scalars, got {'b': 2}"),
        ("a = {choices = [1], low = 0}", "unknown key 'low'"),
        ("a = {}", "an empty table"),
        ("a = 1", "no setting varies"),
        ("a = 2026-01-01", "expected a scalar, an interval or choices, got 2026-01-01"),
        ("a = {choices = [1, 2]}\nb = {low = 0, high = 1, when = {c = 1}}", "'c' must be a choice or scalar"),
        ("b = {low = 0, high = 1, when = {a = 1}}\na = {choices = [1, 2]}", "'a' must be a choice or scalar"),
        ("a = {choices = [1, 2]}\nb = {low = 0, high = 1, when = {a = 3}}", "a cannot be 3; it is one of"),
        ("a = {low = 0, high = 1, when = {a = 1}}", "'a' must be a choice or scalar above it"),
        ("a = {choices = [1, 2]}\nb = {low = 0, high = 1, when = 3}", "when must be a table"),
        ("a = {low = 0, high = 1}\nb = {low = 0, high = 1, when = {a = 1}}", "'a' must be a choice"),
        ("weights.a = {low=0, high=1}\nobjective.weights.a = 1", "objective.weights.a is given twice"),
    ],
)  # fmt: skip
def test_what_is_no_space_is_refused(line, message):
    with pytest.raises(SpaceError, match=message):
        from_toml(f"[space]\n{line}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1,), "expected \\(low, high\\).*a choice is a list"),
        ((0, 1, "lin"), "expected \\(low, high\\)"),
        ((0, 1, "int", "int"), "expected \\(low, high\\)"),
        (None, "got None"),
        ([], "at least one value"),
    ],
)
def test_what_is_no_shorthand_is_refused(value, message):
    with pytest.raises(SpaceError, match=message):
        parse_space({"a": value})


def test_both_marks_in_any_order():
    for value in ((1, 64, "log", "int"), (1, 64, "int", "log")):
        assert parse_space({"a": value}).varied["a"] == Interval(1, 64, True, True)


# Drawing


def test_draws_have_the_distributions_asked_for():
    drawn = parse_space(CODE).draw(random.key(0), 4000)
    rates = np.log([s["optimizer.learning_rate"] for s in drawn])
    assert stats.kstest(rates, stats.uniform(math.log(0.01), math.log(100)).cdf).pvalue > 0.01
    assert stats.kstest([s["objective.weights.tv"] for s in drawn], stats.uniform(0, 2).cdf).pvalue > 0.01
    sizes = np.bincount([s["train.batch_size"] for s in drawn])
    assert len(sizes) == 10
    assert not sizes[:2].any()
    assert stats.chisquare(sizes[2:]).pvalue > 0.01
    names = [s["optimizer.name"] for s in drawn]
    assert stats.chisquare([names.count(n) for n in ("adam", "sgd", "bim")]).pvalue > 0.01


def test_what_is_not_active_is_not_there():
    for settings in parse_space(CODE).draw(random.key(1), 200):
        assert ("optimizer.betas" in settings) == (settings["optimizer.name"] == "adam")
        assert ("optimizer.momentum" in settings) == (settings["optimizer.name"] != "adam")


def test_a_condition_on_what_is_not_there_does_not_hold():
    space = parse_space(
        {
            "a": [1, 2],
            "b": {"choices": [3, 4], "when": {"a": 1}},
            "c": {"low": 0, "high": 1, "when": {"b": 3}},
            "d": {"low": 0, "high": 1, "when": {"a": 2}},
        }
    )
    forms = {tuple(s) for s in space.draw(random.key(0), 100)}
    assert forms == {("a", "b", "c"), ("a", "b"), ("a", "d")}
    assert [tuple(s) for s in space.extremes()] == [
        *[("a",)] * 2, *[("a", "b")] * 2, *[("a", "b", "c")] * 2, *[("a", "d")] * 2,
    ]  # fmt: skip
    assert {s["a"] for s in space.extremes() if "d" in s} == {2}


def test_a_draw_does_not_depend_on_other_names():
    few, many = parse_space({"b": (0, 1)}), parse_space({"a": (0, 1), "b": (0, 1), "c": [1, 2]})
    assert [s["b"] for s in few.draw(random.key(3), 5)] == [s["b"] for s in many.draw(random.key(3), 5)]


@given(
    st.floats(1e-6, 1e3), st.floats(1.001, 1e4), st.booleans(), st.floats(0, 1, exclude_max=True)
)  # fmt: skip
def test_places_and_values_are_inverse(low, factor, log, unit):
    kind = Interval(low, low * factor, log)
    value = kind.at(unit)
    assert low <= value <= low * factor
    assert kind.unit(value) == pytest.approx(unit, abs=1e-6)


@given(st.integers(-20, 20), st.integers(1, 30), st.floats(0, 1))
def test_integers_stay_inside(low, width, unit):
    kind = Interval(low, low + width, integer=True)
    assert low <= kind.at(unit) <= low + width
    assert isinstance(kind.at(unit), int)
    assert 0 < kind.unit(kind.at(unit)) < 1


def test_the_grid_is_every_combination_once():
    space = parse_space(
        {
            "a": (1.0, 100.0, "log"),
            "n": (1, 2, "int"),
            "kind": ["x", "y"],
            "m": {"low": 0, "high": 1, "when": {"kind": "y"}},
        }
    )
    points = list(space.grid(3))
    assert combinations(space, 3) == len(points) == 3 * 2 * (1 + 3)
    assert len({tuple(p.items()) for p in points}) == len(points)
    assert sorted({p["a"] for p in points}) == pytest.approx([1, 10, 100])
    assert {p["n"] for p in points} == {1, 2}
    assert {p.get("m") for p in points} == {None, 0.0, 0.5, 1.0}


def test_points_of_the_cube():
    space = parse_space(CODE)
    settings = {
        "optimizer.learning_rate": 0.1,
        "optimizer.name": "bim",
        "optimizer.momentum": 0.5,
        "train.batch_size": 2,
        "objective.weights.tv": 2.0,
        "pipeline.implant.scale.high": 0.8,
    }
    # rate, three names, two betas (absent), momentum, batch size (the middle of its eighth), weight, scale
    assert space.encode(settings).tolist() == pytest.approx([0.5, 0, 0, 1, 0, 0, 0, 1 / 16, 1, 0])
    assert space.encode({**settings, "optimizer.name": "adam"} | {})[1:4].tolist() == [1, 0, 0]


def test_strangers_are_found():
    space = parse_space(CODE)
    settings = space.draw(random.key(5), 1)[0]
    assert space.foreign_setting(settings) is None
    assert space.foreign_setting(settings | {"x": 1}) == "x"
    assert space.foreign_setting(settings | {"optimizer.learning_rate": 2.0}) == "optimizer.learning_rate"
    assert space.foreign_setting(settings | {"optimizer.name": "adamw"}) == "optimizer.name"
    assert (
        space.foreign_setting({n: v for n, v in settings.items() if n != "train.batch_size"})
        == "train.batch_size"
    )
