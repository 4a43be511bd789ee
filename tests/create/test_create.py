"""The values of creators against independent implementations, every option, and what must be refused."""

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import scipy.fft  # with asarray: its stubs give what dispatches a call
import scipy.ndimage
import torch
import torch.nn.functional as F
from cases import (
    INKS,
    NUM_ROWS,
    TinyGenerator,
    detector,
    make_inputs,
    noise,
    tiny_generator,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch import Tensor, nn
from typecheck import unchecked

from fpatch import compose, create, data, implant, infer, losses, make_optimizer, random
from fpatch.core.files import file_digest
from fpatch.core.types import Range
from fpatch.create.print import _icc as icc_module
from fpatch.evaluation.conditions import make_patches
from fpatch.evaluation.stage_views import view_stages
from fpatch.graph.build import build
from fpatch.graph.node import node
from fpatch.graph.pipeline import pipeline
from fpatch.graph.samples import control
from fpatch.ops.spectrum import dct2, gaussian_response, idct2
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer
from fpatch.optim.step import TrainState, make_step

KEY = random.key(2)
INTENTS = ("perceptual", "relative", "saturation", "absolute")
PATCHES = {"hood": noise("hood", 3, 20, 31), "roof": noise("roof", 1, 16, 9)}
ROWS = noise("rows", NUM_ROWS, 3, 7, 12)


def apply(stage, sample=None, params=None, **inputs):
    return stage.apply(params or {}, sample or {}, {**make_inputs(patch=PATCHES), **inputs})


def patch_of(stage, patch: Tensor, sample=None) -> Tensor:
    return apply(stage, sample, patch={"hood": patch})["patch"]["hood"]


def column(*values: float) -> Tensor:
    return torch.tensor(values)


# -- named patches

SOME = {
    "tile": create.tile(grid=(2, 2), only=("hood",)),
    "scroll": create.scroll(only=("hood",)),
    "reflect": create.reflect(only=("hood",)),
    "low_pass": create.low_pass(only=("hood",)),
    "high_pass": create.high_pass(only=("hood",)),
    "spectrum": create.spectrum(only=("hood",)),
    "symmetric": create.symmetric(only=("hood",)),
    "soft_proof": create.soft_proof(only=("hood",)),
    "proof_table": create.proof_table(only=("hood",)),
    "snap": create.snap(INKS, only=("hood",)),
    "stack": create.stack(3, only=("roof",)),
}


@pytest.mark.parametrize("name", SOME)
def test_only_the_named_patch_changes(name):
    named, other = ("roof", "hood") if name == "stack" else ("hood", "roof")
    out, _ = SOME[name]({}, KEY, make_inputs(patch=PATCHES))
    assert list(out["patch"]) == ["hood", "roof"]
    assert out["patch"][other] is PATCHES[other]
    assert not torch.equal(out["patch"][named].flatten()[:9], PATCHES[named].flatten()[:9]) or name in (
        "tile",
        "stack",
    )
    everywhere = dataclasses.replace(SOME[name], config=dataclasses.replace(SOME[name].config, only=None))
    same = {named: PATCHES[named]}
    assert torch.equal(out["patch"][named], everywhere({}, KEY, make_inputs(patch=same))[0]["patch"][named])


@pytest.mark.parametrize("name", [*SOME, "save"])
def test_an_unknown_name_is_refused(name):
    stage = {**SOME, "save": create.save()}[name]
    wrong = dataclasses.replace(stage, config=dataclasses.replace(stage.config, only=("hod",)))
    with pytest.raises(ValueError, match=rf"{name}\(only\): no patch 'hod'; did you mean 'hood'"):
        wrong({}, KEY, make_inputs(patch=PATCHES))


# -- tile, scroll, reflect, symmetric


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), height=st.integers(1, 7), width=st.integers(1, 7))
def test_tile_repeats_to_a_grid(rows, columns, height, width):
    """Whatever the shape of the patch: none is declared."""
    patch = noise("tile", 3, height, width)
    expected = np.tile(patch.numpy(), (1, rows, columns))
    np.testing.assert_array_equal(patch_of(create.tile(grid=(rows, columns)), patch), expected)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_tile_covers_a_size_from_the_top_left(height, width):
    y, x = np.ogrid[:height, :width]
    for patch in (PATCHES["hood"][:, :7, :12], ROWS):
        expected = patch.numpy()[..., y % 7, x % 12]
        np.testing.assert_array_equal(patch_of(create.tile(size=(height, width)), patch), expected)


@pytest.mark.parametrize("shape", [(3, 20, 31), (1, 16, 9)])
def test_scroll_rolls_by_fractions_of_its_own_sides(shape):
    """x by the width and y by the height: a patch that is not square tells them apart."""
    patch = noise("scroll", *shape)
    x, y = [0.0, 0.5, -0.29], [0.25, 1.0, 0.7]
    out = patch_of(create.scroll(), patch, {"x_frac": column(*x), "y_frac": column(*y)})
    for row, dx, dy in zip(out, x, y, strict=True):
        shift = (0, round(dy * shape[1]), round(dx * shape[2]))
        np.testing.assert_array_equal(row, np.roll(patch.numpy(), shift, axis=(0, 1, 2)))


def test_scroll_draws_every_offset_equally_often():
    keys = random.split(KEY, 6000)
    drawn = create.scroll(Range(0.0, 1.0), Range(-0.5, 0.0)).sample(keys, {})
    offsets = (drawn["x_frac"] * 5).round().long().remainder(5).bincount(minlength=5)
    assert bool(((offsets - 1200).abs() < 5 * (6000 * 0.2 * 0.8) ** 0.5).all())
    assert -0.5 <= float(drawn["y_frac"].min()) < -0.49 < -0.01 < float(drawn["y_frac"].max()) < 0
    assert abs(np.corrcoef(drawn["x_frac"], drawn["y_frac"])[0, 1]) < 5 / 6000**0.5


