"""Losses on the patch itself, against formulas in float64, and their gradients against finite differences."""

import json
import math

import numpy as np
import pytest
import torch
from cases import NUM_ROWS, SHAPES, noise
from scipy.spatial import KDTree
from study_fixture import make_study
from torch import Tensor

from fpatch import build, create, data, losses, node, pipeline
from fpatch.losses.lp_distance import mean_norm
from fpatch.losses.non_printability import PRINTABLE
from fpatch.losses.saliency import colorfulness
from fpatch.study.config import load_study

PATCHES = {name: noise(name, *shape) for name, shape in SHAPES.items()}
PER_ROW = {name: noise(f"rows of {name}", NUM_ROWS, *shape) for name, shape in SHAPES.items()}
STAGES = {
    "total_variation": losses.total_variation,
    "non_printability": losses.non_printability,
    "saliency": losses.saliency,
}


def score(stage, **patches: Tensor) -> Tensor:
    """The term [b] of some patches."""
    values = {"image_id": torch.arange(NUM_ROWS), "patch": patches}
    (name,) = stage.definition.writes
    return stage.apply({}, {}, values)[name]


def check_gradient(stage, patch: Tensor) -> Tensor:
    """Compare with central differences in float64, and return the gradient."""
    patch = patch.double().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: score(stage, hood=p).sum(), patch, eps=1e-6, atol=1e-6)
    return torch.autograd.grad(score(stage, hood=patch).sum(), patch)[0]


# -- which patches


@pytest.mark.parametrize("name", STAGES)
def test_limited_to_named_patches(name):
    both, hood, roof = (STAGES[name](only=only) for only in (None, ("hood",), ("roof",)))
    assert torch.equal(score(hood, **PATCHES), score(both, hood=PATCHES["hood"]))
    mean = (score(hood, **PATCHES) + score(roof, **PATCHES)) / 2
    torch.testing.assert_close(score(both, **PATCHES), mean)
    assert not torch.equal(score(hood, **PATCHES), score(roof, **PATCHES))
    unseen = {**PATCHES, "roof": PATCHES["roof"].clone().requires_grad_()}
    assert not score(hood, **unseen).requires_grad
    with pytest.raises(ValueError, match=rf"{name}\(only\): no patch 'hod'; did you mean 'hood'"):
        score(STAGES[name](only=("hod",)), **PATCHES)
    with pytest.raises(ValueError, match=rf"{name}\(only\) must name at least one patch, got none"):
        score(STAGES[name](only=()), **PATCHES)


@pytest.mark.parametrize("name", [*STAGES, "lp_distance"])
def test_unknown_patches_are_refused_when_the_pipeline_is_built(name):
    wrong = (
        losses.lp_distance({"hod": torch.zeros(3)}) if name == "lp_distance" else STAGES[name](only=("hod",))
    )
    with pytest.raises(
        ValueError, match=rf"{name}\(only\): no patch 'hod'|{name}\(content\): no patch 'hod'"
    ):
        pipeline({"pixels": create.pixels(SHAPES), "loss": wrong})


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("name", [*STAGES, "lp_distance"])
def test_a_patch_of_nan_has_no_score(name, p):
    stage = losses.lp_distance(CONTENT, p=p) if name == "lp_distance" else STAGES[name]()
    nan = {
        n: torch.where(torch.arange(patch.shape[-1]) == 3, math.nan, patch) for n, patch in PATCHES.items()
    }
    assert bool(score(stage, **nan).isnan().all())


@pytest.mark.parametrize("name", [*STAGES, "lp_distance"])
def test_every_row_has_the_score_of_its_patch(name):
    content = {"hood": noise("content", *SHAPES["hood"])}
    stage = losses.lp_distance(content, p=3.0) if name == "lp_distance" else STAGES[name](only=("hood",))
    found = score(stage, **PER_ROW)
    alone = torch.stack([score(stage, hood=row)[0] for row in PER_ROW["hood"]])
    assert torch.equal(found, alone)
    assert len(set(found.tolist())) == NUM_ROWS
    one = score(stage, hood=PER_ROW["hood"][:1])
    assert torch.equal(one, alone[:1].expand(NUM_ROWS))


