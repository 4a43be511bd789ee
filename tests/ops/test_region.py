"""The region kernel against full-frame warps by kornia, against PIL, and against its own law in float64."""

from typing import Any

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fpatch import random
from fpatch.ops import region
from fpatch.ops.geometry import quad_to_homography
from fpatch.ops.region import implant_quads
from fpatch.ops.sampling import sample_in_order

H, W = 61, 83
SIZES = {"hood": (20, 31), "roof": (16, 9)}
NAMES = tuple(SIZES)
TILTED = [[12.3, 9.1], [50.2, 14.7], [47.9, 44.4], [8.6, 38.2]]
OVERLAPPING = [[30.5, 20.2], [74.1, 26.3], [70.7, 55.5], [27.2, 52.9]]
HALF_OUTSIDE = [[-20.4, 30.1], [18.8, 25.5], [22.2, 70.3], [-16.1, 75.9]]
OUTSIDE = [[200.0, 10.0], [240.0, 10.0], [240.0, 40.0], [200.0, 40.0]]
TINY = [[40.1, 40.2], [40.9, 40.2], [40.9, 40.8], [40.1, 40.8]]
HUGE = [[-300.0, -200.0], [400.0, -250.0], [450.0, 300.0], [-350.0, 350.0]]
MIRRORED = [[50.2, 14.7], [12.3, 9.1], [8.6, 38.2], [47.9, 44.4]]
STEEP = [[30.0, 10.0], [34.0, 10.0], [70.0, 58.0], [4.0, 58.0]]
QUADS = {
    "tilted": TILTED,
    "half outside": HALF_OUTSIDE,
    "tiny": TINY,
    "huge": HUGE,
    "mirrored": MIRRORED,
    "steep": STEEP,
}


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_patches(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: noise(i, 3, *size, dtype=dtype) for i, (name, size) in enumerate(SIZES.items())}


def draw(quads: Any, which: list[int], patches=None, scene=None, opacity=None, **others) -> Tensor:
    """The same placements in every row of three different scenes."""
    scene = noise(9, 3, 3, H, W) if scene is None else scene
    quads = torch.tensor(quads, dtype=scene.dtype).expand(3, -1, -1, -1)
    opacity = torch.ones(3, len(which), dtype=scene.dtype) if opacity is None else opacity
    index = torch.tensor(which).expand(3, -1)
    return implant_quads(scene, patches or make_patches(), NAMES, quads, index, opacity, **others)


