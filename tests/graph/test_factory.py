"""The call of a factory, and what `help` and a notebook show of it."""

# pyright: reportCallIssue=false
# wrong names are given on purpose, to see them refused

import inspect
import pickle
import pydoc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_layout import STAGES
from typecheck import unchecked

import fpatch
from fpatch import compose, data, implant, infer, losses
from fpatch.core.types import Range
from fpatch.graph.stage import define, deterministic
from fpatch.study.settings import DataConfig, EvaluateConfig, LogConfig, TrainConfig


@pytest.mark.parametrize("identity", sorted(STAGES))
def test_help_shows_settings_defaults_purpose_and_an_example(identity):
    definition = STAGES[identity]
    shown = pydoc.plain(pydoc.render_doc(definition))
    call = shown.partition(") -> Stage")[0]
    for name, setting in inspect.signature(definition).parameters.items():
        assert f"{name}: " in call
        if isinstance(setting.default, Range):
            assert f"Range = ({setting.default.low}, {setting.default.high})" in call
        elif isinstance(setting.default, int | float | str):
            assert f" = {setting.default!r}" in call
    about = inspect.cleandoc(inspect.getmodule(definition.apply).__doc__).partition("\n")[0]
    assert about in shown
    assert ">>> " in shown
    assert "Attributes:" not in shown
    assert f"Writes: {', '.join(definition.writes) or 'nothing'}" in shown


def test_help_of_a_stage_with_a_plain_config_shows_its_call():
    @dataclass(frozen=True)
    class Dim:
        gain: float = 0.5

    dim = define("dim", Dim, deterministic, lambda *_: {}, reads=("image",), writes=("image",))
    lines = pydoc.plain(pydoc.render_doc(dim)).split("\n")
    assert f"    {__name__}:dim(gain: float = 0.5) -> Stage" in lines
    assert "Dim(" not in "\n".join(lines)


def test_help_of_a_loader_is_that_of_its_function():
    shown = pydoc.plain(pydoc.render_doc(infer.torchvision_model))
    assert "infer.torchvision_model(weights: str | pathlib.Path | None = None, *, architecture: str" in shown
    assert "Make a network of torchvision in evaluation mode" in shown
    assert list(inspect.signature(data.image_file).parameters) == ["path"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: compose.exposure(stop=(-1.0, 1.0)),
            "compose.exposure: no setting 'stop'; did you mean",
        ),
        (lambda: implant.warp(scales=(1, 1)), "implant.warp: no setting 'scales'; did you mean 'scale'?"),
        (lambda: losses.hallucinate(), "losses.hallucinate: the setting 'label' is required; add it"),
        (
            lambda: compose.exposure((0, 1), stops=(0, 1)),
            "exposure: the setting 'stops' is given twice",
        ),
        (lambda: compose.exposure(-1.0, 1.0), "compose.exposure has the settings stops, got 2 values"),
        (lambda: infer.ultralytics_model(seeds=1), "did you mean 'seed'?"),
        (lambda: data.image_file(pth="a.png"), "data.image_file: no argument 'pth'; did you mean 'path'?"),
        (lambda: fpatch.Optimizer(learning_rat=0.1), "Optimizer: no keyword 'learning_rat'; did you mean"),
        (lambda: fpatch.Study(seeds=1), "Study: no keyword 'seeds'; did you mean 'seed'?"),
        (lambda: TrainConfig(num_step=3), "TrainConfig: no keyword 'num_step'; did you mean 'num_steps'?"),
        (lambda: EvaluateConfig(drws=3), "EvaluateConfig: no keyword 'drws'"),
        (
            lambda: LogConfig(tensorbord=True),
            "LogConfig: no keyword 'tensorbord'; did you mean",
        ),
    ],
)
def test_a_typo_gets_the_nearest_name(call, message):
    with pytest.raises(TypeError) as raised:
        call()
    assert message in str(raised.value)


@pytest.mark.parametrize("stops", [(0.0,), (0.0, 1.0, 2.0), (0.0, "x"), [None, 1.0]])
def test_a_range_is_two_numbers(stops):
    with pytest.raises(ValueError, match=r"compose\.exposure\(stops\) must be two numbers \(low, high\)"):
        compose.exposure(stops)


def test_a_factory_and_its_stages_pickle():
    made = pickle.loads(pickle.dumps((compose.exposure, compose.exposure([-2, 2]))))
    assert made == (compose.exposure, compose.exposure(Range(-2, 2)))
    assert repr(made[0]) == "compose.exposure"


SCALARS = [
    (identity, name)
    for identity, definition in sorted(STAGES.items())
    for name, setting in inspect.signature(definition).parameters.items()
    if type(setting.default) in (int, float, Range)
]


@pytest.mark.parametrize(("identity", "name"), SCALARS)
def test_a_setting_of_another_type_is_named(identity, name):
    definition = STAGES[identity]
    parameters = inspect.signature(definition).parameters
    required = {n: object() for n, p in parameters.items() if p.default is p.empty}
    for value in "wide", object(), [None]:
        with pytest.raises(ValueError, match=rf"{identity}\({name}\)(: expected| must be two numbers)"):
            definition(**{name: value}, **required)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fpatch.Optimizer(learning_rate="fast"), r"Optimizer\(learning_rate\): expected a number"),
        (
            lambda: DataConfig("a.csv", size=96),
            r"DataConfig\(size\): expected \[a whole number, a whole number\], got 96",
        ),
        (lambda: TrainConfig(num_steps="many"), r"TrainConfig\(num_steps\): expected a whole number"),
    ],
)
def test_a_section_of_another_type_is_named(make, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        make()


def test_a_section_takes_a_list_for_a_pair():
    with unchecked():
        listed = DataConfig("a.csv", size=[64, 96])
    assert listed == DataConfig("a.csv", size=(64, 96))


@pytest.mark.parametrize(
    "given",
    [Range("a", 1.0), ("a", 1.0), (None, 1.0), (0.0, 1.0, 2.0), np.zeros(3), {"low": 0.0}, ["0", "1"]],
)
def test_a_range_of_something_else_than_two_numbers_names_the_setting(given):
    with unchecked(), pytest.raises(ValueError, match=r"exposure\(stops\) must be two numbers \(low, high\)"):
        compose.exposure(given)


@pytest.mark.parametrize(
    "given", [np.array([-0.5, 0.5]), torch.tensor([-0.5, 0.5]), {"low": -0.5, "high": 0.5}, [-0.5, 0.5]]
)
def test_two_numbers_of_any_container_are_a_range(given):
    with unchecked():
        assert compose.exposure(given).config.stops == Range(-0.5, 0.5)