@pytest.mark.parametrize("name", ["non_printability", "saliency"])
def test_a_gray_patch_is_refused(name):
    with pytest.raises(
        ValueError, match=rf"{name}: patch 'hood' must have 3 channels, got shape \[1, 4, 5\]; put"
    ):
        score(STAGES[name](), hood=torch.zeros(1, 4, 5))


# -- non-printability


def test_non_printability_by_a_search_tree():
    """More pixels than are compared at a time, and more colors."""
    colors = noise("colors", 300, 3)
    patch = noise("large", NUM_ROWS, 3, 61, 83)
    found = score(losses.non_printability(tuple(map(tuple, colors.tolist()))), hood=patch)
    pixels = patch.double().flatten(2).transpose(1, 2).numpy()
    distance, _ = KDTree(colors.double().numpy()).query(pixels)
    np.testing.assert_allclose(found, distance.mean(-1), rtol=1e-5)


def test_the_gradient_of_non_printability():
    gradient = check_gradient(losses.non_printability(), noise("few", 3, 4, 5))
    torch.testing.assert_close(gradient.square().sum(0).sqrt(), torch.full((4, 5), NUM_ROWS / 20).double())
    colors = torch.tensor([0.25, 0.5, 0.75])
    at_color = torch.cat([colors[:, None, None].expand(3, 2, 3), noise("off", 3, 2, 3)], dim=1)
    gradient = check_gradient(losses.non_printability((tuple(colors.tolist()),)), at_color)
    assert bool((gradient[:, :2] == 0).all())
    assert bool((gradient[:, 2:] != 0).any())
    assert float(score(losses.non_printability((tuple(colors.tolist()),)), hood=at_color[:, :2])[0]) == 0.0


def test_memory_does_not_grow_with_the_colors():
    """What is kept for the backward: a few numbers per pixel, none per color."""
    patch = noise("kept", 3, 90, 70).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        score(losses.non_printability(), hood=patch)
    assert 0 < sum(kept) <= 8 * 90 * 70


def test_colors_from_a_file(tmp_path):
    path = tmp_path / "printer.csv"
    path.write_text("# red, green, blue\n0.1,0.2,0.3\n\n0.9 0.5  0.4\r\n  0.5, 0.5, 0.5 \n1 0 1")
    colors = ((0.1, 0.2, 0.3), (0.9, 0.5, 0.4), (0.5, 0.5, 0.5), (1.0, 0.0, 1.0))
    stage = losses.non_printability(losses.color_list(path))
    assert torch.equal(score(stage, **PATCHES), score(losses.non_printability(colors), **PATCHES))
    config = json.loads(json.dumps(pipeline({"nps": node(stage)}).config))
    assert config["nps"]["colors"]["loader"] == "losses.color_list"
    assert build(config).config == config
    path.write_text("0.1,0.2,0.3\n")
    with pytest.raises(
        ValueError, match=r"printer.csv has changed: sha256 .* restore the file or train again"
    ):
        build(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0.1,0.2,0.3\nr,g,b\n",
            r"line 2: 'r,g,b': expected red, green and blue, such as 0.1, 0.2, 0.3; start",
        ),
        ("0.1,0.2\n", "line 1: '0.1,0.2': expected red, green and blue"),
        ("0.1,0.2,0.3,0.4\n", "line 1: .*: expected red, green and blue"),
        ("12 128 255\n", "line 1: '12 128 255': colors must be within 0..1; divide levels by 255"),
        ("\n0 0 1.01\n", "line 2: '0 0 1.01': colors must be within 0..1"),
        ("\n0 0 nan\n", "line 2: '0 0 nan': expected red, green and blue"),
        ("# nothing\n", "the file must hold one color at least"),
    ],
)
def test_files_of_colors_that_are_wrong(tmp_path, text, message):
    path = tmp_path / "printer.csv"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=rf"'losses.color_list' cannot be loaded from .*printer.csv: {message}"
    ):
        losses.non_printability(losses.color_list(path))


def test_files_of_colors_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.csv: no such file; check the path"):
        losses.color_list(tmp_path / "gone.csv")


