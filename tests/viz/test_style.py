"""Figures of every size: no text is cut off or covers another, and colors can be told apart."""

import itertools
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from sweeps import make_plan

from fpatch import metrics, random, viz
from fpatch.core.names import label
from fpatch.evaluation.by_class import ByClass, ClassResult
from fpatch.evaluation.conditions import TITLES
from fpatch.evaluation.transfer import Transfer
from fpatch.ops.intervals import wilson
from fpatch.runs.comparing import titles_of
from fpatch.runs.figures import _choose_extremes
from fpatch.runs.transfer import save_transfer
from fpatch.tune import parse_space
from fpatch.tune.folder.journal import Entry, Point, Trial
from fpatch.tune.output.figures import plot_importance, plot_parallel
from fpatch.viz import Panel, side_by_side, style
from fpatch.viz.class_figure import plot_classes
from fpatch.viz.names import clip_apart, wrap_name

LONG = "a study of a very long name, which describes $the_victim/and the.patch"


def rate(share, count=40):
    return wilson(np.arange(count) < share * count, np.arange(count))


def texts_of(figure):
    """All texts that are drawn."""
    ticks = [tick for axes in figure.findobj(Axes) for a in (axes.xaxis, axes.yaxis) for tick in all_ticks(a)]
    hidden = {id(text) for tick, is_drawn in ticks if not is_drawn for text in (tick.label1, tick.label2)}
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [t for t in found if id(t) not in hidden and (t.axes is None or t.axes.axison)]


def all_ticks(axis):
    """The ticks of an axis, and whether they are within its limits."""
    drawn = {id(tick) for tick in axis._update_ticks()}
    return [(tick, id(tick) in drawn) for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())]


def is_upright(text):
    return text.get_rotation() % 90 == 0