@pytest.mark.parametrize("shape", [(3, 20, 31), (1, 16, 9)])
def test_reflect_equals_scipy(shape):
    patch = noise("reflect", *shape)
    x, y = [0.0, 0.4, -1.0], [0.3, -0.5, 0.9]
    out = patch_of(create.reflect(), patch, {"x_frac": column(*x), "y_frac": column(*y)})
    for row, dx, dy in zip(out, x, y, strict=True):
        shift = (0, round(dy * shape[1]), round(dx * shape[2]))
        expected = scipy.ndimage.shift(patch.numpy(), shift, order=0, mode="reflect")
        np.testing.assert_array_equal(row, expected)


def test_reflect_draws_x_and_y_on_their_own():
    drawn = create.reflect(Range(-0.2, 0.1), Range(0.3, 0.3)).sample(random.split(KEY, 2000), {})
    assert -0.2 <= float(drawn["x_frac"].min()) < -0.19 < 0.09 < float(drawn["x_frac"].max()) < 0.1
    assert set(drawn["y_frac"].tolist()) == {float(torch.tensor(0.3))}


@pytest.mark.parametrize("stage", [create.scroll(), create.reflect()])
def test_rows_move_their_own_patch(stage):
    sample = {"x_frac": column(0.1, 0.5, -0.3), "y_frac": column(0.2, 0.0, 0.6)}
    out = patch_of(stage, ROWS, sample)
    for i in range(NUM_ROWS):
        one = {name: value[i : i + 1] for name, value in sample.items()}
        assert torch.equal(out[i], patch_of(stage, ROWS[i], one)[0])


@pytest.mark.parametrize(("along", "flips"), [("x", [(2,)]), ("y", [(1,)]), ("both", [(1,), (2,), (1, 2)])])
def test_symmetric_is_the_mean_of_its_mirrors(along, flips):
    patch = PATCHES["hood"].double().numpy()
    expected = np.mean([patch, *(np.flip(patch, axes) for axes in flips)], axis=0)
    for given_patch in (PATCHES["hood"], PATCHES["hood"].expand(3, -1, -1, -1)):
        out = patch_of(create.symmetric(along), given_patch)
        np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), atol=1e-7)
    for axes in flips:
        assert torch.equal(out, out.flip([a - 3 for a in axes]))


# -- frequencies


@pytest.mark.parametrize("shape", [(20, 31), (3, 20, 31), (2, 3, 8, 8), (1, 1, 9), (3, 1, 1), (1, 64, 5)])
def test_cosine_transform_equals_scipy(shape):
    image = noise("dct", *shape)
    expected = np.asarray(scipy.fft.dctn(image.double().numpy(), axes=(-2, -1), norm="ortho"))
    np.testing.assert_allclose(dct2(image), expected, atol=3e-6)
    np.testing.assert_allclose(idct2(dct2(image)), image, atol=3e-6)
    spectrum = noise("idct", *shape)
    expected = np.asarray(scipy.fft.idctn(spectrum.double().numpy(), axes=(-2, -1), norm="ortho"))
    np.testing.assert_allclose(idct2(spectrum), expected, atol=3e-6)
    np.testing.assert_allclose(
        dct2(image.double()), np.asarray(scipy.fft.dctn(image.double(), axes=(-2, -1), norm="ortho"))
    )


def quiet(shape: tuple[int, ...]) -> Tensor:
    """Noise about middle gray, so weak that no filter clips it."""
    return 0.5 + 0.1 * (noise("quiet", *shape) - 0.5)


@pytest.mark.parametrize("cutoff", [0.1, 0.25, 0.8])
@pytest.mark.parametrize("shape", [(3, 20, 31), (3, 2, 16, 9)])
def test_filters_have_their_gain_at_every_frequency(cutoff, shape):
    patch = quiet(shape)
    fy, fx = np.ogrid[: shape[-2], : shape[-1]]
    radius = np.hypot(fy / shape[-2], fx / shape[-1])
    gain = 2.0 ** -((radius / cutoff) ** 2)
    before = np.asarray(scipy.fft.dctn(patch.double().numpy() - 0.5, axes=(-2, -1)))
    for stage, expected in ((create.low_pass(cutoff), gain), (create.high_pass(cutoff), 1 - gain)):
        out = patch_of(stage, patch).double().numpy() - 0.5
        found = np.asarray(scipy.fft.dctn(out, axes=(-2, -1)))
        np.testing.assert_allclose(found, before * expected, atol=2e-4)


def test_a_high_pass_is_one():
    """A slow wave goes and a fast one stays; for a low pass, the other way round."""
    x = torch.arange(40) + 0.5
    slow, fast = (0.5 + 0.2 * torch.cos(math.pi / 40 * k * x).expand(3, 24, 40) for k in (2, 38))
    high, low = create.high_pass(0.3), create.low_pass(0.3)
    assert float((patch_of(high, slow) - 0.5).abs().max()) < 0.01
    assert float((patch_of(high, fast) - fast).abs().max()) < 0.01
    assert float((patch_of(low, slow) - slow).abs().max()) < 0.01
    assert float((patch_of(low, fast) - 0.5).abs().max()) < 0.01


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_filters_of_a_flat_patch(level):
    flat = torch.full((3, 9, 14), level)
    torch.testing.assert_close(patch_of(create.low_pass(), flat), flat, rtol=0, atol=1e-6)
    gray = patch_of(create.high_pass(), flat)
    torch.testing.assert_close(gray, torch.full_like(flat, 0.5), rtol=0, atol=1e-6)


def test_low_and_high_pass_add_up():
    patch = quiet((3, 20, 31))
    both = patch_of(create.low_pass(0.4), patch) + patch_of(create.high_pass(0.4), patch) - 0.5
    torch.testing.assert_close(both, patch, rtol=0, atol=1e-6)


def test_gain_is_a_half_at_the_cutoff():
    response = gaussian_response(10, 20, 0.3)
    assert float(response[0, 0]) == 1
    assert [round(float(v), 6) for v in (response[3, 0], response[0, 6])] == [0.5, 0.5]