@pytest.mark.parametrize("colors", [(), ((0.1, 0.2, 1.3),), ((0.1, math.nan, 0.3),)])
def test_colors_that_are_wrong(colors):
    with pytest.raises(ValueError, match=r"non_printability\(colors\) must be .* triples within 0..1"):
        losses.non_printability(colors)


def test_a_study_names_a_file_of_colors_from_its_own_folder(tmp_path):
    path = make_study(tmp_path)
    (tmp_path / "printer.csv").write_text("0.5 0.5 0.5\n")
    text = '[pipeline.nps]\nstage = "losses.non_printability"\nonly = ["side"]\n'
    text += 'colors = {loader = "losses.color_list", weights = "printer.csv"}\n'
    path.write_text(path.read_text().replace("[pipeline.affine]", text + "[pipeline.affine]"))
    colors = load_study(path).config["pipeline"]["nps"]["colors"]
    assert colors["weights"] == str(tmp_path / "printer.csv")
    assert len(colors["sha256"]) == 64
    path.write_text(path.read_text().replace('only = ["side"]', "colors = 3").replace("colors = {", "# {"))
    with pytest.raises(ValueError, match=r"pipeline.nps.colors: expected .* got 3"):
        load_study(path)


# -- total variation


def test_the_gradient_of_total_variation():
    check_gradient(losses.total_variation(), noise("few", 3, 4, 5))
    flat = torch.full((3, 4, 5), 0.3)
    assert float(check_gradient(losses.total_variation(), flat).abs().max()) == 0.0
    assert score(losses.total_variation(), hood=flat).tolist() == [0.0] * NUM_ROWS
    assert score(losses.total_variation(), hood=torch.ones(1, 1, 1)).tolist() == [0.0] * NUM_ROWS


# -- saliency


def colorfulness_of_levels(patch: Tensor) -> float:
    """Hasler and Suesstrunk (2003), section 7, on levels 0..255, from sums in float64."""
    red, green, blue = (255 * patch.double().numpy()).reshape(3, -1)
    rg, yb = red - green, 0.5 * (red + green) - blue
    sigma = math.sqrt(np.var(rg) + np.var(yb))
    mu = math.sqrt(np.mean(rg) ** 2 + np.mean(yb) ** 2)
    return sigma + 0.3 * mu


def test_saliency_is_colorfulness():
    expected = sum(colorfulness_of_levels(patch) for patch in PATCHES.values()) / (2 * 255)
    np.testing.assert_allclose(score(losses.saliency(), **PATCHES), [expected] * NUM_ROWS, rtol=1e-5)
    found = score(losses.saliency(only=("hood",)), **PER_ROW)
    expected = [colorfulness_of_levels(row) / 255 for row in PER_ROW["hood"]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ((1.0, 0.0, 0.0), 0.3 * math.sqrt(1 + 0.25)),
        ((0.0, 0.0, 1.0), 0.3),
        ((1.0, 1.0, 0.0), 0.3),
        ((0.4, 0.4, 0.4), 0.0),
        ((0.0, 0.0, 0.0), 0.0),
    ],
)
def test_saliency_of_one_color(color, expected):
    """No spread; by hand."""
    patch = torch.tensor(color)[:, None, None].expand(3, 6, 7)
    assert float(colorfulness(patch)) == pytest.approx(expected, abs=1e-7)


def test_the_gradient_of_saliency():
    gradient = check_gradient(losses.saliency(), noise("few", 3, 4, 5))
    assert bool((gradient != 0).all())


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 1.0])
def test_the_gradient_of_saliency_on_gray(level):
    gray = torch.full((3, 4, 5), level)
    assert float(check_gradient(losses.saliency(), gray).abs().max()) == 0.0
    shades = noise("shades", 1, 4, 5).expand(3, 4, 5)
    assert float(check_gradient(losses.saliency(), shades).abs().max()) == 0.0


