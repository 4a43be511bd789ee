"""While tests run, a call of fpatch with a wrong type or shape raises."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation as Violation
from jaxtyping import Float
from torch import Tensor
from typecheck import check, unchecked

import fpatch
from fpatch import compose, create
from fpatch.core.progress import silent
from fpatch.core.types import Range
from fpatch.ops.geometry import box_area, pairwise_iou
from fpatch.study.settings import TrainConfig

BOXES = torch.zeros(2, 3, 4)


def make_inner(height: int):
    """Functions of one `def`, which differ in a default and in what they close over."""

    def inner(x: Float[Tensor, "b c"], rows: int = height) -> Float[Tensor, " b"]:
        return x.sum(1) if height else x

    return check(inner)


def count_to(n: int) -> Iterator[int]:
    yield from range(n)


@pytest.mark.parametrize(
    "call",
    [
        lambda: box_area(BOXES.bool()),
        lambda: box_area(BOXES[..., :3]),
        lambda: pairwise_iou(BOXES, torch.zeros(3, 5, 4)),
        lambda: silent("task", 1, "10", ""),
        lambda: TrainConfig(num_steps="6"),
        lambda: make_inner(1)(BOXES[0].long()),
        lambda: make_inner(1)(BOXES[0], 2.5),
        lambda: make_inner(0)(BOXES[0]),
        lambda: list(check(count_to)(2.0)),
    ],
)
def test_a_mistake_raises(call):
    with pytest.raises(Violation):
        call()


def test_what_is_right_passes():
    assert box_area(BOXES).shape == (2, 3)
    assert box_area(BOXES[0]).shape == (3,)
    assert pairwise_iou(BOXES, torch.zeros(2, 5, 4)).shape == (2, 3, 5)
    assert TrainConfig(num_steps=6).num_steps == 6
    assert compose.exposure((-1.0, 1.0)) == compose.exposure([-1.0, 1.0]) == compose.exposure()
    assert create.pixels({"hood": [3, 4, 5]}, clamp=(0.1, 0.9)).config.clamp == Range(0.1, 0.9)
    assert make_inner(1)(BOXES[0]).shape == (3,)
    assert list(check(count_to)(2)) == [0, 1]


def test_unchecked_a_mistake_passes():
    with unchecked():
        assert box_area(BOXES.bool()).shape == (2, 3)
        assert make_inner(0)(BOXES[0]) is not None
    with pytest.raises(Violation):
        box_area(BOXES.bool())


PAIRS = """
from dataclasses import dataclass

from fpatch import Range, compose, create, define, deterministic, implant

compose.exposure((-1.0, 1.0)), compose.exposure([-1, 1]), compose.exposure(stops=Range(-1.0, 1.0))
create.pixels({"hood": (3, 4, 4)}, start=(0.2, 0.8), clamp=(0.1, 0.9)), implant.warp(scale=(0.5, 1.0))

@dataclass(frozen=True)
class Own:
    gain: Range = Range(0.5, 1.0)

def middle(config: Own) -> float:
    low, high = config.gain
    return config.gain.low + (high - low) / 2

own = define("own", Own, deterministic, lambda *_: {}, reads=(), writes=())
own((0.5, 1.0))
"""
WRONG = ('compose.exposure("x")', "compose.exposure((1.0,))", "own((0.5, 1.0, 2.0))", "own(gains=(0.5, 1.0))")


@pytest.mark.slow
def test_pyright_takes_a_pair_for_a_range(tmp_path):
    """A pair is given, a range is read, and other values stay errors."""
    page = tmp_path / "pairs.py"
    page.write_text(PAIRS + "\n".join(WRONG) + "\n")
    python = ["--pythonpath", sys.executable, "--level", "error"]
    command = [sys.executable, "-m", "pyright", *python, str(page)]
    done = subprocess.run(command, cwd=Path(fpatch.__file__).parents[1], capture_output=True, text=True)
    first = len(PAIRS.splitlines()) + 1
    assert [int(line.split(":")[1]) for line in done.stdout.splitlines() if " - error: " in line] == list(
        range(first, first + len(WRONG))
    ), done.stdout
