"""While tests run, a call of fpatch with a wrong type or shape raises."""

from collections.abc import Iterator

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation as Violation
from jaxtyping import Float
from torch import Tensor
from typecheck import check, unchecked

from fpatch import create, losses
from fpatch.core.progress import silent
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
        lambda: create.pixels([3, 4, 5]),
        lambda: losses.vanish(num_boxes=2.5),
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
    assert make_inner(1)(BOXES[0]).shape == (3,)
    assert list(check(count_to)(2)) == [0, 1]


def test_unchecked_a_mistake_passes():
    with unchecked():
        assert box_area(BOXES.bool()).shape == (2, 3)
        assert make_inner(0)(BOXES[0]) is not None
    with pytest.raises(Violation):
        box_area(BOXES.bool())