def test_the_gradient_of_saliency_is_bounded_everywhere_between_gray_and_color():
    for exponent in (-45, -38, -30, -20, -8, -3, -1):
        patch = 0.5 + 10.0**exponent * (noise("few", 2, 3, 4, 5) - 0.5)
        patch[1] = 10.0**exponent
        patch[1, 0, 0, 0] = 0.0
        patch.requires_grad_()
        (gradient,) = torch.autograd.grad(colorfulness(patch).sum(), patch)
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) <= 2.0
    color = torch.tensor([0.3, 0.1, 0.9])[:, None, None].expand(3, 4, 5).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(colorfulness(color), color)
    assert 0 < float(gradient.abs().max()) < 1.0


# -- distance to an image


CONTENT = {name: noise(f"content of {name}", *shape) for name, shape in SHAPES.items()}


def norm_by_numpy(patch: Tensor, content: Tensor, p: float, mask: Tensor | None = None) -> float:
    difference = np.abs(patch.double().numpy() - content.double().numpy())
    weights = np.broadcast_to(1.0 if mask is None else mask.double().numpy(), difference.shape)
    if p == math.inf:
        return float(difference[weights > 0].max())
    return float(((weights * difference**p).sum() / weights.sum()) ** (1 / p))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 10.0, math.inf])
def test_distance_by_numpy(p):
    expected = [norm_by_numpy(PATCHES[name], CONTENT[name], p) for name in PATCHES]
    found = score(losses.lp_distance(CONTENT, p=p), **PATCHES)
    np.testing.assert_allclose(found, [sum(expected) / 2] * NUM_ROWS, rtol=1e-5)
    found = score(losses.lp_distance({"roof": CONTENT["roof"]}, p=p), **PATCHES)
    np.testing.assert_allclose(found, [expected[1]] * NUM_ROWS, rtol=1e-5)
    found = score(losses.lp_distance({"roof": CONTENT["roof"]}, p=p), **PER_ROW)
    rows = [norm_by_numpy(row, CONTENT["roof"], p) for row in PER_ROW["roof"]]
    np.testing.assert_allclose(found, rows, rtol=1e-5)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, math.inf])
def test_distance_under_a_mask(p):
    mask = noise("mask", *SHAPES["hood"][1:])
    mask = torch.where(mask < 0.4, 0.0, mask)
    masks = {"hood": mask}
    expected = [norm_by_numpy(PATCHES[n], CONTENT[n], p, masks.get(n)) for n in PATCHES]
    found = score(losses.lp_distance(CONTENT, p=p, masks=masks), **PATCHES)
    np.testing.assert_allclose(found, [sum(expected) / 2] * NUM_ROWS, rtol=1e-5)
    stage = losses.lp_distance({"hood": CONTENT["hood"]}, p=p, masks=masks)
    free = PATCHES["hood"].clone()
    free[:, mask == 0] = 77.0
    assert torch.equal(score(stage, hood=free), score(stage, hood=PATCHES["hood"]))
    gradient = torch.autograd.grad(score(stage, hood=free.requires_grad_()).sum(), free)[0]
    assert bool((gradient[:, mask == 0] == 0).all())
    assert bool((gradient != 0).any())


def test_the_default_is_the_root_mean_square():
    expected = (PATCHES["hood"] - CONTENT["hood"]).square().mean().sqrt()
    found = score(losses.lp_distance({"hood": CONTENT["hood"]}), **PATCHES)
    torch.testing.assert_close(found, expected.expand(NUM_ROWS))


@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 40.0, 1000.0, math.inf])
def test_a_uniform_difference_is_its_own_distance(p):
    for size in (1e-30, 1e-6, 0.25, 1.0):
        content = {"hood": torch.zeros(3, 4, 5)}
        found = score(losses.lp_distance(content, p=p), hood=torch.full((3, 4, 5), size))
        assert found.tolist() == pytest.approx([size] * NUM_ROWS, rel=1e-5)


@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 3.0, 30.0, math.inf])
def test_the_gradient_of_the_distance(p):
    content = noise("content", 3, 4, 5).double()
    mask = noise("mask", 4, 5)
    patch = noise("few", 3, 4, 5).double()
    stage = losses.lp_distance({"hood": content}, p=p, masks={"hood": mask})
    assert bool((check_gradient(stage, patch) != 0).any())
    patch[:, :2] = content[:, :2]
    assert bool((check_gradient(stage, patch)[:, :2] == 0).all())
    assert float(check_gradient(stage, content).abs().max()) == 0.0
    assert score(stage, hood=content).tolist() == [0.0] * NUM_ROWS