@pytest.mark.parametrize(("std", "rho"), [(16 / 255, 0.5), (0.0, 0.9), (0.1, 0.0), (0.0, 0.0)])
def test_spectrum_is_the_published_transformation(std, rho):
    """Long et al. (2022), section 3.3: T(x) = IDCT(DCT(x + noise) * mask), noise ~ N(0, sigma^2), mask ~
    U(1 - rho, 1 + rho) per coefficient, with sigma = 16 / 255 and rho = 0.5; clamped, as a print must be."""
    stage = create.spectrum(std, rho)
    inputs = make_inputs(patch={"roof": PATCHES["roof"], "hood": PATCHES["hood"], "rows": ROWS})
    out, sample = stage({}, KEY, inputs)
    for i, (name, patch) in enumerate(inputs["patch"].items()):
        for row in range(NUM_ROWS):
            x = (patch[row] if patch.ndim == 4 else patch).double().numpy()
            keys = (random.fold_in(sample[field][row], i) for field in ("noise_key", "mask_key"))
            field, unit = random.gaussian_field(next(keys), x.shape), random.uniform(next(keys), x.shape)
            mask = 1 - rho + 2 * rho * unit.double().numpy()
            spectrum = scipy.fft.dctn(x + std * field.double().numpy(), axes=(1, 2)) * mask
            expected = np.asarray(scipy.fft.idctn(spectrum, axes=(1, 2))).clip(0, 1)
            np.testing.assert_allclose(out["patch"][name][row], expected, atol=3e-6)


def test_spectrum_has_the_authors_settings_and_other_noise_in_each_row_and_patch():
    assert create.spectrum().config == create.spectrum(16 / 255, 0.5).config
    gray = torch.full((3, 16, 16), 0.5)
    out, sample = create.spectrum(0.1, 0.0)({}, KEY, make_inputs(patch={"a": gray, "b": gray}))
    fields = torch.cat([out["patch"]["a"], out["patch"]["b"]]).flatten(1).double() - 0.5
    correlation = torch.corrcoef(fields) - torch.eye(6)
    assert float(correlation.abs().max()) < 5 / 768**0.5
    assert not torch.equal(sample["noise_key"], sample["mask_key"])
    np.testing.assert_allclose(fields.std(1), 0.1, rtol=0.15)


# -- print


def engine(patch: Tensor, intent: str) -> np.ndarray:
    """sRGB to ink and ink to sRGB, in two transforms of littlecms with 8-bit ink between them."""
    image = Image.fromarray((patch * 255).round().byte().permute(1, 2, 0).numpy())
    screen, paper = ImageCms.createProfile("sRGB"), ImageCms.getOpenProfile(io.BytesIO(profile_bytes()))
    number = {"perceptual": 0, "relative": 1, "saturation": 2, "absolute": 3}[intent]
    ink = ImageCms.buildTransform(screen, paper, "RGB", "CMYK", number, ImageCms.Flags.NOOPTIMIZE)
    back = ImageCms.buildTransform(
        paper, screen, "CMYK", "RGB", 3 if number == 3 else 1, ImageCms.Flags.NOOPTIMIZE
    )
    return np.array(back.apply(ink.apply(image))).transpose(2, 0, 1) / 255


def profile_bytes() -> bytes:
    return create.icc_profile().value.numpy().tobytes()


@pytest.mark.parametrize("intent", INTENTS)
def test_soft_proof_is_ink_and_back(intent):
    patch = noise("proof", 3, 40, 37)
    out = patch_of(create.soft_proof(intent=intent), patch)
    # ink of 8 bits is up to half a level off, which is most in dark colors, where sRGB is steep
    error = (out - torch.from_numpy(engine(patch, intent))).abs() * 255
    assert float(error.max()) < 5.5
    assert float((error > 2.1).double().mean()) < 2e-3
    assert float(error.mean()) < 0.4
    assert float(out.mul(255).sub(out.mul(255).round()).abs().max()) < 1e-4


def test_soft_proof_intents():
    """Paper is white but for "absolute", which shows it; no ink is black; red is duller; they all differ."""
    colors = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]]).T[:, None]
    found = {intent: patch_of(create.soft_proof(intent=intent), colors)[:, 0].T for intent in INTENTS}
    for intent, (white, black, red, gray) in found.items():
        assert (white == 1).all() == (intent != "absolute")
        assert 0.08 < float(black.max()) < 0.13
        assert float(red[0]) < 0.93
        assert float(red[1]) > 0.1
        assert float((gray - 0.5).abs().max()) < 0.03
    assert 0.92 < float(found["absolute"][0].min()) < 0.95
    assert len({tuple(f.flatten().tolist()) for f in found.values()}) == 4


def test_soft_proof_rounds_and_clamps():
    patch = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.999, 1.0, 1.01]).expand(3, 1, 6)
    out = patch_of(create.soft_proof(), patch)
    assert torch.equal(out[..., 1:3], out[..., :1].expand(-1, -1, 2))
    assert torch.equal(out[..., 3:], torch.ones(3, 1, 3))


@pytest.mark.parametrize("stage", [create.soft_proof(), create.proof_table(), create.snap(INKS)])
def test_rows_are_printed_one_by_one(stage):
    out = patch_of(stage, ROWS)
    assert out.shape == ROWS.shape
    assert all(torch.equal(out[i], patch_of(stage, ROWS[i])) for i in range(NUM_ROWS))
    with pytest.raises(ValueError, match=r"'roof' must have 3 channels, got shape \[1, 16, 9\]; put"):
        apply(stage)


LARGEST = {"perceptual": 3, "relative": 6.5, "saturation": 10, "absolute": 5.5}


@pytest.mark.parametrize("intent", INTENTS)
def test_proof_table_equals_the_engine(intent):
    """The errors that the docstring states: in levels of 255, 0.25 of which is the engine's own rounding."""
    patch = (noise("colors", 3, 300, 300) * 255).round() / 255
    table, proof = (patch_of(s(intent=intent), patch) for s in (create.proof_table, create.soft_proof))
    error = (table - proof).abs() * 255
    assert float(error.max()) < LARGEST[intent]
    assert float(error.mean()) < 0.24
    assert float((error > 2).float().mean()) < 1.5e-3


