"""Boxes and quads in a saved picture lie where the numbers say."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from cases import make_inputs
from PIL import Image

from fpatch.viz import Panel, plot_boxes, side_by_side, style

BLUE, ORANGE = style.rgb(style.TRUTH), style.rgb(style.FOUND)


def make_batch(**others):
    return {
        "image_id": torch.tensor([4]),
        "scene": torch.zeros(1, 3, 60, 90),
        "boxes": torch.tensor([[[20.0, 12.0, 70.0, 48.0], [1.0, 1.0, 89.0, 59.0]]]),
        "labels": torch.tensor([[1, 7]]),
        "box_valid": torch.tensor([[True, False]]),
        "quads": torch.tensor(
            [[[[10.0, 15], [40, 5], [50, 30], [15, 45]], [[2.0, 2], [80, 2], [80, 50], [2, 50]]]]
        ),
        "quad_patch": torch.tensor([[0, 0]]),
        "quad_valid": torch.tensor([[True, False]]),
        **others,
    }


def extent(path, color) -> Any:
    """Bounds (x0, y0, x1, y1) of what has a color, in pixels of the photograph, which is black on white."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    dark = np.argwhere((picture < 12).all(-1))[:, ::-1]
    # the title is black too, and lies above; the frame is the widest run of rows
    rows = np.flatnonzero((picture < 12).all(-1).mean(1) > 0.2)
    top, bottom, left, right = rows.min(), rows.max() + 1, dark[:, 0].min(), dark[:, 0].max() + 1
    found = np.argwhere(np.abs(picture - color).max(-1) < 12)[:, ::-1]
    if len(found) == 0:
        return None
    scale = np.array([90 / (right - left), 60 / (bottom - top)])
    return np.concatenate([(found.min(0) - (left, top)) * scale, (found.max(0) + 1 - (left, top)) * scale])


def test_boxes_and_quads_lie_where_the_numbers_say(tmp_path):
    plot_boxes(tmp_path / "all.png", make_batch(), ("person", "car"), ("hood",))
    np.testing.assert_allclose(extent(tmp_path / "all.png", BLUE), [20, 12, 70, 48], atol=1.0)
    np.testing.assert_allclose(extent(tmp_path / "all.png", ORANGE), [10, 5, 50, 45], atol=1.5)


def test_what_is_not_valid_is_left_out(tmp_path):
    none = torch.zeros(1, 2, dtype=torch.bool)
    plot_boxes(tmp_path / "none.png", make_batch(box_valid=none, quad_valid=none))
    assert extent(tmp_path / "none.png", BLUE) is None
    assert extent(tmp_path / "none.png", ORANGE) is None
    quads = make_batch()["quads"].clone()
    quads[0, 1] = math.nan
    batch = {"scene": torch.zeros(1, 3, 60, 90), "quads": quads}
    plot_boxes(tmp_path / "bare.png", batch)
    np.testing.assert_allclose(extent(tmp_path / "bare.png", ORANGE), [10, 5, 50, 45], atol=1.5)


def test_the_names_are_written(tmp_path):
    """Another name, another picture; what has no name is its number."""
    pictures = []
    for i, names in enumerate(
        [((), ()), (("person", "car"), ()), (("person", "1"), ("0",)), ((), ("hood",))]
    ):
        plot_boxes(tmp_path / f"{i}.png", make_batch(), *names)
        pictures.append(np.asarray(Image.open(tmp_path / f"{i}.png")))
    plain, car, numbers, hood = pictures
    assert not np.array_equal(plain, car)
    assert not np.array_equal(plain, hood)
    assert np.array_equal(plain, numbers)


def test_a_batch_of_three_in_rows_of_two(tmp_path):
    plot_boxes(tmp_path / "three.png", make_inputs(), ("car", "person"), ("hood", "roof"), columns=2)
    with Image.open(tmp_path / "three.png") as picture:
        assert picture.width == int(2 * 2.6 * style.DPI)
        assert picture.height == int(2 * (2.6 * 97 / 131 + 0.25) * style.DPI)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'fpatch\[plot\]'"):
        plot_boxes(tmp_path / "none.png", make_batch())


def test_a_long_caption_is_smaller_and_not_cut_off():
    for caption in ("patch", "patch, score 0.80 lower: 0.05 for the true class of so many classes"):
        (strip,) = side_by_side([[Panel(torch.ones(3, 20, 20), caption + "|")]]).mean(0, keepdim=True)
        written = (strip < 0.5).any(0).nonzero()[:, 0]
        assert 8 < int(written.min()) < 16
        assert int(written.max()) < 8 + 320 - 1, caption


@pytest.mark.parametrize(
    ("height", "width", "drawn"), [(2, 2000, 1), (2000, 2, 120), (1, 1, 40), (20, 40, 20)]
)
def test_images_of_any_aspect_are_drawn(height, width, drawn):
    figure = side_by_side([[Panel(torch.zeros(3, height, width), "")]], panel_px=40)
    dark = (figure < 0.1).all(0)
    assert int(dark.any(1).sum()) == drawn


def test_boxes_of_a_victim_that_has_run_wild_are_drawn_as_far_as_they_can_be():
    boxes = torch.tensor([[math.nan] * 4, [-1e30, 10.0, 1e30, 20.0], [4.0, -math.inf, 9.0, 9.0]])
    found = {"boxes": boxes, "scores": torch.full((3,), 0.9), "labels": torch.tensor([0, -1, 0])}
    panel = Panel(torch.zeros(3, 40, 40), "", found | {"valid": torch.ones(3, dtype=torch.bool)})
    figure = (255 * side_by_side([[panel]], ("truck",), panel_px=40)).byte()
    drawn = (figure == torch.tensor(ORANGE, dtype=torch.uint8)[:, None, None]).all(0)
    assert drawn[8 + 22 + 10, 8:48].all()  # from side to side, and nothing of the two others
    assert not drawn[:8].any()