def assert_legible(figure):
    """All texts are inside the figure, of six points at least, and no two upright ones cover each other."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(t, t.get_window_extent(renderer)) for t in texts_of(figure)]
    assert len(boxes) > 3
    bounds = figure.bbox
    for text, box in boxes:
        where = f"{text.get_text()!r} {box.extents} in {bounds.extents}"
        assert box.x0 >= -1 and box.y0 >= -1, where  # noqa: PT018
        assert box.x1 <= bounds.x1 + 1 and box.y1 <= bounds.y1 + 1, where  # noqa: PT018
        assert text.get_fontsize() >= 6
    upright = [(t, b) for t, b in boxes if is_upright(t)]
    for (one, a), (other, b) in itertools.combinations(upright, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(wide, high) <= 1.5, f"{one.get_text()!r} covers {other.get_text()!r}"


def written(figure):
    return " ".join(t.get_text().replace("\n", "") for t in texts_of(figure))


def make_transfer(num_runs, num_also, name):
    folders = [f"20260101-{i:06d}-x" for i in range(num_runs + num_also)]
    titles = {folder: f"{name} {i}" for i, folder in enumerate(folders)}
    rates = {
        f: {g: rate(0.8 if f == g else 0.3) for g in folders} | {"noise": rate(0.0), "flat": rate(0.1)}
        for f in folders[:num_runs]
    }
    return Transfer(rates, {f: rate(1.0) for f in rates}, {}, titles=titles)


@pytest.mark.parametrize(
    ("num_runs", "num_also", "name"),
    [(1, 1, "victim"), (2, 0, "victim"), (2, 0, LONG), (4, 1, LONG), (10, 2, "victim"), (30, 0, LONG)],
)
def test_transfer_of_any_number_of_runs(saved_figures, tmp_path, num_runs, num_also, name):
    found = make_transfer(num_runs, num_also, name)
    save_transfer(tmp_path / "transfer", found)
    (figure,) = saved_figures
    assert_legible(figure)
    ticks = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert len(ticks) == num_runs + num_also + 2
    assert len(set(ticks)) == len(ticks)  # clipped names can be told apart
    assert ticks[-2:] == ["noise", "flat print"]
    assert "20260101" not in written(figure)
    cells = [t.get_text() for t in figure.axes[0].texts]
    assert sum(text.isdigit() for text in cells) == num_runs * len(ticks)
    assert max(figure.get_size_inches()) < 16
    frames = [p for p in figure.axes[0].patches if not p.get_fill()]
    assert len(frames) == 2 * num_runs  # ink on white


def test_studies_of_one_name_are_told_apart_by_the_rest_of_the_folder():
    found = titles_of({"20260101-a": "a", "20260102-a": "a", "20260103-b": "b"})
    assert found == {"20260101-a": "a (20260101)", "20260102-a": "a (20260102)", "20260103-b": "b"}


def make_map(wide, high, name="camera/exposure/stops"):
    rates = [[rate((i + j) / (wide + high)) for i in range(wide)] for j in range(high)]
    over = [[metrics.Rate(r.value - 0.3, r.low - 0.3, r.high - 0.3, 40, 40) for r in row] for row in rates]
    x, y = np.linspace(-1, 1, wide).tolist(), np.linspace(0.5, 1, high).tolist()
    return viz.HeatMap((name, x), ("implant/scale", y), rates, over=over, clean=rates, control="noise")


@pytest.mark.parametrize(("wide", "high"), [(1, 1), (1, 5), (3, 3), (5, 2), (12, 12), (2, 20), (20, 2)])
def test_grids_of_any_size(saved_figures, tmp_path, wide, high):
    asked = f"answered '{label(LONG)}' with the patch (%)"
    viz.plot_heat_maps(
        tmp_path / "grid.png", [make_map(wide, high, label(LONG))], asked, f"{LONG}: test-grid"
    )
    (figure,) = saved_figures
    assert_legible(figure)
    left, right = figure.axes[:2]
    for axis in (left, right):
        assert len(axis.get_xticklabels()) == wide
        assert sum(t.get_text().lstrip("+-").isdigit() for t in axis.texts) == wide * high
    is_large = max(wide, high) <= 6
    assert ("n 40" in written(figure)) == is_large
    assert ("40 rows per cell" in written(figure)) != is_large


def test_a_grid_of_three_axes(saved_figures, tmp_path):
    viz.plot_heat_maps(tmp_path / "grid.png", [make_map(3, 3), make_map(5, 3), make_map(3, 5)])
    assert_legible(saved_figures[0])


@pytest.mark.parametrize("num_points", [1, 2, 12])
@pytest.mark.parametrize("names", [("patch", "noise"), ("patch", *TITLES, LONG, f"{LONG} too")])
def test_curves_of_any_number(saved_figures, tmp_path, num_points, names):
    xs = np.linspace(-1, 1, num_points).tolist()
    curves = {name: [rate(0.1 + 0.1 * i)] * num_points for i, name in enumerate(names)}
    panels = {"camera/exposure/stops": (xs, curves), label(LONG): (xs, curves)}
    viz.plot_curves(tmp_path / "curves.png", panels, LONG, TITLES)
    assert_legible(saved_figures[0])
    assert "trained patch" in written(saved_figures[0])


def make_classes(num_classes, name):
    names = [f"{name} {i}" for i in range(num_classes)]
    classes = {}
    for i, own in enumerate(names):
        answers = {own: 20, "(no detection)": 15, names[(i + 1) % num_classes]: 5 + i}
        rates = {"patch": rate(0.5), "noise": rate(0.1), "flat": rate(0.0), "shuffled": rate(0.2)}
        bad = {}
        if i == 1:
            bad, rates["patch"] = {"patch": 2}, metrics.Rate(np.nan, np.nan, np.nan, 40, 40)
            answers["(not finite)"] = 2
        classes[own] = ClassResult(rate(1.0), rates, bad, {"patch": answers, "none": {own: 40 + i}})
    return ByClass(classes)


@pytest.mark.parametrize(
    ("num_classes", "name"), [(1, "stop"), (1, LONG), (3, LONG), (80, "class"), (80, LONG)]
)
def test_classes_of_any_number(saved_figures, tmp_path, num_classes, name):
    found = make_classes(num_classes, name)
    plot_classes(tmp_path / "classes.png", found, "attack success (%)", f"{LONG}: test by class")
    (figure,) = saved_figures
    assert_legible(figure)
    rates, without, patched = figure.axes
    names = [t.get_text() for t in rates.get_yticklabels()]
    assert len(set(names)) == len(names) == min(num_classes, 10)
    assert ("more classes are not shown" in written(figure)) == (num_classes > 10)
    shown = [found.classes[n] for n in found.largest(10)]
    for axis, condition in ((without, "none"), (patched, "patch")):
        total = sum(int(t.get_text()) for t in axis.texts)
        rows = [sum(entry.answers[condition].values()) for entry in shown]
        assert total == sum(rows)
    finite = all(not entry.not_finite for entry in shown)
    assert ("rows are not finite" in written(figure)) != finite


SPACES = {
    "one": {"optimizer.learning_rate": (0.001, 1.0, "log")},
    "kinds": {
        "optimizer.learning_rate": (0.001, 1.0, "log"),
        "pipeline.camera.exposure.stops.low": (-1.0, 0.0),
        "pipeline.camera.exposure.stops.high": (0.0, 1.0),
        "optimizer.schedule": ["constant", "cosine", "a schedule of a very long name"],
        "optimizer.period": {"low": 1, "high": 9, "when": {"optimizer.schedule": "cosine"}},
    },
    "many": {f"pipeline.group{i}.a_long_stage_name.some_setting": (0.0, 1.0) for i in range(14)},
}


@pytest.mark.parametrize("space", SPACES)
def test_sweeps_of_any_number_of_settings(saved_figures, tmp_path, space):
    plan = make_plan(tmp_path)._replace(space=parse_space(SPACES[space]))
    drawn = plan.space.draw(random.key(0), 20)
    entries = [
        Entry(Trial(f"{i:04d}", s, 0), [Point(6, next(iter(s.values())) ** 2, 0.1)], None)
        for i, s in enumerate(drawn)
    ]
    plot_parallel(tmp_path / "parallel.png", plan, entries)
    plot_importance(tmp_path / "importance.png", plan, entries)
    for figure in saved_figures:
        assert_legible(figure)
        flat = written(figure)
        for name in SPACES[space]:
            assert name.split(".")[-1][-4:] in flat, name


def test_an_answer_that_is_no_true_class_has_a_column(saved_figures, tmp_path):
    entry = ClassResult(rate(1.0), {"patch": rate(1.0)}, {}, {"patch": {"toaster": 40}, "none": {"stop": 40}})
    plot_classes(tmp_path / "classes.png", ByClass({"stop": entry}), "attack success (%)")
    rates, answers, _ = saved_figures[0].axes
    assert [t.get_text() for t in answers.get_xticklabels()] == ["stop", "toaster"]
    assert [t.get_text() for t in rates.get_yticklabels()] == ["stop (40)"]
    assert [t.get_text() for t in answers.get_yticklabels()] == ["stop"]  # its rows count all answers


def test_effects_show_every_image_once():
    image_id = np.array([5, 5, 5, 1, 1, 2, 2, 2, 9, 5])
    order = np.arange(10)
    chosen = _choose_extremes(order, image_id)
    assert len(set(image_id[chosen])) == len(chosen) == 4
    assert chosen[0] == 0  # the largest effect of all
    assert (np.diff(chosen) > 0).all()
    many = np.arange(40) // 2
    chosen = _choose_extremes(np.arange(40), many)
    assert chosen.tolist() == [0, 2, 4, 35, 37, 39]  # the least of all is the last
    assert _choose_extremes(np.arange(3), np.array([7, 7, 7])).tolist() == [0]


def test_a_long_caption_is_broken_and_stays_in_its_panel():
    long = "exposure -1, sigma_px 2, scale 0.5, success 35 %: 'speed limit 30', 0.05 for 'end of all limits'"
    for px in (320, 640):
        one = side_by_side([[Panel(torch.ones(3, 20, 20), "short")] * 2], panel_px=px)
        two = side_by_side(
            [[Panel(torch.ones(3, 20, 20), "short"), Panel(torch.ones(3, 20, 20), long)]], panel_px=px
        )
        assert two.shape[1] > one.shape[1]
        unit, dark = px // 320, (two.mean(0) < 0.5).nonzero()
        columns = dark[:, 1][dark[:, 1] > px + 12 * unit]
        assert int(columns.max()) < 2 * px + 16 * unit
        assert int(dark[:, 0].max()) < (22 + 16 + 8) * unit  # above the image


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "none": np.eye(3).tolist(),
}


def to_lab(color, deficiency):
    levels = np.array(style.rgb(color)) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = np.cbrt(xyz / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colors_of_conditions_and_boxes_can_be_told_apart(deficiency):
    looks = [
        style.condition_style(c, i) for i, c in enumerate(("patch", "none", "noise", "flat", "shuffled"))
    ]
    assert len({look["marker"] for look in looks}) == len(looks)
    colors = [look["color"] for look in looks]
    for one, other in [*itertools.combinations(colors, 2), (style.FOUND, style.TRUTH)]:
        assert np.linalg.norm(to_lab(one, deficiency) - to_lab(other, deficiency)) > 12, (one, other)
    with pytest.raises(AssertionError):  # red and green, as the boxes once were
        assert np.linalg.norm(to_lab("#c05020", "deuteranopia") - to_lab("#808000", "deuteranopia")) > 12


def test_names_keep_their_ends_apart():
    names = [f"{LONG} {i}" for i in range(12)]
    assert len(set(clip_apart(names))) == 12
    assert max(map(len, clip_apart(names))) == 24
    same_ends = [f"the same beginning {i} and the same end" for i in range(3)]
    assert len(set(clip_apart(same_ends, 12))) == 3
    assert wrap_name("optimizer.learning_rate") == "optimizer.\nlearning_rate"
    assert "0.5\n" not in wrap_name("values of 0.5125 and 0.75", 12)


@pytest.mark.parametrize("draw", [viz.plot_curves, viz.plot_heat_maps])
def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    panels = {"x": ([1.0], {"patch": [rate(0.5)]})} if draw is viz.plot_curves else [make_map(1, 1)]
    with pytest.raises(ImportError, match=r"pip install 'fpatch\[plot\]'"):
        draw(tmp_path / "none.png", panels)


SETTINGS = {
    "axes.grid": True, "figure.autolayout": True, "image.origin": "lower", "legend.loc": "lower left",
    "savefig.bbox": "tight", "savefig.transparent": True, "xtick.labelbottom": False,
    "ytick.labelleft": False,
}  # fmt: skip
"""What a matplotlibrc of the user, or of the folder in which a command starts, may say."""


def test_settings_of_matplotlib_change_no_figure(tmp_path):
    """Ticks keep their labels, and images their upper row."""
    image = torch.zeros(3, 8, 8)
    image[:, :2] = 1.0

    def draw(name: str) -> list[bytes]:
        viz.plot_heat_maps(tmp_path / f"{name}-map.png", [make_map(3, 2)])
        viz.plot_curves(tmp_path / f"{name}-curves.png", {"x": ([1.0, 2.0], {"patch": [rate(0.5)] * 2})})
        viz.plot(image, path=tmp_path / f"{name}-image.png")
        return [(tmp_path / f"{name}-{kind}.png").read_bytes() for kind in ("map", "curves", "image")]

    expected = draw("plain")
    with matplotlib.rc_context(SETTINGS):
        found = draw("changed")
        assert matplotlib.rcParams["axes.grid"]  # which the caller keeps
    assert found[:2] == expected[:2]
    with Image.open(tmp_path / "changed-image.png") as picture:
        levels = np.asarray(picture.convert("L"))
    dark = np.flatnonzero(levels.min(1) < 50)
    assert dark.mean() > len(levels) / 2  # the dark rows lie below the bright ones