def test_proof_table_has_the_engines_answers_at_its_nodes():
    levels = torch.arange(0, 256, 3)[
        torch.randint(0, 86, (3, 30, 30), generator=torch.Generator().manual_seed(1))
    ]
    patch = levels / 255
    table, proof = (patch_of(s, patch) for s in (create.proof_table(), create.soft_proof()))
    torch.testing.assert_close(table, proof, rtol=0, atol=1e-4)


def test_look_up_interpolates_like_scipy_and_has_its_slope():
    table = noise("table", 5, 5, 5, 3)
    image = 1.2 * noise("image", 3, 8, 9) - 0.1
    coordinates = image.clamp(0, 1).double().numpy() * 4
    expected = [
        scipy.ndimage.map_coordinates(table[..., c].double().numpy(), coordinates, order=1) for c in range(3)
    ]
    np.testing.assert_allclose(icc_module.look_up(image, table), np.stack(expected), atol=2e-6)
    inside = (0.1 + 0.8 * noise("inside", 3, 2, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: icc_module.look_up(x, table.double()), (inside,))


def test_proof_table_is_baked_once():
    icc_module.bake_table.cache_clear()
    for stage in (create.proof_table(), create.proof_table(), create.proof_table(only=("hood",))):
        patch_of(stage, PATCHES["hood"])
    assert icc_module.bake_table.cache_info().misses == 1


def test_training_through_the_print_leaves_colors_that_no_ink_can_mix():
    """Pure green, aimed at through the table: the print comes nearer than that of pure green itself."""
    target = torch.tensor([0.2, 0.65, 0.3])[:, None, None].expand(3, 4, 4)
    made = pipeline({"pixels": create.pixels({"hood": (3, 4, 4)}), "print": create.proof_table()})
    params = {"hood": torch.full((3, 4, 4), 0.5, requires_grad=True)}
    adam = torch.optim.Adam(params.values(), lr=0.02)
    batch = {"image_id": torch.arange(1), "draw": torch.zeros(1, dtype=torch.int64)}
    for _ in range(150):
        adam.zero_grad()
        (made(params, KEY, batch)[0]["patch"]["hood"] - target).square().mean().backward()
        adam.step()
    printed = patch_of(create.soft_proof(), params["hood"].detach().clamp(0, 1))
    assert float((printed - target).abs().max()) < 0.03
    assert float((patch_of(create.soft_proof(), target) - target).abs().max()) < 0.1


def test_soft_proof_says_what_it_cannot_do():
    d = create.soft_proof
    assert (d.traits.vmap, d.traits.gradient) == (False, False)
    assert (create.proof_table.traits.vmap, create.proof_table.traits.gradient) == (True, True)
    parts = {"pixels": create.pixels({"hood": (3, 4, 4)}), "proof": create.soft_proof()}
    with pytest.raises(ValueError, match="phase 'train': node 'proof' passes no gradient"):
        pipeline(parts)
    made = pipeline({**parts, "proof": node(create.soft_proof(), phases={"eval"})})
    assert list(made.at("train")) == ["pixels"]
    tested = made.at("test")
    assert list(tested) == ["pixels", "proof"]
    assert list(tested.without("proof")) == list(tested.upto("pixels")) == ["pixels"]
    more = tested | {"save": create.save()}
    assert list(more) == ["pixels", "proof", "save"]
    assert list(more.without("save")) == list(more.upto("proof")) == ["pixels", "proof"]
    assert list(tested.since("proof")) == ["proof"]


def test_profile_from_a_file_is_pinned_by_its_digest(tmp_path):
    file = tmp_path / "printer.icc"
    file.write_bytes(profile_bytes())
    stage = create.soft_proof(create.icc_profile(file), intent="saturation")
    assert stage.config.profile.sha256 == file_digest(file)
    patch = PATCHES["hood"]
    assert torch.equal(patch_of(stage, patch), patch_of(create.soft_proof(intent="saturation"), patch))
    again = build(pipeline({"proof": node(stage, phases={"eval"})}).config)["proof"].stage
    assert again.config == stage.config
    file.write_bytes(profile_bytes()[:-1])
    with pytest.raises(ValueError, match=r"printer.icc has changed: sha256"):
        patch_of(create.soft_proof(dataclasses.replace(stage.config.profile)), patch)


def test_what_is_no_printer_profile_is_refused(tmp_path):
    text, screen = tmp_path / "text.icc", tmp_path / "screen.icc"
    text.write_text("not a profile")
    screen.write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    with pytest.raises(
        ValueError, match=r"icc_profile' cannot be loaded from .*text.icc: it is no ICC profile"
    ):
        _ = create.icc_profile(text).value
    with pytest.raises(ValueError, match="it is a profile of class 'mntr'; give a printer's"):
        _ = create.icc_profile(screen).value
    for stage in (create.soft_proof, create.proof_table):
        with (
            unchecked(),
            pytest.raises(ValueError, match=r"\(intent\) must be one of .* got 'photo'"),
        ):
            stage(intent="photo")


def test_the_profile_that_ships_is_cmyk_with_its_license():
    profile: Any = ImageCms.getOpenProfile(io.BytesIO(profile_bytes())).profile
    assert (profile.device_class, profile.xcolor_space.strip()) == ("prtr", "CMYK")
    assert all(profile.is_intent_supported(i, ImageCms.Direction.OUTPUT) for i in range(4))
    text = (icc_module.files("fpatch.create") / "profiles/LICENSE.txt").read_text()
    assert "TR 006-2007" in text
    assert "may be distributed with no further permissions" in text


def test_snap_takes_the_nearest_ink():
    patch = noise("snap", 3, 9, 14)
    pixels = patch.double().flatten(1).T.numpy()
    inks = np.array(INKS)
    nearest = [min(range(5), key=lambda i: math.dist(inks[i], p)) for p in pixels]
    expected = inks[nearest].T.reshape(3, 9, 14)
    np.testing.assert_allclose(patch_of(create.snap(INKS), patch), expected, atol=1e-7)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("size", [(9, 40), (33, 13)])
def test_resize_every_way_of_one_patch_and_of_one_per_row(mode, size):
    patch = noise("resize", 3, 20, 31)
    out = patch_of(create.resize({"hood": size}, interpolation=mode), patch)
    smooth = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resampling = {**smooth, "nearest-exact": Image.Resampling.NEAREST}.get(mode)
    if resampling is not None:
        channels = [Image.fromarray(c.numpy()).resize(size[::-1], resampling) for c in patch]
        expected = np.stack([np.asarray(c) for c in channels]).clip(0, 1)
    elif mode == "area":
        expected = F.adaptive_avg_pool2d(patch.double(), size)
    else:
        y, x = (torch.arange(n) * m // n for n, m in zip(size, (20, 31), strict=True))
        expected = patch[:, y[:, None], x]
    # PIL's cubic has the same kernel, in other rounding
    np.testing.assert_allclose(out, expected, atol=2e-2 if mode == "bicubic" else 2e-6)
    rows = patch_of(create.resize({"hood": size}, interpolation=mode), torch.stack([patch, 1 - patch]))
    torch.testing.assert_close(rows[0], out, rtol=0, atol=1e-6)


# -- save


def test_save_shows_the_patch_where_it_stands_and_changes_nothing():
    made = pipeline(
        {
            "pixels": create.pixels({"hood": (3, 4, 6), "roof": (1, 5, 3)}),
            "before": create.save(),
            "tile": create.tile(grid=(2, 1)),
            "scroll": create.scroll(only=("hood",)),
            "after": create.save(only=("hood",)),
        }
    )
    params, batch = made.init(KEY), {k: make_inputs()[k] for k in ("image_id", "draw")}
    out, sample = made(params, KEY, batch)
    shown = view_stages(made, params, sample, batch, "test").shown
    assert torch.equal(shown["before/hood"], params["hood"])
    assert torch.equal(shown["before/roof"], params["roof"])
    assert torch.equal(shown["before/roof values"], params["roof"].flatten())
    assert torch.equal(shown["after/hood"], out["patch"]["hood"][0])
    assert shown["after/hood values"].shape == (NUM_ROWS * 3 * 8 * 6,)
    assert "after/roof" not in shown
    without = made.without("before", "after").apply(params, sample, batch)
    assert all(torch.equal(out["patch"][name], without["patch"][name]) for name in out["patch"])
    assert made.without("before").sample(KEY, batch)["scroll"]["x_frac"].equal(sample["scroll"]["x_frac"])


# -- parameterizations

PARAMETERIZATIONS = {
    "pixels": create.pixels({"hood": (3, 8, 10), "roof": (1, 6, 4)}),
    "tanh": create.tanh({"hood": (3, 8, 10), "roof": (1, 6, 4)}),
    "fourier": create.fourier({"hood": (3, 8, 11), "roof": (1, 6, 4)}, std=1.0),
    "palette": create.palette({"hood": (8, 10), "roof": (6, 4)}, INKS),
    "generator": create.generator(tiny_generator(seed=4), {"hood": (4, 1, 2), "roof": (4, 1, 1)}),
}


def test_pixels_start_uniform_in_their_range_by_name():
    made = create.pixels({"hood": (3, 8, 10), "roof": (1, 6, 4)}, start=Range(0.2, 0.6))
    init = made.definition.init
    for name, shape in made.config.shapes.items():
        expected = 0.2 + 0.4 * random.uniform(random.fold_in(KEY, name), shape).double()
        np.testing.assert_allclose(init(made.config, KEY)[name], expected, atol=1e-7)
    alone = create.pixels({"roof": (1, 6, 4)}, start=Range(0.2, 0.6))
    assert torch.equal(init(alone.config, KEY)["roof"], init(made.config, KEY)["roof"])


def test_pixels_start_from_a_tensor_or_a_file_in_its_own_size(tmp_path):
    levels = np.arange(3 * 5 * 7, dtype=np.uint8).reshape(5, 7, 3) * 2
    Image.fromarray(levels).save(tmp_path / "art.png")
    tensor = noise("tensor", 1, 4, 9)
    stage = create.pixels(
        {"door": (3, 2, 2)}, images={"hood": data.image_file(tmp_path / "art.png"), "roof": tensor}
    )
    made = pipeline({"pixels": stage, "stack": create.stack(), "implant": implant.warp()})
    assert stage.config.names == made["implant"].stage.config.names == ("door", "hood", "roof")
    params = made.init(KEY)
    np.testing.assert_allclose(params["hood"], levels.transpose(2, 0, 1) / 255, atol=1e-7)
    assert torch.equal(params["roof"], tensor)
    free = create.pixels(images={"roof": tensor}, clamp=None)
    free.definition.init(free.config, KEY)["roof"].add_(1)
    assert float(tensor.max()) < 1
    again = build(
        {"pixels": {"stage": "create.pixels", "images": {"hood": made.config["pixels"]["images"]["hood"]}}}
    )
    assert torch.equal(again.init(KEY)["hood"], params["hood"])


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "I;16", "sideways"])
def test_image_files_of_every_kind(tmp_path, mode):
    file = tmp_path / ("art.jpg" if mode == "sideways" else "art.tif" if mode == "CMYK" else "art.png")
    ramp = np.linspace(0, 255, 48, dtype=np.uint8).reshape(6, 8)
    gray = Image.fromarray(ramp)
    expected = np.broadcast_to(ramp / 255, (3, 6, 8))
    if mode == "I;16":
        Image.fromarray(ramp.astype(np.uint16) * 257).save(file)
    elif mode == "1":
        gray.convert("1").save(file)
        expected = np.broadcast_to(np.asarray(gray.convert("1")).astype(float), (3, 6, 8))
    elif mode in ("LA", "RGBA"):
        image = gray.convert(mode)
        image.putalpha(Image.new("L", gray.size, 51))
        image.save(file)
        expected = 1 - 0.2 * (1 - expected)
    elif mode == "sideways":
        exif = Image.Exif()
        exif[0x0112] = 6
        gray.save(file, exif=exif, quality=100)
        expected = np.rot90(expected, -1, axes=(1, 2))
    else:
        gray.convert(mode).save(file)
    found = data.image_file(file).value
    np.testing.assert_allclose(found, expected, atol=(3 if mode == "sideways" else 1) / 255)