@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 30.0, math.inf])
def test_the_gradient_of_the_distance_is_bounded(p):
    for exponent in (-45, -38, -20, -8, -3, 0):
        difference = (10.0**exponent * (noise("few", 3, 4, 5) - 0.5)).requires_grad_()
        (gradient,) = torch.autograd.grad(mean_norm(difference, torch.ones(4, 5), p), difference)
        assert bool(torch.isfinite(gradient).all())
        assert (
            float(gradient.abs().sum()) <= 1.001
        )  # Hoelder: the mean norm moves at most as far as its values


def test_the_gradient_of_a_distance_that_vanishes_under_a_mask():
    """A weight so small that its share of the mean is below any float32."""
    mask = torch.ones(4, 5)
    mask[1, 2] = 1e-44
    difference = torch.zeros(3, 4, 5)
    difference[:, 1, 2] = 0.5
    difference.requires_grad_()
    distance = mean_norm(difference, mask, 2.0)
    (gradient,) = torch.autograd.grad(distance, difference)
    assert float(distance.detach()) == 0.0
    assert bool((gradient == 0).all())


def test_content_from_image_files(tmp_path):
    path = tmp_path / "content.png"
    data.write_image(path, noise("picture", 3, 20, 31))
    stage = losses.lp_distance({"hood": data.image_file(path)}, masks={"hood": create.mask_image(path)})
    config = json.loads(json.dumps(pipeline({"keep": node(stage)}).config))
    assert config["keep"]["content"]["hood"]["loader"] == "data.image_file"
    again = build(config)
    assert again.config == config
    picture = (noise("picture", 3, 20, 31) * 255).round() / 255
    mask = create.mask_image(path).value
    expected = norm_by_numpy(PATCHES["hood"], picture, 2.0, mask)
    found = score(again["keep"].stage, **PATCHES)
    np.testing.assert_allclose(found, [expected] * NUM_ROWS, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"content": {}},
            r"lp_distance\(content\) must name at least one patch, got none; leave the stage out",
        ),
        ({"p": 0.5}, r"lp_distance\(p\) must be at least 1, got 0.5"),
        ({"p": math.nan}, r"lp_distance\(p\) must be at least 1, got nan"),
        (
            {"content": {"roof": torch.full((3, 16, 9), 255, dtype=torch.uint8)}},
            r"lp_distance\(content\): 'roof' must be within 0..1, got 255 to 255; divide 8-bit levels by 255",
        ),
        (
            {"masks": {"rof": torch.ones(16, 9)}},
            r"lp_distance\(masks\): no content for 'rof'; did you mean 'roof'",
        ),
        (
            {"content": {"rof": torch.ones(3, 16, 9)}},
            r"lp_distance\(content\): no patch 'rof'; did you mean 'roof'",
        ),
        (
            {"content": {"roof": torch.ones(3, 9, 16)}},
            r"lp_distance\(content\): 'roof' must have the shape of its patch, .3, 16, 9., got .3, 9, 16.;",
        ),
        (
            {"masks": {"roof": torch.ones(9, 16)}},
            r"lp_distance\(masks\): 'roof' must be \[16, 9\], as its patch, got \[9, 16\]",
        ),
        (
            {"masks": {"roof": 2 * torch.ones(16, 9)}},
            r"lp_distance\(masks\): 'roof' must be within 0..1, got 2 to 2",
        ),
        (
            {"masks": {"roof": torch.zeros(16, 9)}},
            r"lp_distance\(masks\): 'roof' is 0 everywhere; leave the patch out",
        ),
    ],
)
def test_distances_that_are_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        score(losses.lp_distance(**{"content": CONTENT, **settings}), **PATCHES)


def test_printable_colors_are_documented_as_they_are():
    assert len(PRINTABLE) == 64
    assert (min(map(min, PRINTABLE)), max(map(max, PRINTABLE))) == (0.06, 0.93)
