"""Labels of boxes do not cover each other, and the best answer is on top."""

import re

import matplotlib.figure
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.transforms import Bbox

from fpatch.viz import Panel, plot_boxes, side_by_side, style
from fpatch.viz._labels import Label, corners_at, place_labels
from fpatch.viz.names import clip_name

BOUNDS = (0.0, 22.0, 320.0, 262.0)
BOXES = st.tuples(st.integers(-20, 300), st.integers(0, 250), st.integers(1, 200), st.integers(1, 200))


def overlap(a, b):
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide > 1e-6 and high > 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(BOXES, min_size=2, max_size=8), st.integers(20, 90))
def test_eight_labels_anywhere_never_cover_each_other_nor_leave_the_image(boxes, width):
    size = (float(width), 16.0)
    labels = [Label(size, corners_at((x, y, x + w, y + h), size)) for x, y, w, h in boxes]
    placed = [(x, y, x + size[0], y + size[1]) for x, y in place_labels(labels, BOUNDS)]
    assert not any(overlap(a, b) for i, a in enumerate(placed) for b in placed[:i])
    for x0, y0, x1, y1 in placed:
        assert (x0 >= BOUNDS[0], y0 >= BOUNDS[1], x1 <= BOUNDS[2], y1 <= BOUNDS[3]) == (True,) * 4


def test_where_all_is_full_the_least_is_covered():
    full = [Label((100.0, 50.0), [(0.0, 0.0)])] * 4
    placed = place_labels([*full, Label((10.0, 10.0), [(3.0, 3.0)])], (0.0, 0.0, 100.0, 200.0))
    assert placed[:4] == [(0.0, 0.0), (0.0, 50.0), (0.0, 100.0), (0.0, 150.0)]
    assert placed[4] == (3.0, 3.0)


def draw(scores, labels, box=(20.0, 40.0, 140.0, 100.0)):
    found = {
        "boxes": torch.tensor([box] * len(scores)),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels),
        "valid": torch.ones(len(scores), dtype=torch.bool),
    }
    panel = Panel(torch.zeros(3, 120, 160), "", found)
    return side_by_side([[panel]], ("bird", "dog"), score=0.3, panel_px=160)


def test_the_best_answer_keeps_its_place_and_lies_on_top():
    """A weaker answer of the same box, in any order, leaves every pixel of the best one as it is."""
    alone = draw([0.61], [1])
    orange = torch.tensor(style.rgb(style.FOUND))[:, None, None] / 255
    drawn = (alone - orange).abs().amax(0) < 0.01
    for scores, labels in (([0.61, 0.4], [1, 0]), ([0.4, 0.61], [0, 1])):
        both = draw(scores, labels)
        # the label above the box: rows of the strip of the box's top edge and above
        rows = slice(8 + 22 + 15, 8 + 22 + 40)
        assert torch.equal(both[:, rows], alone[:, rows])
        assert drawn[rows].any()
        assert not torch.equal(both, alone)  # the weaker one is written too
    assert torch.equal(draw([0.61, 0.4], [1, 0]), draw([0.4, 0.61], [0, 1]))


def test_a_label_at_the_right_edge_is_not_cut_off():
    figure = draw([0.9], [1], (150.0, 40.0, 170.0, 80.0))
    text = (figure.amin(0) > 0.9)[8 + 22 : -8, 8:-8].any(0).nonzero()[:, 0]
    assert len(text) > 20  # "dog 0.90" in white on orange, inside the panel
    assert int(text.max()) < 159


def test_names_of_objects_and_patches_do_not_cover_each_other(tmp_path, monkeypatch):
    kept = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))
    )
    quad = torch.tensor([[30.0, 25.0], [60.0, 25.0], [60.0, 45.0], [30.0, 45.0]])
    batch = {
        "image": torch.zeros(1, 3, 60, 90),
        "boxes": torch.tensor([[[20.0, 12.0, 70.0, 48.0], [20.0, 12.0, 70.0, 48.0], [84.0, 0.0, 90.0, 5.0]]]),
        "labels": torch.tensor([[0, 1, 0]]),
        "quads": torch.stack([quad, quad + 1])[None],
        "quad_patch": torch.tensor([[0, 1]]),
    }
    plot_boxes(tmp_path / "a.png", batch, ("person", "wheelbarrow"), ("hood", "roof"))
    (figure,) = kept
    axis = figure.axes[0]
    boxes = [tuple(t.get_bbox_patch().get_window_extent().extents) for t in axis.texts]
    assert len(boxes) == 5
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axis.bbox.extents
    for box in boxes:
        assert box[0] >= frame[0] - 1
        assert box[2] <= frame[2] + 1


def test_no_label_covers_a_place_that_is_smaller_than_it(tmp_path, monkeypatch):
    corners = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    quads = torch.stack([corners * side + at for side, at in ((9, 60), (8, 75), (60, 100))])[None]
    box = torch.tensor([[[59.0, 59, 86, 86]]])
    batch = {"image": torch.full((1, 3, 200, 200), 0.5), "quads": quads}
    batch |= {"boxes": box, "labels": torch.zeros(1, 1, dtype=torch.int64)}
    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *a, **k: figures.append(figure))
    plot_boxes(tmp_path / "a.png", batch, patch_names=["hood 1.00", "roof 1.00", "ground 1.00"])
    figures[0].draw_without_rendering()
    axis = figures[0].axes[0]
    places = [axis.transData.transform(quad) for quad in quads[0].numpy()]
    for text in axis.texts:
        extent = text.get_bbox_patch().get_window_extent()
        covered = [extent.overlaps(Bbox([q.min(0), q.max(0)]).padded(-0.5)) for q in places]
        assert covered == [False, False, text.get_text() == "ground 1.00"]


@given(st.text("ab 12345", min_size=30, max_size=60), st.integers(12, 28))
def test_a_clipped_name_has_its_width_and_whole_numbers(name, width):
    clipped = clip_name(name, width)
    assert len(clipped) <= width
    shown = set(re.findall("[0-9]+", clipped))
    assert shown <= set(re.findall("[0-9]+", name)) or max(map(len, re.findall("[0-9]+", name))) > 4
