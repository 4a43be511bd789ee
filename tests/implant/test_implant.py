"""What implanters do with boxes, placements, masks and brightness, by hand; the kernel has its own tests."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from cases import noise
from torch import Tensor
from typecheck import unchecked

from fpatch import create, implant, random
from fpatch.core.types import Range
from fpatch.graph.build import build
from fpatch.graph.pipeline import pipeline
from fpatch.graph.samples import override, to_columns
from fpatch.implant import _placement
from fpatch.ops import region, textures

H, W = 97, 131
NAMES = ("wide", "high")
WHITE = {"wide": torch.ones(3, 10, 20), "high": torch.ones(3, 18, 12)}
PATCHES = {"wide": noise("wide", 3, 10, 20), "high": noise("high", 3, 18, 12)}
BOX = [[10.0, 12.0], [90.0, 8.0], [88.0, 50.0], [12.0, 56.0]]
"""Its bounds are (10, 8, 90, 56): 80 x 48 px."""
OVERLAPPING = [[60.0, 30.0], [120.0, 36.0], [112.0, 90.0], [52.0, 80.0]]
AWAY = [[100.0, 5.0], [125.0, 7.0], [123.0, 28.0], [99.0, 25.0]]
MAKERS = {
    "rectangle": lambda **o: implant.rectangle(scale=Range(0.8, 0.8), names=NAMES, **o),
    "fixed_ratio": lambda **o: implant.fixed_ratio(names=NAMES, **o),
    "fill_box": lambda **o: implant.fill_box(names=NAMES, **o),
    "warp": lambda **o: implant.warp(names=NAMES, **o),
}
KEY = random.key(3)


def make_batch(quads: Any = (BOX,), index: Any = (0,), rows: int = 3, **others) -> dict:
    """The same placements in every row."""
    quads = torch.tensor(quads).repeat(rows, 1, 1, 1)
    return {
        "image_id": torch.arange(rows) + 40,
        "draw": torch.zeros(rows, dtype=torch.int64),
        "scene": torch.zeros(0) if rows > 3 else noise("scene", rows, 3, H, W),
        "quads": quads,
        "quad_patch": torch.tensor(index).repeat(rows, 1),
        "quad_valid": torch.ones(quads.shape[:2], dtype=torch.bool),
        "patch": PATCHES,
        **others,
    }


def draw(stage, **inputs) -> Tensor:
    return stage({}, KEY, make_batch(**inputs))[0]["image"]


def apply(stage, batch: dict) -> Tensor:
    """Of a sample given, where only the kernel looks at the batch."""
    return stage.apply({}, stage.sample(KEY, batch), batch)["image"]


def white_pixels(stage, **inputs) -> list[tuple[int, ...]]:
    """Per row the bounds of a white patch on a black scene, all of whose pixels must be white."""
    image = draw(stage, patch=WHITE, scene=torch.zeros(3, 3, H, W), **inputs)
    bounds = []
    for row in image:
        y, x = np.nonzero(row[0].numpy())
        bounds.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
        assert bool((row[:, y.min() : y.max() + 1, x.min() : x.max() + 1] > 0.99999).all())
    return bounds


# -- size and position


@pytest.mark.parametrize(
    ("by", "patch", "width", "height"),
    [
        ("width", "wide", 40, 20),
        ("width", "high", 40, 60),
        ("height", "wide", 48, 24),
        ("height", "high", 16, 24),
        ("min", "wide", 24, 12),
        ("min", "high", 16, 24),
    ],
)
@pytest.mark.parametrize(("x", "y"), [(0.5, 0.5), (0.0, 1.0), (0.25, 0.0)])
def test_fixed_ratio_is_a_fraction_of_the_box(by, patch, width, height, x, y):
    """A patch that is larger than its box stands out to both sides, or to one."""
    stage = implant.fixed_ratio(0.5, by, Range(x, x), Range(y, y), names=NAMES)
    left, top = round(10 + x * (80 - width)), round(8 + y * (48 - height))
    expected = [(left, max(top, 0), left + width, top + height)] * 3
    assert white_pixels(stage, index=[NAMES.index(patch)]) == expected


def test_the_ratio_is_a_sampled_value():
    """A grid over it measures success against area; tables of earlier versions do not hold it."""
    stage, smaller = (implant.fixed_ratio(r, names=NAMES) for r in (0.5, 0.25))
    batch = make_batch()
    drawn = stage.sample(KEY, batch)
    assert bool((drawn["ratio"] == 0.5).all())
    image = stage.apply({}, drawn, batch)["image"]
    edited = stage.apply({}, override({"place": drawn}, {"place/ratio": 0.25})["place"], batch)["image"]
    assert torch.equal(edited, smaller.apply({}, smaller.sample(KEY, batch), batch)["image"])
    assert not torch.equal(edited, image)
    earlier = {name: value for name, value in drawn.items() if name != "ratio"}
    assert torch.equal(stage.apply({}, earlier, batch)["image"], image)


def test_fill_box_stretches_to_the_box():
    for index in (0, 1):
        assert white_pixels(implant.fill_box(names=NAMES), index=[index]) == [(10, 8, 90, 56)] * 3


@pytest.mark.parametrize(("patch", "width", "height"), [("wide", 40, 20), ("high", 16, 24)])
def test_a_fixed_scale_is_that_scale(patch, width, height):
    """Not skipped because its ends are equal."""
    stage = implant.rectangle(
        scale=Range(0.5, 0.5), offset_x_frac=Range(1.0, 1.0), offset_y_frac=Range(0.0, 0.0), names=NAMES
    )
    assert bool((stage.sample(KEY, make_batch())["scale"] == 0.5).all())
    assert white_pixels(stage, index=[NAMES.index(patch)]) == [(90 - width, 8, 90, 8 + height)] * 3


@pytest.mark.parametrize("factory", [implant.rectangle, implant.fixed_ratio])
def test_offsets_have_a_range_along_each_axis(factory):
    stage = factory(offset_x_frac=Range(0.2, 0.3), offset_y_frac=Range(0.7, 0.9), names=NAMES)
    x, y = stage.sample(KEY, make_batch(rows=400))["offset_frac"].flatten(0, 1).T
    for drawn, low, high in ((x, 0.2, 0.3), (y, 0.7, 0.9)):
        assert low <= float(drawn.min()) < low + 0.01
        assert high - 0.01 < float(drawn.max()) < high
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.2


@pytest.mark.parametrize("name", MAKERS)
def test_antialias_is_a_switch(name):
    """Black and white lines, finer than a pixel: gray, or whatever lies at the center of each."""
    lines = {n: torch.arange(200.0).remainder(2).expand(3, 100, -1) for n in NAMES}
    smooth, plain = (
        draw(MAKERS[name](antialias=on), quads=[AWAY], patch=lines, scene=torch.full((3, 3, H, W), 0.5))
        for on in (True, False)
    )
    assert float((smooth - 0.5).abs().max()) < 0.15
    assert float((plain - 0.5).abs().max()) > 0.4


# -- rotation


SQUARE = [[40.0, 30.0], [60.0, 30.0], [60.0, 50.0], [40.0, 50.0]]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("degrees", "quarters"), [(90.0, 1), (-90.0, -1), (180.0, 2)])
def test_a_quarter_turn_is_clockwise_on_the_screen(name, degrees, quarters):
    square = {"wide": noise("square", 3, 20, 20), "high": PATCHES["high"]}
    inputs = {"quads": [SQUARE], "patch": square, "scene": torch.zeros(3, 3, H, W)}
    offsets = ("offset_x_frac", "offset_y_frac") if name == "rectangle" else ()
    centered = dict.fromkeys(offsets, Range(0.5, 0.5))
    found, upright = (
        draw(MAKERS[name](angle_deg=Range(angle, angle), **centered), **inputs)[..., 30:50, 40:60]
        for angle in (degrees, 0.0)
    )
    torch.testing.assert_close(found, torch.rot90(upright, -quarters, (-2, -1)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_a_turned_patch_fills_turned_corners(name):
    """Of the same picture as `warp` of corners that are turned by hand; each placement has its own angle."""
    stage = MAKERS[name](angle_deg=Range(-60.0, 60.0))
    inputs = {"quads": [BOX, AWAY], "index": [0, 1]}
    sample = stage.sample(KEY, make_batch(**inputs))
    assert sample["angle_deg"].shape == (3, 2)
    assert sample["angle_deg"].unique().numel() == 6
    upright = {n: value for n, value in sample.items() if n != "angle_deg"}
    seen = []
    with mock.patch.object(_placement, "implant_quads", lambda scene, *given: seen.append(given[2]) or scene):
        for drawn in upright, sample:
            stage.apply({}, drawn, make_batch(**inputs))
    before, after = (quads.double().numpy() for quads in seen)
    for row, k in np.ndindex(3, 2):
        angle = np.deg2rad(float(sample["angle_deg"][row, k]))
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = before[row, k].mean(0)
        np.testing.assert_allclose(after[row, k], center + (before[row, k] - center) @ matrix.T, atol=2e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_settings_of_before_draw_what_they_drew(name):
    """No field is added by default, and further fields leave the draws of the others alone."""
    batch = make_batch([BOX, AWAY], [0, 1])
    plain = MAKERS[name]().sample(KEY, batch)
    turned = MAKERS[name](angle_deg=Range(1.0, 9.0)).sample(KEY, batch)
    assert set(turned) - set(plain) == {"angle_deg"}
    assert all(torch.equal(turned[field], value) for field, value in plain.items())
    assert MAKERS[name]().definition == getattr(implant, name)
    assert "placement" not in implant.warp().sample(KEY, batch)


# -- which placements


@pytest.mark.parametrize("name", MAKERS)
def test_one_of_the_valid_placements_is_filled(name):
    """And logged, as its index."""
    valid = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    inputs = {"quads": [BOX, OVERLAPPING, AWAY], "index": [0, 1, 0], "quad_valid": valid}
    stage = MAKERS[name](boxes="one")
    sample = stage.sample(KEY, make_batch(**inputs))
    column = to_columns({"implant": sample})["implant/placement"]
    assert column.dtype == np.int64
    assert bool(valid[torch.arange(3), torch.from_numpy(column)].all())
    image = stage.apply({}, sample, make_batch(**inputs))["image"]
    for row, j in enumerate(column.tolist()):
        alone = torch.zeros(3, 3, dtype=torch.bool)
        alone[row, j] = True
        everything = {**sample, "placement": torch.full((3,), -1)}
        batch = make_batch(**{**inputs, "quad_valid": alone})
        assert torch.equal(stage.apply({}, everything, batch)["image"][row], image[row])
    assert bool((image != make_batch()["scene"]).flatten(1).any(1).all())


def test_each_valid_placement_is_as_likely():
    rows = 3000
    valid = torch.tensor([True, False, True, True]).repeat(rows, 1)
    valid[-1] = False
    batch = make_batch([BOX] * 4, [0] * 4, rows, quad_valid=valid)
    drawn = implant.fill_box(boxes="one", names=NAMES).sample(KEY, batch)["placement"]
    counts = torch.bincount(drawn[:-1], minlength=4)
    assert int(counts[1]) == 0
    # five standard deviations of a binomial count
    assert bool(((counts[[0, 2, 3]] - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5).all())
    assert int(drawn[-1]) == 0


def test_a_row_without_placements_is_left_alone():
    valid = torch.tensor([[True, True], [False, False], [False, True]])
    for boxes in ("all", "one"):
        image = draw(
            implant.fill_box(boxes=boxes, names=NAMES), quads=[BOX, AWAY], index=[0, 1], quad_valid=valid
        )
        changed = (image != make_batch()["scene"]).any(1)
        assert changed.flatten(1).any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("name", MAKERS)
def test_images_may_lack_a_patch(name):
    """Row 0 shows both, row 1 the first alone and row 2 the second, twice; absent quads are NaN."""
    batch = make_batch([BOX, AWAY], [0, 1])
    batch["quads"][1, 1] = float("nan")
    batch["quad_valid"] = batch["quads"].isfinite().all(-1).all(-1)
    batch["quad_patch"] = torch.tensor([[0, 1], [0, 0], [1, 1]])
    patches = {n: p.clone().requires_grad_() for n, p in PATCHES.items()}
    stage = MAKERS[name]()
    image = stage({}, KEY, {**batch, "patch": patches})[0]["image"]
    for row, seen in enumerate([(True, True), (True, False), (False, True)]):
        found = torch.autograd.grad(image[row].sum(), list(patches.values()), retain_graph=True)
        assert tuple(bool(g.any()) for g in found) == seen
    assert bool(torch.isfinite(image).all())


# -- several patches


@pytest.mark.parametrize("name", MAKERS)
def test_every_patch_learns(name):
    """The second implant does not detach the first; what it covers of it, and only that, has no gradient."""
    patches = {n: p.clone().requires_grad_() for n, p in PATCHES.items()}
    image = draw(MAKERS[name](), quads=[BOX, OVERLAPPING], index=[0, 1], patch=patches)
    together = torch.autograd.grad(image.sum(), list(patches.values()))
    first = torch.autograd.grad(draw(MAKERS[name](), patch=patches).sum(), patches["wide"])[0]
    assert all(bool(g.any()) for g in together)
    assert 0.5 * float(first.sum()) < float(together[0].sum()) <= float(first.sum())


@pytest.mark.parametrize("name", ["fixed_ratio", "fill_box", "warp"])
def test_placements_lie_over_each_other_in_index_order(name):
    """As two implants one after the other do, and not as patches pasted onto the clean scene."""
    stage = MAKERS[name]()
    first = draw(stage)
    expected = draw(stage, quads=[OVERLAPPING], index=[1], scene=first)
    found = draw(stage, quads=[BOX, OVERLAPPING], index=[0, 1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    swapped = draw(stage, quads=[OVERLAPPING, BOX], index=[1, 0])
    assert name == "fixed_ratio" or float((found - swapped).abs().max()) > 0.3


# -- masks


def test_a_mask_is_the_same_in_every_row():
    """Resized once, not over and over."""
    mask = noise("mask", 1, 7, 5)
    row = make_batch(rows=1)["scene"]
    image = draw(implant.warp(names=NAMES), masks={"wide": mask}, scene=row.expand(3, -1, -1, -1))
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (1, 1, 8, 8)])
def test_a_mask_has_one_channel(shape):
    rule = r"implant: the mask 'wide' must be \[1, height, width\], got shape .*; give one channel"
    with pytest.raises(ValueError, match=rule):
        draw(implant.warp(names=NAMES), masks={"wide": torch.ones(shape)})


def test_masks_belong_to_their_patch():
    """A number, an opacity per pixel, and none."""
    quads, index = [BOX, AWAY, OVERLAPPING], [0, 1, 0]
    half = torch.zeros(4, 2)
    half[:, 1] = 1.0
    p = pipeline(
        {"mask": create.mask({"wide": 0.25, "high": half}), "implant": implant.fill_box(names=NAMES)}
    )
    scene = torch.zeros(3, 3, H, W)
    image = p({}, KEY, make_batch(quads, index, scene=scene, patch=WHITE))[0]["image"]
    torch.testing.assert_close(image[:, :, 8:30, 10:50], torch.full((3, 3, 22, 40), 0.25))
    torch.testing.assert_close(image[:, :, 36:56, 60:90], torch.full((3, 3, 20, 30), 0.25 + 0.75 * 0.25))
    assert not bool(image[:, :, 5:28, 99:104].any())
    assert bool((image[:, :, 5:28, 120:125] > 0.99999).all())
    assert build({"mask": {"stage": "create.mask", "masks": {"wide": 0.25}}}).config == {
        "mask": {"stage": "create.mask", "masks": {"wide": 0.25}}
    }


# -- brightness


def luma(image: Tensor) -> Tensor:
    return (image.double() * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1)


def match_by_hand(stage, scene: Tensor, patches: dict, **inputs) -> tuple[Tensor, Tensor]:
    """One placement: the image, and the gain of each row, from two pictures without matching."""
    black = torch.zeros_like(scene)
    alpha = draw(stage, scene=black, patch=WHITE, **inputs).double()
    color = draw(stage, scene=black, patch=patches, **inputs).double()
    wanted = (luma(scene) * alpha[:, 0]).sum((1, 2))
    gain = (wanted / luma(color).sum((1, 2))).clamp(0.25, 4.0)
    return scene * (1 - alpha) + torch.minimum(color * gain[:, None, None, None], alpha), gain


@pytest.mark.parametrize("masked", [False, True], ids=["opaque", "masked"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("quad", [BOX, [[-30.0, 20.0], [40.0, 10.0], [52.0, 70.0], [-20.0, 80.0]]])
def test_brightness_is_that_of_the_scene_below(name, masked, quad):
    """Per row and placement, of what is inside the frame, and not above 1."""
    scene = make_batch()["scene"] * torch.tensor([0.2, 0.7, 1.0])[:, None, None, None]
    inputs = {"quads": [quad], "masks": {"wide": noise("mask", 1, 10, 20)} if masked else {}}
    dull = {n: 0.05 + 0.9 * p**3 for n, p in PATCHES.items()}
    expected, gain = match_by_hand(MAKERS[name](), scene, dull, **inputs)
    assert float(gain.max() / gain.min()) > 2
    assert float(gain.max()) * 0.95 > 1.2
    found = draw(MAKERS[name](match_brightness=True), scene=scene, patch=dull, **inputs)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("patch", "scene", "shown"),
    [(0.0, 0.5, 0.0), (0.0, 0.0, 0.0), (0.8, 0.0, 0.2), (0.05, 1.0, 0.2), (0.9, 1.0, 1.0), (0.4, 0.3, 0.3)],
    ids=["black patch", "black on black", "black scene", "dark patch", "white scene", "within"],
)
def test_the_gain_is_bounded_and_safe_on_black(patch, scene, shown):
    flat = {n: torch.full_like(p, patch).requires_grad_() for n, p in PATCHES.items()}
    image = draw(
        implant.fill_box(match_brightness=True, names=NAMES),
        scene=torch.full((3, 3, H, W), scene),
        patch=flat,
    )
    torch.testing.assert_close(image[:, :, 8:56, 10:90], torch.full((3, 3, 48, 80), shown))
    gradient = torch.autograd.grad(image.sum(), flat["wide"])[0]
    assert bool(torch.isfinite(gradient).all())


def test_what_the_mask_hides_does_not_count():
    """Half of the patch is black, and outside the mask."""
    patch, mask = torch.full((3, 10, 20), 0.5), torch.ones(1, 10, 20)
    patch[:, :, :10], mask[:, :, :10] = 0.0, 0.0
    scene = torch.full((3, 3, H, W), 0.9)
    scene[..., 45:] = 0.3
    stage = implant.fill_box(match_brightness=True, names=NAMES)
    image = draw(stage, scene=scene, patch={**PATCHES, "wide": patch}, masks={"wide": mask})
    torch.testing.assert_close(image[:, :, 8:56, 56:90], torch.full((3, 3, 48, 34), 0.3))


def test_the_gain_has_no_gradient():
    """To the patch and to the scene: that of the picture with the gain held."""
    scene = 0.3 * make_batch()["scene"]
    scene, held = scene.clone().requires_grad_(), scene
    patch = {n: (0.4 + 0.2 * p).requires_grad_() for n, p in PATCHES.items()}
    plain, matched = implant.warp(names=NAMES), implant.warp(match_brightness=True, names=NAMES)
    _, gain = match_by_hand(plain, held, {n: p.detach() for n, p in patch.items()})
    weight = noise("weight", 3, 3, H, W)
    by_scene, by_patch = torch.autograd.grad(
        (weight * draw(matched, scene=scene, patch=patch)).sum(), [scene, patch["wide"]]
    )
    scaled = weight * gain[:, None, None, None].float()
    plain_scene = torch.autograd.grad((weight * draw(plain, scene=scene, patch=patch)).sum(), scene)[0]
    plain_patch = torch.autograd.grad((scaled * draw(plain, scene=scene, patch=patch)).sum(), patch["wide"])[
        0
    ]
    assert torch.equal(by_scene, plain_scene)
    torch.testing.assert_close(by_patch, plain_patch)


@pytest.mark.parametrize("name", MAKERS)
def test_matched_brightness_leaves_absent_placements_alone(name):
    valid = torch.zeros(3, 1, dtype=torch.bool)
    quad = [[float("nan")] * 2] * 4
    image = draw(MAKERS[name](match_brightness=True), quads=[quad], quad_valid=valid)
    assert torch.equal(image, make_batch()["scene"])


def test_the_gain_has_the_same_bits_in_any_region(monkeypatch):
    stage = implant.warp(match_brightness=True, names=NAMES)
    expected = draw(stage, quads=[BOX, OVERLAPPING], index=[0, 1])
    for module in (region, textures):
        monkeypatch.setattr(module, "is_concrete", lambda tensor: False)
    assert torch.equal(draw(stage, quads=[BOX, OVERLAPPING], index=[0, 1]), expected)


# -- bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", MAKERS)
def test_a_placement_must_have_corners(name, value, monkeypatch):
    batch = make_batch([BOX, AWAY], [0, 1])
    batch["quads"][1, 0, 2, 1] = batch["quads"][2, 1] = value
    rule = r"implant: quads in rows \[1, 2\] of the batch have corners that are not finite, but an opacity"
    with pytest.raises(ValueError, match=rule):
        apply(MAKERS[name](), batch)
    with pytest.raises(
        ValueError, match=r"batch\['quads'\], which implant.* in row 1, placement 0; set quad_valid"
    ):
        MAKERS[name]()({}, KEY, batch)
    # where nobody can look, as while compiling
    for module in (region, textures):
        monkeypatch.setattr(module, "is_concrete", lambda tensor: False)
    image = apply(MAKERS[name](), batch)
    assert bool(torch.isfinite(image).all())
    valid = batch["quads"].isfinite().flatten(2).all(-1)
    assert torch.equal(image, apply(MAKERS[name](), {**batch, "quad_valid": valid}))


@pytest.mark.parametrize("index", [-1, 2])
def test_a_placement_must_show_a_patch_that_there_is(index):
    rule = rf"quad_patch must index the 2 patches \[.*\] from 0, got \[.*{index}"
    with pytest.raises(ValueError, match=rule):
        apply(MAKERS["warp"](), make_batch([BOX, AWAY], [0, index]))


@pytest.mark.parametrize("name", MAKERS)
def test_placements_may_lie_outside_or_have_no_area(name):
    point = [[5.0, 5.0]] * 4
    outside = [[-80.0, -50.0], [-20.0, -52.0], [-22.0, -9.0], [-85.0, -11.0]]
    far = [[1e15, 1e15], [2e15, 1e15], [2e15, 2e15], [1e15, 2e15]]
    image = draw(MAKERS[name](match_brightness=True), quads=[point, outside, far], index=[0, 1, 0])
    assert torch.equal(image, make_batch()["scene"])


def check(stage, batch: dict) -> dict[str, list[str]]:
    d = stage.definition
    return d.check(stage.config, {n: batch[n] for n in (*d.reads, *d.optional) if n in batch})


@pytest.mark.parametrize(
    ("stage", "size"),
    [
        (implant.fill_box(names=NAMES), "6.0 x 3.0"),
        (implant.fixed_ratio(0.9, "height", names=NAMES), "5.4 x 2.7"),
        (implant.rectangle(scale=Range(0.5, 1.0), names=NAMES), "3.0 x 1.5"),
        (implant.warp(scale=Range(0.5, 1.0), names=NAMES), "3.0 x 1.5"),
    ],
    ids=lambda value: value.definition.name if hasattr(value, "definition") else "",
)
def test_small_placements_are_reported_together(stage, size):
    """At the smallest that a stage may draw; absent ones are not."""
    small = [[5.0, 5.0], [11.0, 5.0], [11.0, 8.0], [5.0, 8.0]]
    batch = make_batch([BOX, small], [0, 0])
    batch["quad_valid"][1, 1] = False
    ((rule, places),) = check(stage, batch).items()
    assert rule.startswith("a patch may be less than 4 px wide or high")
    assert places == [f"image 40, placement 1: {size} px", f"image 42, placement 1: {size} px"]
    assert check(stage, make_batch([BOX, AWAY], [0, 1])) == {}


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: implant.rectangle(boxes="some"), r"rectangle\(boxes\) must be 'all' or 'one', got 'some'"),
        (lambda: implant.fill_box(boxes="two"), r"fill_box\(boxes\) must be 'all' or 'one', got 'two'"),
        (lambda: implant.fixed_ratio(boxes=""), r"fixed_ratio\(boxes\) must be 'all' or 'one', got ''"),
        (lambda: implant.fixed_ratio(by="area"), "by.* must be 'width', 'height' or 'min', got 'area'"),
        (lambda: implant.warp(boxes="first"), r"warp\(boxes\) must be 'all' or 'one', got 'first'"),
        (lambda: implant.warp(angle_deg=(9.0, 1.0)), r"warp\(angle_deg\).*swap the two"),
        (lambda: implant.fill_box(angle_deg=(0.0, 190.0)), r"fill_box\(angle_deg\).* within \[-180, 180\]"),
        (lambda: implant.fixed_ratio(0.0), r"fixed_ratio\(ratio\) must be between 0.001 and 4, got 0.0"),
        (lambda: implant.fixed_ratio(offset_x_frac=Range(0.5, 1.5)), r"fixed_ratio\(offset_x_frac\) must be"),
        (lambda: implant.fixed_ratio(offset_y_frac=Range(0.9, 0.5)), r"fixed_ratio\(offset_y_frac\).*swap"),
        (lambda: implant.rectangle(offset_x_frac=Range(-0.5, 0.5)), r"rectangle\(offset_x_frac\) must be"),
        (lambda: implant.rectangle(offset_y_frac=Range(0.9, 0.5)), r"rectangle\(offset_y_frac\).*swap"),
    ],
)
def test_wrong_settings_are_refused(make, rule):
    with unchecked(), pytest.raises(ValueError, match=rule):
        make()


@pytest.mark.parametrize("factory", [implant.fill_box, implant.fixed_ratio, implant.rectangle, implant.warp])
def test_names_are_needed(factory):
    name = factory().definition.name.rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"^{name}\(names\) must list the patches that quad_patch counts"):
        draw(factory())
    with pytest.raises(ValueError, match=rf"^{name}\(names\): no patch 'hod'; "):
        draw(factory(names=("hod", NAMES[1])))
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"{name}\(names\) must be a tuple of names, got 'hood'"),
    ):
        draw(factory(names="hood"))