def test_pixels_are_clamped_to_a_range_or_not_at_all():
    moved = {"hood": torch.tensor([-0.5, 0.02, 0.5, 1.5])[None, None]}
    for clamp, expected in (
        (Range(0.0, 1.0), [0.0, 0.02, 0.5, 1.0]),
        (Range(0.1, 0.8), [0.1, 0.1, 0.5, 0.8]),
        (None, [-0.5, 0.02, 0.5, 1.5]),
    ):
        made = pipeline({"pixels": create.pixels({"hood": (1, 1, 4)}, clamp=clamp)})
        np.testing.assert_allclose(made.project(moved)["hood"].flatten(), expected)
        start = made.init(KEY)["hood"]
        assert clamp is None or torch.equal(start, start.clamp(*clamp))
    config = {"stage": "create.pixels", "shapes": {"hood": [1, 1, 4]}, "clamp": False}  # TOML has no null
    assert build({"pixels": config})["pixels"].stage.config.clamp is None
    bright = create.pixels({"hood": (1, 20, 20)}, start=Range(0.7, 1.0), clamp=Range(0.0, 0.8))
    assert float(bright.definition.init(bright.config, KEY)["hood"].max()) == pytest.approx(0.8)
    assert create.pixels({"hood": (1, 1, 1)}).config.clamp == (0, 1)


