"""Objects of another type in the sections of a study: named when it is made, with the way out."""

import dataclasses

import pytest
import torch
from typecheck import unchecked

import fpatch
from fpatch.demo.tiny import tiny_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny_study(tmp_path_factory.mktemp("tiny"))


ADAM = torch.optim.Adam([torch.zeros(1)])
WRONG = {
    "optimizer": [ADAM, fpatch.make_optimizer(fpatch.Optimizer(), 10), "adam"],
    "pipeline": [{"pixels": 1}, torch.nn.Identity()],
    "data": ["placements.csv", {"size": (24, 32)}],
    "objective": [{"vanish": 1.0}],
    "train": [{"num_steps": 3}],
    "evaluate": [None],
    "log": [False],
    "device": [torch.device("cpu")],
    "name": [3],
}


def test_every_section_has_a_wrong_value():
    assert set(WRONG) == {f.name for f in dataclasses.fields(fpatch.Study)} - {"seed"}


@pytest.mark.parametrize(("section", "value"), [(s, v) for s, values in WRONG.items() for v in values])
def test_a_section_of_another_type_is_named(study, section, value):
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"^(Study\({section}\): expected|{section} must be) .*, got "),
    ):
        dataclasses.replace(study, **{section: value})


def test_a_size_is_two_numbers(study):
    with unchecked(), pytest.raises(ValueError, match=r"\(height, width\), got 96; for a square, \(96, 96\)"):
        fpatch.data.targets(study.data.placements, size=96)