def coverage(quad: Tensor) -> tuple[Tensor, Tensor]:
    """Which pixels have their center in a quad, and the distance of each center to its edges, in float64."""
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    corners = quad.double()
    side, nearest = [], []
    for a, b in zip(corners, corners.roll(-1, 0), strict=True):
        cross = (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
        side.append(cross)
        nearest.append(cross.abs() / (b - a).norm())
    inside = torch.stack(side)
    return (inside >= 0).all(0) | (inside <= 0).all(0), torch.stack(nearest).amin(0)


def warp_full_frame(patch: Tensor, quad: Tensor) -> Tensor:
    """kornia's warp of a patch onto a frame; its pixel centers are integers, and ours lie at one half."""
    h, w = patch.shape[-2:]
    corners = patch.new_tensor([[0, 0], [w, 0], [w, h], [0, h]]) - 0.5
    matrix = kornia.geometry.get_perspective_transform(corners[None], quad[None] - 0.5)
    return kornia.geometry.warp_perspective(
        patch[None], matrix, (H, W), padding_mode="border", align_corners=True
    )[0]


def composite_in_float64(quads: list, which: list[int], patches: dict[str, Tensor], scene: Tensor) -> Tensor:
    """Sequential compositing of whole frames."""
    image = scene
    for quad, i in zip(torch.tensor(quads, dtype=torch.float64), which, strict=True):
        alpha = coverage(quad)[0].to(scene)
        image = image * (1 - alpha) + warp_full_frame(patches[NAMES[i]], quad) * alpha
    return image


def away_from_edges(quads: list) -> Tensor:
    """Pixels whose center is not so near an edge that rounding decides on which side it lies."""
    return torch.stack([coverage(torch.tensor(q))[1] > 1e-3 for q in quads]).all(0)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("quad", QUADS.values(), ids=QUADS)
def test_equals_kornia_full_frame(quad, which):
    scene, patches = noise(9, 3, 3, H, W), make_patches(torch.float64)
    expected = composite_in_float64([quad], [which], patches, scene.double())
    clear = away_from_edges([quad])
    assert clear.float().mean() > 0.99
    # a large patch on a few pixels is steep: float32 coordinates shift by some 1e-5 texels
    torch.testing.assert_close(
        draw([quad], [which], antialias=False)[..., clear].double(), expected[..., clear], rtol=0, atol=2e-4
    )


def test_overlapping_placements_composite_in_order():
    quads, which = [TILTED, OVERLAPPING, HALF_OUTSIDE, MIRRORED], [0, 1, 0, 1]
    expected = composite_in_float64(quads, which, make_patches(torch.float64), noise(9, 3, 3, H, W).double())
    clear = away_from_edges(quads)
    torch.testing.assert_close(
        draw(quads, which)[..., clear].double(), expected[..., clear], rtol=0, atol=1e-4
    )
    assert not torch.allclose(draw(quads, which), draw(quads[::-1], which[::-1]), atol=0.1)


@pytest.mark.parametrize(
    "quads",
    [[TILTED, OVERLAPPING, HALF_OUTSIDE, MIRRORED], [STEEP, TINY, HUGE, STEEP]],
    ids=["magnified", "minified"],
)
def test_gradient_of_overlapping_placements(quads):
    """The backward attenuates what a later placement covers, and leaves the scene what none covers."""
    which = [0, 1, 0, 1]
    weight = noise(5, 3, 3, H, W, dtype=torch.float64) * away_from_edges(quads)
    found, expected = [], []
    for dtype, compose, out in (
        (torch.float32, lambda p, s: draw(quads, which, patches=p, scene=s, antialias=False), found),
        (torch.float64, lambda p, s: composite_in_float64(quads, which, p, s), expected),
    ):
        patches = {n: p.requires_grad_() for n, p in make_patches(dtype).items()}
        scene = noise(9, 3, 3, H, W).to(dtype).requires_grad_()
        image = compose(patches, scene)
        out.extend(torch.autograd.grad((image * weight.to(dtype)).sum(), [*patches.values(), scene]))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("zoom", [1.0, 0.2], ids=["magnified", "minified"])
def test_gradcheck_in_double(zoom):
    patches = {n: p[:, :4, :5].clone().requires_grad_() for n, p in make_patches(torch.float64).items()}
    scene = noise(9, 3, 3, H, W, dtype=torch.float64)[:, :, :20, :24].clone().requires_grad_()
    opacity = torch.tensor([[0.7, 0.4], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    quads = [
        [[2.0, 3.0], [15.0, 4.0], [14.0, 13.0], [3.0, 12.0]],
        [[7.0, 6.0], [28.0, 7.0], [26.0, 25.0], [8.0, 18.0]],
    ]
    quads = (torch.tensor(quads) * zoom + 2.0).tolist()

    def composed(hood, roof, scene):
        image = draw(quads, [0, 1], patches={"hood": hood, "roof": roof}, scene=scene, opacity=opacity)
        return (image * torch.arange(image.numel()).view_as(image).sin()).sum((1, 2, 3))

    assert torch.autograd.gradcheck(composed, (*patches.values(), scene), fast_mode=True)


def test_integer_offsets_equal_pil():
    pixels = (noise(3, 20, 31, 3) * 255).round().numpy().astype(np.uint8)
    scene = (noise(4, H, W, 3) * 255).round().numpy().astype(np.uint8)
    canvas = Image.fromarray(scene)
    canvas.paste(Image.fromarray(pixels), (17, 23))
    patches = {**make_patches(), "hood": torch.from_numpy(pixels).permute(2, 0, 1) / 255}
    frame = (torch.from_numpy(scene).permute(2, 0, 1) / 255).expand(3, -1, -1, -1)
    image = draw([[[17, 23], [48, 23], [48, 43], [17, 43]]], [0], patches=patches, scene=frame)
    found = (image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, np.broadcast_to(np.asarray(canvas), found.shape))


def test_a_patch_is_opaque_up_to_its_edges():
    """However much it is magnified: nothing of the scene shows through, and nothing lies beyond the quad."""
    quad = [[10.0, 8.0], [70.0, 8.0], [70.0, 50.0], [10.0, 50.0]]
    patches = {"hood": torch.full((3, 3, 4), 0.25), "roof": torch.zeros(3, 2, 2)}
    scene = noise(9, 3, 3, H, W)
    image = draw([quad], [0], patches=patches, scene=scene)
    inside = torch.zeros(H, W, dtype=torch.bool)
    inside[8:50, 10:70] = True
    torch.testing.assert_close(image[..., inside], torch.full_like(image[..., inside], 0.25))
    assert torch.equal(image[..., ~inside], scene[..., ~inside])


def test_the_size_of_the_region_does_not_change_the_bits(monkeypatch):
    quads, which = [TILTED, OVERLAPPING, HALF_OUTSIDE, TINY], [0, 1, 0, 1]
    expected = draw(quads, which)
    assert bool((expected != draw(quads, which, antialias=False)).any())
    for side in (64, 128):
        monkeypatch.setattr(region, "REGION_STEP_PX", side)
        assert torch.equal(draw(quads, which), expected)
    monkeypatch.setattr(region, "is_concrete", lambda tensor: False)
    assert torch.equal(draw(quads, which), expected)


@given(
    st.lists(st.tuples(st.floats(-90, 150), st.floats(-90, 150)), min_size=4, max_size=4),
    st.lists(st.tuples(st.floats(-90, 150), st.floats(-90, 150)), min_size=4, max_size=4),
)
def test_any_quad_keeps_the_picture_and_the_bits(first, second):
    """Self-crossing, degenerate, beyond the horizon: no NaN, the range is kept, and a row is its own."""
    quads = torch.tensor([first, second]).expand(3, -1, -1, -1).clone()
    scene, index = noise(9, 3, 3, H, W), torch.tensor([0, 1]).expand(3, -1)
    image = implant_quads(scene, make_patches(), NAMES, quads, index, torch.ones(3, 2))
    assert 0 <= float(image.min()) <= float(image.max()) <= 1 + 1e-6
    quads[1:] = torch.tensor([TINY, HUGE]).view(2, 1, 4, 2)
    again = implant_quads(scene, make_patches(), NAMES, quads, index, torch.ones(3, 2))
    assert torch.equal(again[0], image[0])
    one = implant_quads(scene, make_patches(), NAMES, quads, index, torch.tensor([[1.0, 0.0]]).expand(3, -1))
    bounds = quads[0, 0].amin(0), quads[0, 0].amax(0)
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    point = torch.stack([x, y], dim=-1)
    outside = ((point < bounds[0]) | (point > bounds[1])).any(-1)
    assert torch.equal(one[0][:, outside], scene[0][:, outside])


def test_outside_leaves_the_scene():
    assert torch.equal(draw([OUTSIDE], [0]), noise(9, 3, 3, H, W))


@pytest.mark.parametrize(
    "quad",
    [
        [[float("nan")] * 2] * 4,
        [[float("inf")] * 2] * 4,
        [[5.0, 5.0]] * 4,
        [[5.0, 5.0], [9.0, 9.0], [5.0, 5.0], [9.0, 9.0]],
    ],
    ids=["nan", "infinite", "point", "line"],
)
def test_an_absent_placement_may_lie_anywhere(quad):
    patches = {n: p.requires_grad_() for n, p in make_patches().items()}
    opacity = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    image = draw([TILTED, quad], [0, 1], patches=patches, opacity=opacity)
    assert torch.equal(image, draw([TILTED], [0], patches=patches))
    gradients = torch.autograd.grad(image.sum(), list(patches.values()))
    assert bool((gradients[0] != 0).any())
    assert not bool(gradients[1].any())


def test_a_batch_without_placements_is_the_scene():
    scene = noise(9, 3, 3, H, W)
    assert torch.equal(draw([TILTED, HUGE], [0, 1], opacity=torch.zeros(3, 2)), scene)


def test_opacity_is_per_placement():
    opacity = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    scene, image = noise(9, 3, 3, H, W), draw([TILTED, OVERLAPPING], [0, 1], opacity=opacity)
    assert torch.equal(image[0], draw([TILTED], [0])[0])
    assert torch.equal(image[1], draw([OVERLAPPING], [1])[1])
    half = 0.5 * scene[2] + 0.5 * draw([TILTED], [0])[2]
    torch.testing.assert_close(image[2], half)


def test_patches_per_row():
    patches = {"hood": noise(1, 3, 3, 20, 31), "roof": make_patches()["roof"]}
    image = draw([TILTED, OVERLAPPING], [0, 1], patches=patches)
    for row in range(3):
        alone = draw([TILTED, OVERLAPPING], [0, 1], patches={**patches, "hood": patches["hood"][row]})
        assert torch.equal(image[row], alone[row])


def test_placements_share_a_patch_and_its_gradient():
    patches = {n: p.requires_grad_() for n, p in make_patches().items()}
    apart = [draw([quad], [0], patches=patches) for quad in (TILTED, OUTSIDE, HALF_OUTSIDE)]
    together = draw([TILTED, OUTSIDE, HALF_OUTSIDE], [0, 0, 0], patches=patches)
    found = torch.autograd.grad(together.sum(), patches["hood"])[0]
    left, right = (coverage(torch.tensor(q))[0] for q in (TILTED, HALF_OUTSIDE))
    parts = torch.autograd.grad((apart[0] * ~right).sum() + apart[2].sum(), patches["hood"])[0]
    assert bool((left & right).any())
    torch.testing.assert_close(found, parts, rtol=0, atol=2e-2)


def test_a_mask_lets_the_scene_through():
    """A mask of any size; half of it is clear, and a soft edge mixes."""
    mask = torch.zeros(1, 2, 8)
    mask[..., 4:] = 1.0
    quad = [[10.0, 10.0], [41.0, 10.0], [41.0, 30.0], [10.0, 30.0]]
    scene, image = noise(9, 3, 3, H, W), draw([quad], [0], masks={"hood": mask})
    full = draw([quad], [0])
    assert torch.equal(image[..., 10:20], scene[..., 10:20])
    torch.testing.assert_close(image[..., 31:41], full[..., 31:41])
    assert torch.equal(image[..., 41:], scene[..., 41:])


def test_a_masked_nan_patch_leaves_no_trace_where_it_is_clear():
    patches = {**make_patches(), "hood": torch.full((3, 20, 31), float("nan"))}
    mask = torch.zeros(1, 20, 31)
    image = draw([TILTED], [0], patches=patches, masks={"hood": mask}, opacity=torch.zeros(3, 1))
    assert torch.equal(image, noise(9, 3, 3, H, W))


# -- minified


def average_area(patch: Tensor, left: float, top: float, width: float, height: float) -> Tensor:
    """A patch of printed squares in an upright rectangle, averaged over the share of each pixel."""

    def shares(num: int, low: float, extent: float, num_pixels: int) -> Tensor:
        edges = low + extent * torch.arange(num + 1, dtype=torch.float64) / num
        pixel = torch.arange(num_pixels, dtype=torch.float64)[:, None]
        return (edges[1:].minimum(pixel + 1) - edges[:-1].maximum(pixel)).clamp(min=0)

    rows, columns = shares(patch.shape[1], top, height, H), shares(patch.shape[2], left, width, W)
    covered = rows.sum(1)[:, None] * columns.sum(1)
    return torch.einsum("yi,cij,xj->cyx", rows, patch.double(), columns) / covered.clamp(min=1e-9)


@pytest.mark.parametrize(
    ("left", "top", "width", "height"),
    [(20.0, 10.0, 31 / 3, 20 / 5), (20.2, 10.7, 23.1, 14.4), (3.4, 2.0, 31.0, 6.3), (40.0, 30.0, 2.0, 2.0)],
)
def test_an_upright_patch_is_averaged_exactly(left, top, width, height):
    """Also at its edges, over the part of a pixel that it covers."""
    right, bottom = left + width, top + height
    quad = [[left, top], [right, top], [right, bottom], [left, bottom]]
    expected = average_area(make_patches()["hood"], left, top, width, height)
    inside = coverage(torch.tensor(quad))[0]
    assert int(inside.sum()) >= 4
    found = draw([quad], [0])[..., inside].double()
    torch.testing.assert_close(found, expected[:, inside].expand(3, -1, -1), rtol=0, atol=2e-5)
    assert (draw([quad], [0], antialias=False)[..., inside] - found).abs().max() > 0.1


def test_whole_factors_equal_pil():
    pixels = (noise(3, 60, 84, 3) * 255).round().numpy().astype(np.uint8)
    patches = {**make_patches(), "hood": torch.from_numpy(pixels).permute(2, 0, 1) / 255}
    quad = [[17.0, 23.0], [29.0, 23.0], [29.0, 27.0], [17.0, 27.0]]
    found = (draw([quad], [0], patches=patches)[0, :, 23:27, 17:29] * 255).permute(1, 2, 0)
    expected = np.asarray(Image.fromarray(pixels).reduce((7, 15)))
    np.testing.assert_allclose(found, expected, atol=0.51)


def supersample(patch: Tensor, quad: Tensor, num: int = 16) -> tuple[Tensor, Tensor]:
    """What a camera of `num` times the resolution sees, averaged, and which pixels see nothing else."""
    h, w = patch.shape[-2:]
    y, x = (torch.arange(n * num, dtype=torch.float64).add(0.5) / num for n in (H, W))
    corners = patch.new_tensor([[0, 0], [w, 0], [w, h], [0, h]], dtype=torch.float64)
    matrix = kornia.geometry.get_perspective_transform(quad[None].double(), corners[None])
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    at = kornia.geometry.transform_points(matrix, points.flatten(0, 1)[None]).view(1, H * num, W * num, 2)
    size = at.new_tensor([w, h])
    inside = ((at >= 0) & (at <= size)).all(-1)[:, None].double()
    grid = 2 * at / size - 1
    seen = torch.nn.functional.grid_sample(
        patch[None].double(), grid, padding_mode="border", align_corners=False
    )
    seen, inside = (torch.nn.functional.avg_pool2d(v, num)[0] for v in (seen, inside))
    return seen, inside[0] == 1


def turned(angle_deg: float, width: float, height: float) -> list:
    corners = 0.5 * np.array([[-width, -height], [width, -height], [width, height], [-width, height]])
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return (corners @ [[cos, sin], [-sin, cos]] + [40.3, 30.6]).tolist()


MINIFIED = {
    "upright by 3": ([[9.3, 6.1], [73.3, 6.1], [73.3, 54.1], [9.3, 54.1]], 0.012, 0.06),
    "upright by 12": ([[30.3, 20.1], [46.3, 20.1], [46.3, 32.1], [30.3, 32.1]], 0.006, 0.02),
    "turned, by 4": (turned(30, 48, 36), 0.02, 0.10),
    "turned, by 10": (turned(-65, 19.2, 14.4), 0.015, 0.06),
    "turned, by 2 and 9": (turned(20, 70, 16), 0.03, 0.15),
    "perspective": ([[28.0, 9.0], [52.0, 11.0], [66.0, 52.0], [12.0, 49.0]], 0.015, 0.10),
    "steep": ([[35.0, 12.0], [41.0, 12.0], [72.0, 55.0], [5.0, 55.0]], 0.02, 0.15),
}


@pytest.mark.parametrize(("quad", "mean", "largest"), MINIFIED.values(), ids=MINIFIED)
def test_a_minified_patch_is_close_to_a_supersampled_one(quad, mean, largest):
    """White noise, the worst there is."""
    patches = {**make_patches(), "hood": noise(2, 3, 144, 192)}
    expected, inside = supersample(patches["hood"], torch.tensor(quad))
    assert int(inside.sum()) > 90
    error, plain = (
        (draw([quad], [0], patches=patches, antialias=on)[0] - expected)[:, inside].abs()
        for on in (True, False)
    )
    assert float(error.mean()) < mean
    assert float(error.max()) < largest
    assert float(plain.mean()) > max(0.1, 5 * float(error.mean()))


def test_a_mask_is_averaged_with_its_patch():
    """Premultiplied: what is clear adds no color."""
    patches = {**make_patches(), "hood": noise(2, 3, 144, 192)}
    mask = (noise(3, 1, 144, 192) > 0.4).float()
    quad, scene = MINIFIED["turned, by 4"][0], noise(9, 3, 3, H, W)
    color, inside = supersample(patches["hood"] * mask, torch.tensor(quad))
    alpha, _ = supersample(mask, torch.tensor(quad))
    expected = scene.double() * (1 - alpha) + color
    found = draw([quad], [0], patches=patches, masks={"hood": mask})
    assert float((found - expected)[..., inside].abs().mean()) < 0.02
    black = draw([quad], [0], patches={**patches, "hood": torch.ones(3, 144, 192)}, masks={"hood": mask})
    assert float((black - (scene * (1 - alpha) + alpha))[..., inside].abs().mean()) < 0.02


def test_what_is_not_minified_keeps_its_bits():
    """Whatever else is in the image, in the batch, and in the atlas."""
    quads = torch.tensor([[TILTED, TINY], [OVERLAPPING, TINY], [TINY, HUGE]])
    index, scene = torch.tensor([[0, 0], [1, 0], [0, 1]]), noise(9, 3, 3, H, W)
    on, off = (
        implant_quads(scene, make_patches(), NAMES, quads, index, torch.ones(3, 2), antialias=a)
        for a in (True, False)
    )
    tiny = coverage(torch.tensor(TINY))[0]
    assert torch.equal(on[..., ~tiny], off[..., ~tiny])
    assert not torch.equal(on[:2, ..., tiny], off[:2, ..., tiny])


def test_a_small_patch_is_averaged_alone_and_in_an_atlas():
    patches = {**make_patches(), "hood": noise(3, 3, 50, 70)}
    quad = turned(25, 4.5, 8.0)
    found = draw([quad], [1], patches=patches)
    alone = implant_quads(
        noise(9, 3, 3, H, W),
        {"roof": patches["roof"]},
        ("roof",),
        torch.tensor(quad).expand(3, 1, 4, 2),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.ones(3, 1),
    )
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
    white = {**patches, "roof": torch.ones(3, 16, 9)}
    inside = coverage(torch.tensor(quad))[0]
    assert bool((draw([quad], [1], patches=white)[..., inside] == 1).all())


def test_minified_patches_per_row():
    patches = {"hood": noise(1, 3, 3, 20, 31), "roof": make_patches()["roof"]}
    quads = [turned(10, 7, 9), turned(50, 4, 3)]
    image = draw(quads, [0, 1], patches=patches)
    for row in range(3):
        alone = draw(quads, [0, 1], patches={**patches, "hood": patches["hood"][row]})
        torch.testing.assert_close(image[row], alone[row], rtol=0, atol=1e-6)


def test_a_black_patch_that_is_minified_still_learns():
    black = torch.zeros(3, 20, 31, requires_grad=True)
    quad = [[10.0, 10.0], [16.0, 10.0], [16.0, 14.0], [10.0, 14.0]]
    image = draw([quad], [0], patches={**make_patches(), "hood": black})
    assert float(image[..., 10:14, 10:16].detach().abs().max()) == 0
    gradient = torch.autograd.grad(image.sum(), black)[0]
    torch.testing.assert_close(gradient, torch.full_like(gradient, 3 * 24 / 620))


def test_errors():
    gray = {**make_patches(), "roof": noise(1, 1, 16, 9)}
    with pytest.raises(
        ValueError, match=r"patch 'roof' has shape \[1, 16, 9\]; it needs 3 channels: put create.stack"
    ):
        draw([TILTED], [0], patches=gray)
    with pytest.raises(ValueError, match="there is a mask for 'door', which is no patch"):
        draw([TILTED], [0], masks={"door": torch.ones(1, 2, 2)})
    with pytest.raises(ValueError, match=r"implant\(names\): no patch 'hood'; known: door, roof"):
        draw([TILTED], [0], patches={"door": gray["hood"], "roof": gray["hood"]})


def test_a_place_in_a_frame_of_many_pixels_is_exact():
    """More than float32 counts one by one."""
    height, width, left, top = 4201, 4001, 3001, 4181
    corners = [[left, top], [left + 4, top], [left + 4, top + 5], [left, top + 5]]
    quads = torch.tensor(corners, dtype=torch.float32)[None, None]
    index = torch.zeros(1, 1, dtype=torch.int64)
    patches = {"hood": torch.ones(3, 5, 4)}
    scene = torch.zeros(1, 3, height, width)
    image = implant_quads(scene, patches, ("hood",), quads, index, torch.ones(1, 1))
    found = image[0, 0].nonzero()
    assert found.amin(0).tolist() == [top, left]
    assert found.amax(0).tolist() == [top + 4, left + 3]


def test_the_homography_takes_the_unit_square_to_the_quad():
    quads = torch.tensor([TILTED, HUGE, STEEP], dtype=torch.float64)
    unit = torch.tensor([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    moved = unit @ quad_to_homography(quads).transpose(-1, -2)
    torch.testing.assert_close(moved[..., :2] / moved[..., 2:], quads)
    expected = kornia.geometry.get_perspective_transform(unit[:, :2].expand(3, -1, -1), quads)
    torch.testing.assert_close(quad_to_homography(quads), expected, rtol=1e-9, atol=1e-9)


def test_a_patch_of_nan_stays_in_its_row_and_placement():
    """The tables of sums lie side by side: whatever the sizes, nothing of a neighbor is read."""
    for i in range(60):
        key = random.fold_in(random.key(11), i)
        h, w = (20 + int(n) for n in random.randint(random.fold_in(key, "size"), (2,), 0, 60))
        corner = 40 * random.uniform(random.fold_in(key, "corner"), (3, 2, 1, 2))
        shape = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        quads = corner + 12 * shape + 2 * random.uniform(random.fold_in(key, "jitter"), (3, 2, 4, 2))
        patch = random.uniform(random.fold_in(key, "patch"), (3, 3, h, w))
        patch[1] = torch.nan
        opacity = torch.ones(3, 2)
        scene = torch.zeros(3, 3, 64, 64)
        image = implant_quads(scene, {"a": patch}, ("a",), quads, torch.zeros(3, 2).long(), opacity)
        assert not bool(image[[0, 2]].isnan().any())
        assert bool(image[1].isnan().any())


@pytest.mark.parametrize("align_corners", [False, True])
def test_sampling_in_order_is_grid_sample(align_corners):
    """Values and gradients, within, between, on and beyond the texels."""
    textures = random.uniform(random.key(1), (3, 4, 7, 12)).double().requires_grad_()
    grid = random.uniform(random.key(2), (3, 9, 11, 2), -1.6, 1.6).double()
    grid[0, 0], grid[1, 0], grid[2, 0] = 1.0, -1.0, -9.0
    grid.requires_grad_()
    weights = random.uniform(random.key(3), (3, 4, 9, 11))
    found, expected = (
        sample_in_order(textures, grid, align_corners),
        F.grid_sample(textures, grid, "bilinear", "zeros", align_corners=align_corners),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for value, other in zip(
        *(torch.autograd.grad((out * weights).sum(), (textures, grid)) for out in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(value[:, 1:], other[:, 1:], rtol=0, atol=1e-10)


def test_what_lies_outside_is_not_read():
    textures = torch.full((1, 1, 3, 3), torch.nan)
    grid = torch.full((1, 2, 2, 2), -9.0)
    assert torch.equal(sample_in_order(textures, grid, False), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("width", [6.0, 25.0, 90.0])
def test_the_deterministic_implant_is_the_same(monkeypatch, width):
    """As on a GPU where torch is asked to be deterministic: the values and the gradient, to rounding."""
    patch = random.uniform(random.key(1), (3, 31, 20))
    scene = random.uniform(random.key(2), (2, 3, 97, 131))
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.95, 1.2], [-0.05, 0.9]]) * width + 11.3
    weights = random.uniform(random.key(3), tuple(scene.shape))

    def implanted():
        leaf = patch.clone().requires_grad_()
        quads, which = corners.expand(2, 1, 4, 2), torch.zeros(2, 1, dtype=torch.int64)
        image = region.implant_quads(scene, {"a": leaf}, ("a",), quads, which, torch.ones(2, 1))
        return image.detach(), torch.autograd.grad((image * weights).sum(), leaf)[0]

    plain = implanted()
    calls = []
    monkeypatch.setattr(region, "is_deterministic_gpu", lambda tensor: True)
    monkeypatch.setattr(region, "sample_in_order", lambda *given: calls.append(1) or sample_in_order(*given))
    for found, expected in zip(implanted(), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert calls