def test_tanh_is_the_change_of_variables_of_carlini_and_wagner():
    stage = create.tanh({"hood": (3, 20, 31)}, start=Range(0.2, 0.9))
    params = stage.definition.init(stage.config, KEY)
    start = apply(stage, params=params)["patch"]["hood"]
    expected = 0.2 + 0.7 * random.uniform(random.fold_in(KEY, "hood"), (3, 20, 31)).double()
    np.testing.assert_allclose(start, expected, atol=1e-6)
    w = {"hood": 12 * noise("w", 3, 20, 31) - 6}
    out = apply(stage, params=w)["patch"]["hood"]
    np.testing.assert_allclose(out, 0.5 * (np.tanh(w["hood"].double().numpy()) + 1), atol=1e-6)
    far = apply(stage, params={"hood": torch.tensor([-1e9, 1e9]).reshape(1, 1, 2)})["patch"]["hood"]
    assert far.flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("h", "w"), [(8, 11), (7, 4), (1, 5), (6, 1), (16, 16)])
@pytest.mark.parametrize("decay", [1.0, 0.0, 1.5])
def test_fourier_is_the_scaled_inverse_transform_of_lucid(h, w, decay):
    """Its `fft_image`: spectrum * sqrt(w h) / max(f, 1 / max(w, h)) ** decay, inverse real FFT, logistic."""
    stage = create.fourier({"hood": (2, h, w)}, decay=decay, std=0.7)
    params = stage.definition.init(stage.config, KEY)
    real, imaginary = params["hood"].double().numpy()
    f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))
    scale = np.sqrt(w * h) / np.maximum(f, 1 / max(w, h)) ** decay
    image = np.fft.irfft2((real + 1j * imaginary) * scale, s=(h, w))
    expected = 1 / (1 + np.exp(-image))
    found = apply(stage, params=params)["patch"]["hood"]
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_fourier_starts_normal_and_falls_with_frequency():
    stage = create.fourier({"hood": (3, 64, 64)}, std=0.02)
    start = stage.definition.init(stage.config, KEY)["hood"]
    assert start.shape == (2, 3, 64, 33)
    assert float(start.std()) == pytest.approx(0.02, rel=0.05)
    patch = apply(stage, params={"hood": start})["patch"]["hood"].double().numpy()
    power = (np.abs(np.fft.rfft2(patch)) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64))
    ratio = power[(f > 0.05) & (f < 0.1)].mean() / power[(f > 0.3) & (f < 0.4)].mean()
    assert 12 < ratio < 35
    gray = create.fourier({"hood": (3, 5, 5)}, std=0.0)
    flat = apply(gray, params=gray.definition.init(gray.config, KEY))["patch"]["hood"]
    assert torch.equal(flat, torch.full((3, 5, 5), 0.5))


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_palette_is_a_softmax_over_inks(temperature):
    stage = create.palette({"hood": (8, 10)}, INKS, temperature=temperature, std=2.0)
    logits = stage.definition.init(stage.config, KEY)["hood"]
    assert logits.shape == (5, 8, 10)
    assert float(logits.std()) == pytest.approx(2.0, rel=0.15)
    weights = np.exp(logits.double().numpy() / temperature)
    expected = np.einsum("nhw,nc->chw", weights / weights.sum(0), np.array(INKS))
    np.testing.assert_allclose(apply(stage, params={"hood": logits})["patch"]["hood"], expected, atol=1e-6)


def test_palette_snaps_to_the_ink_of_the_largest_logit_once_it_is_decided():
    """The hard form is a stage behind it for evaluation, through which the controls are printed too."""
    parts = {
        "palette": create.palette({"hood": (8, 10)}, INKS, temperature=0.05),
        "snap": node(create.snap(INKS), phases={"eval"}),
    }
    made = pipeline(parts)
    params = {"hood": (5 * noise("logits", 5, 8, 10)).round() + 0.1 * torch.arange(5)[:, None, None]}
    batch = {k: make_inputs()[k] for k in ("image_id", "draw")}
    hard = made.at("test")(params, KEY, batch)[0]["patch"]["hood"]
    expected = torch.tensor(INKS)[params["hood"].argmax(0)].permute(2, 0, 1)
    torch.testing.assert_close(hard, expected, rtol=0, atol=1e-6)
    assert "snap" not in made.at("train")
    with pytest.raises(ValueError, match="phase 'train': node 'snap' passes no gradient"):
        pipeline({**parts, "snap": create.snap(INKS)})


