"""Edited samples: a value that no setting draws is refused before anything is measured with it."""

import math

import numpy as np
import pytest

from fpatch import compose, create, implant
from fpatch.cli.main import main
from fpatch.graph.drawable import check_drawable
from fpatch.graph.pipeline import pipeline

PARTS = pipeline(
    {
        "pixels": create.pixels({"hood": (3, 4, 4)}),
        "implant": implant.fixed_ratio(0.5),
        "camera": {"exposure": compose.exposure((-1.0, 1.0))},
    }
)


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("implant/opacity", 1.5, "opacity must be between 0 and 1"),
        ("implant/opacity", -0.1, "opacity must be between 0 and 1"),
        ("implant/opacity/0", 2.0, "opacity must be between 0 and 1"),
        ("implant/opacity", [0.5, math.nan], "opacity must be between 0 and 1"),
        ("implant/ratio", -1.0, "fixed_ratio(ratio) must be between 0.001 and 4"),
        ("implant/ratio", np.array([0.5, 100.0]), "fixed_ratio(ratio) must be between 0.001 and 4"),
        ("camera/exposure/stops", 1e9, "exposure(stops) must be (low, high)"),
    ],
)
def test_a_value_that_no_setting_draws_is_refused(path, value, rule):
    with pytest.raises(ValueError, match="cannot draw it") as raised:
        check_drawable(PARTS, {path: value})
    assert str(raised.value).startswith(f"{path} = ")
    assert rule in str(raised.value)


def test_all_other_values_pass():
    check_drawable(PARTS, {"implant/opacity": [0, 0.5, 1], "implant/ratio": 4.0})
    check_drawable(PARTS, {"implant/offset_frac": 0.5, "camera/exposure/stops": -3.0, "unknown": 7})


@pytest.mark.parametrize(
    "words", [("replay", "--set", "implant/opacity=5"), ("grid", "--over", "implant/opacity=0,5")]
)
def test_commands_measure_no_opacity_beyond_one(trained, capsys, words):
    command, *more = words
    assert main([command, str(trained.folder), *more]) == 2
    assert "implant/opacity = 5: implant.warp cannot draw it" in capsys.readouterr().err