def test_generator_is_the_network_of_the_latent():
    stage = PARAMETERIZATIONS["generator"]
    params = stage.definition.init(stage.config, KEY)
    model = TinyGenerator(4)
    out = apply(stage, params=params)["patch"]
    for name, shape in {"hood": (3, 10, 22), "roof": (3, 10, 10)}.items():
        assert out[name].shape == shape
        torch.testing.assert_close(out[name], model(params[name][None])[0], rtol=0, atol=1e-6)
    wide = create.generator(tiny_generator(seed=4), {"hood": (4, 20, 50)})
    start = wide.definition.init(wide.config, KEY)["hood"]
    assert abs(float(start.mean())) < 5 / 4000**0.5
    assert float(start.std()) == pytest.approx(1, abs=5 * (2 * 4000) ** -0.5)


@pytest.mark.parametrize("transform", ["autograd", "func"])
def test_the_generator_stays_frozen(transform):
    model = TinyGenerator(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stage = create.generator(model, {"hood": (4, 1, 2)})
    made = pipeline({"g": stage, "implant": implant.rectangle(), "loss": node(pattern, writes=["pattern"])})
    optimizer = make_optimizer(Optimizer("adam", 0.1), 5)
    step = make_step(Objective(made, {"pattern": 1.0}), optimizer, transform=transform)
    params = made.init(KEY)
    state = TrainState(params, optimizer.init(params), 0, KEY)
    for _ in range(5):
        state, info = step(state, make_inputs(quad_patch=torch.zeros(3, 3, dtype=torch.int64)))
    assert float(info.grad_norm) > 0
    assert not torch.equal(state.params["hood"], params["hood"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def pattern(values, patch_params):
    image = values["image"]
    return {"pattern": (image * noise("pattern", *image.shape[1:])).mean((1, 2, 3))}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x, "model must be a torch.nn.Module, got function"),
        (TinyGenerator(4).train(), "'the model' is in training mode"),
        (
            nn.Sequential(nn.Upsample(scale_factor=3)).eval(),
            r"'hood' must be within 0..1, got -.* \(x \+ 1\) / 2",
        ),
        (nn.Sequential(nn.Flatten()).eval(), r"must return \[1, c, h, w\] for 'hood', got \[1, 24\]"),
    ],
)
def test_what_is_no_generator_is_refused(model, message):
    with unchecked():
        stage = create.generator(model, {"hood": (4, 2, 3)})
    with pytest.raises(ValueError, match=message):
        apply(stage, params=stage.definition.init(stage.config, KEY))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_names_reach_the_implant_and_patches_reach_the_controls(name):
    made = pipeline({"p": PARAMETERIZATIONS[name], "stack": create.stack(), "implant": implant.warp()})
    assert made["implant"].stage.config.names == ("hood", "roof")
    assert made.parameterizations == ("p",)
    params = made.init(KEY)
    assert list(params) == ["hood", "roof"]
    patches = make_patches(made, params)["patch"]
    shown = view_stages(made.upto("p"), params, {}, make_inputs(), "test").shown
    for patch_name, patch in patches.items():
        assert 0 <= float(patch.min()) <= float(patch.max()) <= 1
        assert torch.equal(shown[f"p/{patch_name}"], patch)
    text = PARAMETERIZATIONS[name].definition.describe
    assert name == "generator" or "hood 8 x 1" in text(PARAMETERIZATIONS[name].config)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_control_leaves_nothing_of_it(name):
    made = pipeline({"p": PARAMETERIZATIONS[name], "stack": create.stack(), "implant": implant.warp()})
    params = {n: v.requires_grad_() for n, v in made.init(KEY).items()}
    inputs = make_inputs()
    image = made.apply(params, control(made.sample(KEY, inputs)), inputs)["image"]
    assert torch.equal(image, inputs["scene"])
    grads = torch.autograd.grad(
        (image * noise("w", *image.shape)).sum(), list(params.values()), allow_unused=True
    )
    assert all(g is None or not bool((g != 0).any()) for g in grads)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_batch_of_patches_trains_like_each_on_its_own(name):
    """Parameters with an axis of rows: three patches at once, each with its own gradient."""
    made = pipeline(
        {
            "p": PARAMETERIZATIONS[name],
            "resize": create.resize({"hood": (15, 21)}),
            "symmetric": create.symmetric("y", only=("roof",)),
            "stack": create.stack(3),
            "scroll": create.scroll(only=("roof",)),
            "implant": implant.warp(jitter_frac=0.05),
            "exposure": compose.exposure(),
            "victim": infer.detector(detector(seed=1)),
            "vanish": losses.vanish(iou=0.05),
            "pattern": node(pattern, writes=["pattern"]),
        }
    )
    optimizer = make_optimizer(Optimizer("sgd", 3.0), 4)
    single = make_step(Objective(made, {"vanish": 1.0, "pattern": 1.0}), optimizer)
    # the mean over three rows divides every row's gradient by three
    together = make_step(Objective(made, {"vanish": 3.0, "pattern": 3.0}), optimizer)
    starts = [made.init(random.key(seed)) for seed in range(NUM_ROWS)]
    inputs = make_inputs()
    stacked = {n: torch.stack([s[n] for s in starts]) for n in starts[0]}
    states = [TrainState(params, optimizer.init(params), 0, KEY) for params in starts]
    batched = TrainState(stacked, optimizer.init(stacked), 0, KEY)
    for _ in range(4):
        batched, _ = together(batched, inputs)
        for i, state in enumerate(states):
            row = {k: v for k, v in inputs.items() if k not in ("patch", "detections")}
            states[i], _ = single(state, {k: v[i : i + 1] for k, v in row.items()})
    for n in starts[0]:
        for i, state in enumerate(states):
            torch.testing.assert_close(batched.params[n][i], state.params[n], rtol=1e-4, atol=2e-5)
            # row 2 shows no roof: its placement is absent
            assert torch.equal(state.params[n], starts[i][n]) == ((n, i) == ("roof", 2))
        assert float((batched.params[n][0] - batched.params[n][1]).abs().max()) > 1e-3


# -- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create.tile(), "tile takes exactly one of grid and size, got grid=None, size=None"),
        (lambda: create.tile(grid=(1, 2), size=(3, 4)), "tile takes exactly one of grid and size"),
        (lambda: create.tile(grid=(0, 2)), r"tile\(grid\) must be \(rows, columns\), at least 1 each"),
        (lambda: create.tile(size=(3,)), r"tile\(size\) must be \(height, width\)"),
        (lambda: create.scroll(Range(0.5, 0.1)), r"scroll\(x_frac\) .* swap the two"),
        (lambda: create.scroll(y_frac=Range(0, 7)), r"scroll\(y_frac\) .* within \[-1, 1\]"),
        (lambda: create.reflect(Range(0.5, 0.1)), r"reflect\(x_frac\) .* swap the two"),
        (lambda: create.reflect(y_frac=Range(0, 7)), r"reflect\(y_frac\) .* within \[-1, 1\]"),
        (lambda: create.low_pass(0.0), r"low_pass\(cutoff_frac\) must be between 0.001 and 1, got 0.0"),
        (lambda: create.high_pass(1.5), r"high_pass\(cutoff_frac\) must be between 0.001 and 1, got 1.5"),
        (lambda: create.spectrum(-0.1), r"spectrum\(std_frac\) must be between 0 and 1"),
        (lambda: create.spectrum(rho=1.1), r"spectrum\(rho\) must be between 0 and 1"),
        (lambda: create.symmetric("z"), r"symmetric\(along\) must be one of x, y, both, got 'z'"),
        (lambda: create.snap(()), r"snap\(colors\) must be"),
        (lambda: create.snap(((0, 0, 2),)), r"snap\(colors\) must be"),
        (lambda: create.pixels(), r"pixels\(shapes\) must name at least one patch, got none"),
        (lambda: create.pixels({"a": (3, 2, 2)}, clamp=Range(-1, 1)), r"pixels\(clamp\) .* within \[0, 1\]"),
        (lambda: create.pixels({"a": (3, 2, 2)}, images={"a": ROWS[0]}), "'a' is in both shapes and images"),
        (lambda: create.tanh({}), r"tanh\(shapes\) must name at least one patch"),
        (lambda: create.tanh({"a": (2, 2)}), r"tanh\(shapes\): 'a' must be \(channels, height, width\)"),
        (
            lambda: create.tanh({"a": (3, 2, 2)}, start=Range(0, 1)),
            r"tanh\(start\) .* within \[0.001, 0.999\]",
        ),
        (lambda: create.fourier({}), r"fourier\(shapes\) must name at least one patch"),
        (lambda: create.fourier({"a": (3, 0, 2)}), r"fourier\(shapes\): 'a' must be"),
        (lambda: create.fourier({"a": (3, 2, 2)}, decay=-1), r"fourier\(decay\) must be between 0 and 10"),
        (lambda: create.fourier({"a": (3, 2, 2)}, std=math.nan), r"fourier\(std\) must be between 0 and 10"),
        (lambda: create.palette({}, INKS), r"palette\(sizes\) must name at least one patch"),
        (lambda: create.palette({"a": (3, 2, 2)}, INKS), r"palette\(sizes\): 'a' must be \(height, width\)"),
        (lambda: create.palette({"a": (2, 2)}, INKS[:1]), r"palette\(colors\) must be two or more"),
        (
            lambda: create.palette({"a": (2, 2)}, INKS, temperature=0),
            r"palette\(temperature\) must be at least",
        ),
        (lambda: create.palette({"a": (2, 2)}, INKS, std=-1), r"palette\(std\) must be at least 0"),
        (lambda: create.generator(nn.Identity(), {}), r"generator\(latents\) must name at least one patch"),
        (lambda: create.generator(nn.Identity(), {"a": ()}), r"generator\(latents\): 'a' must be a shape"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "image",
    [ROWS, ROWS[0] * 3, ROWS[0] - 0.5, (ROWS[0] * 255).byte(), ROWS[0] * math.nan, torch.zeros(3, 0, 4)],
)
def test_what_is_no_start_is_refused(image):
    stage = create.pixels(images={"hood": image})
    with pytest.raises(ValueError, match=r"pixels\(images\): 'hood' must be floats \[c, h, w\] within 0..1"):
        stage.definition.init(stage.config, KEY)


def test_files_that_are_no_start_are_refused(tmp_path):
    Image.fromarray(np.zeros((3, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(
        ValueError, match=r"image_file' cannot be loaded from .*floating-point pixels have no"
    ):
        _ = data.image_file(tmp_path / "float.tif").value
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"image_file' cannot be loaded from .*text.png"):
        _ = data.image_file(tmp_path / "text.png").value
    with pytest.raises(FileNotFoundError, match=r"none.png: no such file"):
        data.image_file(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(3, 8, 8), r"got shape \[3, 8, 8\]; give one channel, such as mask\[:1\], for all colors"),
        (torch.ones(2, 3, 8, 8), r"got shape \[2, 3, 8, 8\]$"),
        (255 * torch.ones(8, 8), r"got shape \[8, 8\]; divide levels by 255"),
        (1.5, "got 1.5"),
    ],
)
def test_a_mask_of_another_form_is_refused_with_the_way_out(mask, words):
    with pytest.raises(ValueError, match=r"mask\('hood'\) must be a number, \[height, width\] or .*" + words):
        create.mask({"hood": mask}).apply({}, {}, {"patch": {"hood": torch.zeros(3, 4, 4)}})
