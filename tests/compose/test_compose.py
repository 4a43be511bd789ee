"""The values of the composers against PIL, scipy, torchvision, kornia, or a formula in float64."""

import io
import itertools
import math
import re

import kornia
import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.transforms.functional as TF
from cases import HEIGHT, NUM_ROWS, SHAPES, WIDTH, make_inputs, make_quads, noise
from laws import assert_equal
from PIL import Image
from torch import Tensor

from fpatch import compose, create, implant, random
from fpatch.compose.camera.jpeg import _round
from fpatch.core.types import Range
from fpatch.graph.node import node
from fpatch.graph.pipeline import pipeline
from fpatch.graph.samples import override
from fpatch.ops.color import blackbody, linear_to_srgb, srgb_to_linear

KEY = random.key(3)
IMAGES = noise("images", NUM_ROWS, 3, HEIGHT, WIDTH)
SKIPPABLE = {
    "color_jitter": compose.color_jitter(p=0.3),
    "defocus": compose.defocus(p=0.3),
    "erasing": compose.erasing(p=0.3),
    "grayscale": compose.grayscale(p=0.3),
    "horizontal_flip": compose.horizontal_flip(p=0.3),
    "invert": compose.invert(p=0.3),
    "jpeg": compose.jpeg(p=0.3),
    "motion_blur": compose.motion_blur(p=0.3),
    "resample": compose.resample(p=0.3),
    "resized_crop": compose.resized_crop(p=0.3),
    "shadow": compose.shadow(p=0.3),
    "solarize": compose.solarize(p=0.3),
    "translation": compose.translation(p=0.3),
    "vertical_flip": compose.vertical_flip(p=0.3),
}
RANGED = {
    "color_jitter": compose.color_jitter(),
    "defocus": compose.defocus(),
    "erasing": compose.erasing(),
    "gamma": compose.gamma(),
    "jpeg": compose.jpeg(),
    "motion_blur": compose.motion_blur(),
    "resample": compose.resample(),
    "resized_crop": compose.resized_crop(),
    "shadow": compose.shadow(),
    "solarize": compose.solarize(),
    "tilt": compose.tilt(),
    "translation": compose.translation(),
    "white_balance": compose.white_balance(),
}


def apply(stage, image: Tensor = IMAGES, **sample) -> Tensor:
    """The image that a stage makes with this sample; a list holds rows, anything else stands for all."""
    return apply_all(stage, image, **sample)["image"]


def apply_all(stage, image: Tensor = IMAGES, **sample):
    given = {"on": True, **sample} if "on" in stage.definition.fields else sample
    rows = {name: v if isinstance(v, (Tensor, list)) else [v] * NUM_ROWS for name, v in given.items()}
    drawn = {name: torch.as_tensor(v) for name, v in rows.items()}
    return stage.apply({}, drawn, make_inputs(image=image, scene=image))


def float64(image: Tensor) -> np.ndarray:
    return image.double().numpy()


def resize_pil(plane: np.ndarray, size: tuple[int, int], box=None) -> np.ndarray:
    """In float32, to (height, width)."""
    picture = Image.fromarray(plane.astype(np.float32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box))


# -- what is drawn


@pytest.mark.parametrize("stage", SKIPPABLE.values(), ids=SKIPPABLE)
def test_rows_are_changed_with_probability_p(stage):
    batch = {"image_id": torch.arange(4000), "draw": torch.zeros(4000, dtype=torch.int64)}
    on = stage.sample(KEY, batch)["on"]
    assert abs(float(on.float().mean()) - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


@pytest.mark.parametrize("stage", SKIPPABLE.values(), ids=SKIPPABLE)
def test_a_row_that_is_not_changed_keeps_its_bits(stage):
    batch = make_inputs(boxes=make_inputs()["boxes"] + 30)  # some reach out of the frame
    sample = override(stage.sample(KEY, batch), {"on": [False, True, False]})
    out = stage.apply({}, sample, batch)
    for name in set(stage.definition.writes) & set(batch):
        assert_equal(out[name][[0, 2]], batch[name][[0, 2]])
    changed = "scene" if stage.definition.traits.geometric else "image"
    assert not torch.equal(out[changed][1], batch[changed][1])


@pytest.mark.parametrize("stage", RANGED.values(), ids=RANGED)
def test_draws_fill_their_ranges(stage):
    batch = {"image_id": torch.arange(4000), "draw": torch.zeros(4000, dtype=torch.int64)}
    sample = stage.sample(KEY, batch)
    for name, value in sample.items():
        low, high = getattr(stage.config, name, (0.0, 1.0)) if name != "on" else (0.0, 1.0)
        if name == "on":
            continue
        margin = 0.01 * (high - low)
        assert low - 1e-4 * abs(low) <= float(value.min()) <= low + margin
        assert high - margin <= float(value.max()) <= high + 1e-4 * abs(high)
        if name in ("aspect", "kelvin"):
            turned = {"aspect": math.log, "kelvin": lambda k: 1 / k}[name]
            value, low, high = (torch.tensor([turned(v) for v in value.tolist()]), turned(low), turned(high))
        middle = (low + high) / 2
        assert abs(float(value.double().mean()) - middle) < 5 * abs(high - low) / (12 * value.numel()) ** 0.5


def test_qualities_are_whole_and_both_ends_are_drawn():
    batch = {"image_id": torch.arange(500), "draw": torch.zeros(500, dtype=torch.int64)}
    assert set(compose.jpeg(Range(7, 9)).sample(KEY, batch)["quality"].tolist()) == {7, 8, 9}


# -- light


@pytest.mark.parametrize("exponent", [0.4, 1.0, 2.2])
def test_gamma_is_a_power(exponent):
    image = IMAGES.clone()
    image[:, :, 0] = 0.0
    image[:, :, 1] = 1.0
    image[:, :, 2] /= 500
    out = apply(compose.gamma(), image, gamma=[exponent, 1.3, exponent])
    pixels, power = float64(image), np.array([exponent, 1.3, exponent])[:, None, None, None]
    expected = np.where(pixels > 1e-3, pixels**power, pixels * 1e-3 ** (power - 1))
    np.testing.assert_allclose(out, expected, atol=4e-7)
    assert bool((out[:, :, 0] == 0).all())
    assert torch.equal(out[0], image[0]) == (exponent == 1.0)


def test_gamma_has_a_slope_at_black():
    """Which a pixel that was projected onto black can leave it by."""
    image = torch.zeros(NUM_ROWS, 3, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(apply(compose.gamma(), image, gamma=[0.5, 1.0, 1.5]).sum(), image)
    expected = torch.tensor([1e-3**-0.5, 1.0, 1e-3**0.5])[:, None, None, None].expand_as(image)
    torch.testing.assert_close(gradient, expected)


def planck_xy(kelvin: float) -> np.ndarray:
    """Chromaticity by integrating Planck's law over the CIE 1931 observer of Wyman et al. (2013, table 1)."""
    nm = np.arange(360.0, 831.0)

    def lobe(center, left, right):
        return np.exp(-0.5 * ((nm - center) * np.where(nm < center, left, right)) ** 2)

    x = 0.362 * lobe(442.0, 0.0624, 0.0374) + 1.056 * lobe(599.8, 0.0264, 0.0323)
    x -= 0.065 * lobe(501.1, 0.0490, 0.0382)
    y = 0.821 * lobe(568.8, 0.0213, 0.0247) + 0.286 * lobe(530.9, 0.0613, 0.0322)
    z = 1.217 * lobe(437.0, 0.0845, 0.0278) + 0.681 * lobe(459.0, 0.0385, 0.0725)
    power = nm**-5 / np.expm1(1.438777e7 / (nm * kelvin))
    xyz = np.array([(power * observer).sum() for observer in (x, y, z)])
    return xyz[:2] / xyz.sum()


SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)  # IEC 61966-2-1


PLANCKIAN = {
    2856.0: (0.4476, 0.4074),
    3200.0: (0.4234, 0.3990),
    4000.0: (0.3805, 0.3768),
    6500.0: (0.3135, 0.3237),
    10000.0: (0.2807, 0.2884),
}
"""Of the CIE 1931 observer: Wyszecki and Stiles (2000), Color Science, Planckian radiators."""


@pytest.mark.parametrize("kelvin", [2150.0, 2856.0, 3500.0, 4500.0, 6500.0, 10000.0, 20000.0])
def test_a_black_body_has_the_color_of_plancks_law(kelvin):
    xyz = SRGB_TO_XYZ @ float64(blackbody(torch.tensor([kelvin])))[0]
    np.testing.assert_allclose(xyz[:2] / xyz.sum(), planck_xy(kelvin), atol=4e-3)
    assert xyz[1] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("kelvin", "xy"), PLANCKIAN.items())
def test_a_black_body_has_its_published_chromaticity(kelvin, xy):
    xyz = SRGB_TO_XYZ @ float64(blackbody(torch.tensor([kelvin])))[0]
    np.testing.assert_allclose(xyz[:2] / xyz.sum(), xy, atol=1e-3)


def test_srgb_curves_equal_kornia():
    values = torch.linspace(0, 1, 2001)
    image = values.expand(1, 3, -1)[..., None]
    linear = kornia.color.rgb_to_linear_rgb(image.double())
    np.testing.assert_allclose(srgb_to_linear(image), linear, atol=3e-7)
    np.testing.assert_allclose(
        linear_to_srgb(image), kornia.color.linear_rgb_to_rgb(image.double()), atol=3e-7
    )
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(image)), image, atol=1e-6)


def test_white_balance_scales_linear_light():
    kelvin = [2500.0, 6500.0, 12000.0]
    out = apply(compose.white_balance(), 0.6 * IMAGES, kelvin=kelvin)
    linear = kornia.color.rgb_to_linear_rgb(0.6 * IMAGES.double()).numpy()
    for row, k in enumerate(kelvin):
        gain = float64(blackbody(torch.tensor([k])) / blackbody(torch.tensor([6500.0])))[0]
        gain /= gain @ [0.2126, 0.7152, 0.0722]
        scaled = torch.tensor((linear[row] * gain[:, None, None]).clip(0, 1))[None]
        np.testing.assert_allclose(out[row], kornia.color.linear_rgb_to_rgb(scaled)[0], atol=2e-6)
    np.testing.assert_allclose(out[1], 0.6 * IMAGES[1], atol=1e-6)
    red, _, blue = out.mean((-1, -2)).unbind(1)
    assert red[0] > red[1] > red[2]
    assert blue[0] < blue[1] < blue[2]


def test_shadow_equals_its_formula():
    strength, angle, offset, soft = (
        [0.3, 1.0, 0.6],
        [20.0, -100.0, 90.0],
        [0.1, -0.2, 0.0],
        [0.3, 0.001, 0.05],
    )
    stage = compose.shadow()
    out = apply(stage, strength=strength, angle_deg=angle, offset_frac=offset, softness_frac=soft)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for row in range(NUM_ROWS):
        a = math.radians(angle[row])
        distance = ((x - WIDTH / 2) * math.cos(a) + (y - HEIGHT / 2) * math.sin(a)) / HEIGHT - offset[row]
        t = (distance / soft[row] + 0.5).clip(0, 1)
        dark = strength[row] * (3 * t**2 - 2 * t**3)
        np.testing.assert_allclose(
            out[row], float64(IMAGES[row]) * (1 - dark), atol=2e-4 if row == 1 else 1e-6
        )
    assert bool((out[2, :, -10:] < 0.41).all())  # 90 degrees: below
    assert torch.equal(out[2, :, :10], IMAGES[2, :, :10])


def test_color_jitter_is_four_stages_in_a_row():
    stage = compose.color_jitter()
    drawn = stage.sample(KEY, make_inputs())
    image = IMAGES
    for other, sample in (
        (compose.exposure(), {"stops": drawn["brightness"].log2()}),
        (compose.contrast(), {"factor": drawn["contrast"]}),
        (compose.saturation(), {"factor": drawn["saturation"]}),
        (compose.hue(), {"angle_deg": drawn["hue_deg"]}),
    ):
        image = other.apply({}, sample, {"image": image})["image"]
    torch.testing.assert_close(apply(stage, **drawn), image, rtol=0, atol=1e-6)


def test_color_jitter_alone_in_each_setting():
    stage, still = (
        compose.color_jitter(),
        {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue_deg": 0.0},
    )
    torch.testing.assert_close(apply(stage, **still), IMAGES, rtol=0, atol=1e-6)
    bright = apply(stage, **still | {"brightness": 1.3})
    torch.testing.assert_close(bright, TF.adjust_brightness(IMAGES, 1.3), rtol=0, atol=1e-6)
    dull = apply(stage, **still | {"saturation": 0.4})
    torch.testing.assert_close(dull, TF.adjust_saturation(IMAGES, 0.4), rtol=0, atol=2e-4)


def test_solarize_grayscale_and_invert_equal_torchvision():
    thresholds = [0.25, 0.5, 0.9]
    out = apply(compose.solarize(), threshold=thresholds)
    for row, threshold in enumerate(thresholds):
        assert torch.equal(out[row], TF.solarize(IMAGES[row], threshold))
    gray = apply(compose.grayscale())
    torch.testing.assert_close(gray, TF.rgb_to_grayscale(IMAGES, 3), rtol=0, atol=2e-4)
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert torch.equal(apply(compose.invert()), TF.invert(IMAGES))


def test_erasing_covers_the_pixels_of_its_rectangle():
    area, aspect, offset, level = (
        [0.1, 0.3, 0.1],
        [0.5, 3.0, 40.0],
        [[0.2, 0.9], [0, 1], [0.5, 0.3]],
        [0, 0.3, 1],
    )
    out = apply(
        compose.erasing(),
        area_frac=area,
        aspect=aspect,
        offset_frac=torch.tensor(offset),
        level=torch.tensor(level).float(),
    )
    for row in range(NUM_ROWS):
        w = min(math.sqrt(area[row] * HEIGHT * WIDTH * aspect[row]), WIDTH)
        h = min(math.sqrt(area[row] * HEIGHT * WIDTH / aspect[row]), HEIGHT)
        left, top = (WIDTH - w) * offset[row][0], (HEIGHT - h) * offset[row][1]
        for i, j in itertools.product(range(HEIGHT), range(WIDTH)):
            covered = left <= j + 0.5 < left + w and top <= i + 0.5 < top + h
            if covered != bool((out[row, :, i, j] == level[row]).all()):
                assert min(abs(j + 0.5 - e) for e in (left, left + w)) < 1e-3, (row, i, j)
        if row < 2:
            share = float((out[row] == level[row]).all(0).float().mean())
            assert share == pytest.approx(area[row], rel=0.05)


# -- blur, resolution, compression


@pytest.mark.parametrize("angle", [0.0, 37.0, -90.0])
def test_motion_blur_is_the_mean_along_its_path(angle):
    lengths = [6.0, 0.0, 2.5]
    out = apply(compose.motion_blur(), length_px=lengths, angle_deg=angle)
    turn = math.radians(angle)
    i, j = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    for row, length in enumerate(lengths):
        along = ((np.arange(13) + 0.5) / 13 - 0.5) * length
        for channel in range(3):
            moved = [
                scipy.ndimage.map_coordinates(
                    float64(IMAGES[row, channel]),
                    [i - s * math.sin(turn), j - s * math.cos(turn)],
                    order=1,
                    mode="nearest",
                )
                for s in along
            ]
            np.testing.assert_allclose(out[row, channel], np.mean(moved, 0), atol=3e-5)
    assert torch.equal(out[1], IMAGES[1])


def test_motion_blur_of_whole_pixels_is_a_box_filter():
    """Of a smooth image: over 5 pixels horizontally."""
    smooth = torch.tensor(scipy.ndimage.gaussian_filter(IMAGES.numpy(), (0, 0, 3, 3), mode="nearest"))
    out = apply(compose.motion_blur(), smooth, length_px=5.0, angle_deg=0.0)
    expected = scipy.ndimage.uniform_filter1d(float64(smooth), 5, axis=-1, mode="nearest")
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_defocus_equals_scipy():
    radii = [0.5, 1.7, 2.5]
    out = apply(compose.defocus(), radius_px=radii)
    y, x = np.mgrid[-3:4, -3:4]
    for row, radius in enumerate(radii):
        disk = (radius + 0.5 - np.hypot(x, y)).clip(0, 1)
        for channel in range(3):
            plane = float64(IMAGES[row, channel])
            expected = scipy.ndimage.convolve(plane, disk / disk.sum(), mode="nearest")
            np.testing.assert_allclose(out[row, channel], expected, atol=1e-6)
    assert torch.equal(out[0], IMAGES[0])


@pytest.mark.parametrize("scale", [0.013, 0.25, 0.5, 0.77, 1.0, 1.6])
def test_resample_equals_pil(scale):
    scales = [scale, 0.6, 1.0]
    out = apply(compose.resample(Range(0.01, 1.6)), scale=scales)
    for row, s in enumerate(scales):
        size = max(1, round(HEIGHT * s)), max(1, round(WIDTH * s))
        for channel in range(3):
            coarse = resize_pil(IMAGES[row, channel].numpy(), size)
            expected = resize_pil(coarse, (HEIGHT, WIDTH))
            np.testing.assert_allclose(out[row, channel], expected, atol=1e-6)
    torch.testing.assert_close(out[2], IMAGES[2], rtol=0, atol=1e-6)


def photograph() -> Tensor:
    """Smooth shapes, texture and saturated colors, in 8 bits."""
    y, x = torch.meshgrid(torch.linspace(0, 1, HEIGHT), torch.linspace(0, 1, WIDTH), indexing="ij")
    waves = torch.stack([(9 * x + 5 * y * y).sin(), (7 * y - 3 * x).cos(), (11 * x * y).sin()])
    image = 0.5 + 0.4 * waves + 0.15 * (noise("texture", 3, HEIGHT, WIDTH) - 0.5)
    image[:, 30:60, 40:90] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    return (image.clamp(0, 1) * 255).round() / 255


def compress_pil(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray((image * 255).round().byte().movedim(0, -1).numpy()).save(file, "JPEG", quality=quality)
    return torch.tensor(np.asarray(Image.open(file))).movedim(-1, 0) / 255


@pytest.mark.parametrize("quality", [5, 20, 49, 50, 75, 90, 100])
def test_jpeg_is_near_pil(quality):
    """In 8-bit levels; libjpeg computes in whole numbers: a few coefficients round to the other side."""
    color = photograph()
    gray = (TF.rgb_to_grayscale(color, 3) * 255).round() / 255
    out = apply(compose.jpeg(), torch.stack([color, gray, color]), quality=[quality, quality, 95])
    for row, (image, most) in enumerate([(color, 1.0), (gray, 0.35)]):
        expected = compress_pil(image, quality)
        difference = float((out[row] - expected).abs().mean() * 255)
        loss = float((expected - image).abs().mean() * 255)
        assert difference < most
        assert float((out[row] - image).abs().mean() * 255) == pytest.approx(loss, rel=0.05, abs=0.3)


def test_jpeg_rounds_in_the_forward_and_follows_shin_and_song_in_the_backward():
    x = torch.linspace(-3, 3, 101, requires_grad=True)
    rounded = _round(x)
    (slope,) = torch.autograd.grad(rounded.sum(), x)
    assert torch.equal(rounded, x.round())
    torch.testing.assert_close(slope, 3 * (x - x.round()).detach().square())


def test_jpeg_of_flat_images_is_flat():
    flat = torch.tensor([0.0, 0.4, 1.0]).view(3, 1, 1, 1).expand(NUM_ROWS, 3, 17, 9)
    out = apply(compose.jpeg(), flat, quality=90)
    torch.testing.assert_close(out, flat, rtol=0, atol=1.0 / 255)
    assert float(out.std((-1, -2)).max()) < 1e-6


# -- geometry


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y, w = np.moveaxis(points @ matrix[:, :2].T + matrix[:, 2], -1, 0)
    return np.stack([x / w, y / w], axis=-1)


def tilt_matrix(about_x: float, about_y: float, fov: float) -> np.ndarray:
    """By a camera in three dimensions: turn the plane, move it to its distance, project."""
    a, b, f = math.radians(about_x), math.radians(about_y), WIDTH / 2 / math.tan(math.radians(fov) / 2)
    # z points away from the camera, y down
    turn_x = np.array([[1, 0, 0], [0, math.cos(a), math.sin(a)], [0, -math.sin(a), math.cos(a)]])
    turn_y = np.array([[math.cos(b), 0, -math.sin(b)], [0, 1, 0], [math.sin(b), 0, math.cos(b)]])
    pose = np.concatenate([(turn_y @ turn_x)[:, :2], [[0], [0], [f]]], axis=1)
    camera = np.array([[f, 0, WIDTH / 2], [0, f, HEIGHT / 2], [0, 0, 1]])
    return camera @ pose @ np.array([[1, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2], [0, 0, 1]])


def scaling(sx: float, sy: float, tx: float, ty: float) -> np.ndarray:
    return np.array([[sx, 0, tx], [0, sy, ty], [0, 0, 1]])


CROP_W, CROP_H = math.sqrt(0.5 * 1.2), math.sqrt(0.5 / 1.2)
MOVES = {
    "tilt about x": (
        compose.tilt(fov_deg=50.0),
        {"about_x_deg": 25.0, "about_y_deg": 0.0},
        tilt_matrix(25, 0, 50),
    ),
    "tilt about y": (compose.tilt(), {"about_x_deg": 0.0, "about_y_deg": -25.0}, tilt_matrix(0, -25, 60)),
    "tilt": (
        compose.tilt(fov_deg=80.0),
        {"about_x_deg": -18.0, "about_y_deg": 12.0},
        tilt_matrix(-18, 12, 80),
    ),
    "translation": (
        compose.translation(),
        {"shift_frac": (0.11, -0.07)},
        scaling(1, 1, 0.11 * WIDTH, -0.07 * HEIGHT),
    ),
    "resized_crop": (
        compose.resized_crop(),
        {"area_frac": 0.5, "aspect": 1.2, "offset_frac": (0.3, 0.8)},
        scaling(
            1 / CROP_W,
            1 / CROP_H,
            -WIDTH * (1 - CROP_W) * 0.3 / CROP_W,
            -HEIGHT * (1 - CROP_H) * 0.8 / CROP_H,
        ),
    ),
    "horizontal_flip": (compose.horizontal_flip(), {}, scaling(-1, 1, WIDTH, 0)),
    "vertical_flip": (compose.vertical_flip(), {}, scaling(1, -1, 0, HEIGHT)),
}


@pytest.mark.parametrize(("stage", "sample", "matrix"), MOVES.values(), ids=MOVES)
def test_pixels_move_as_kornia_moves_them(stage, sample, matrix):
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    expected = kornia.geometry.warp_perspective(
        IMAGES.double(),
        torch.tensor(np.linalg.inv(half) @ matrix @ half).expand(NUM_ROWS, -1, -1),
        (HEIGHT, WIDTH),
        padding_mode="border",
        align_corners=True,
    )
    out = apply_all(stage, **sample)["scene"]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("stage", "sample", "matrix"), MOVES.values(), ids=MOVES)
def test_quads_and_boxes_move_with_the_pixels(stage, sample, matrix):
    inputs = make_inputs()
    out = apply_all(stage, **sample)
    expected = project(matrix, make_quads().double().numpy())
    expected[2, 1] = np.nan
    np.testing.assert_allclose(out["quads"], expected, atol=2e-3)
    assert torch.equal(out["quad_valid"], inputs["quad_valid"])
    for row, k in itertools.product(range(NUM_ROWS), range(2)):
        x0, y0, x1, y1 = float64(inputs["boxes"][row, k])
        corners = project(matrix, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))
        hull = np.concatenate([corners.min(0), corners.max(0)])
        inside = hull.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        np.testing.assert_allclose(out["boxes"][row, k], inside, atol=2e-3)
        share = np.prod(inside[2:] - inside[:2]) / np.prod(hull[2:] - hull[:2])
        assert bool(out["box_valid"][row, k]) == (bool(inputs["box_valid"][row, k]) and share >= 0.25)


@pytest.mark.parametrize(
    ("stage", "method"),
    [
        (compose.horizontal_flip(), Image.Transpose.FLIP_LEFT_RIGHT),
        (compose.vertical_flip(), Image.Transpose.FLIP_TOP_BOTTOM),
    ],
)
def test_flips_equal_pil_to_the_bit(stage, method):
    out = apply_all(stage)["scene"]
    expected = np.asarray(Image.fromarray(IMAGES[1, 2].numpy()).transpose(method))
    assert np.array_equal(out[1, 2], expected)


@pytest.mark.parametrize("flip", [compose.horizontal_flip(p=1.0), compose.vertical_flip(p=1.0)])
def test_a_patch_is_seen_mirrored_where_the_scene_is(flip):
    """Flipping before the implant gives what flipping the composed image gives."""
    batch = {n: v for n, v in make_inputs().items() if n not in ("image", "patch", "detections")}
    parts = {"pixels": create.pixels(SHAPES), "implant": implant.warp()}
    first = pipeline({"flip": flip, **parts})
    last = pipeline({**parts, "flip": node(flip, reads={"scene": "image"}, writes={"scene": "image"})})
    params = first.init(KEY)
    before, after = first(params, KEY, batch)[0], last(params, KEY, batch)[0]
    torch.testing.assert_close(before["image"], after["image"], rtol=0, atol=1e-4)
    assert float((before["image"] - before["scene"]).abs().max()) > 0.3
    assert_equal(before["quads"], after["quads"])


def test_translation_equals_scipy():
    out = apply_all(compose.translation(), shift_frac=(0.1, -0.2))["scene"]
    shift = -0.2 * HEIGHT, 0.1 * WIDTH
    expected = scipy.ndimage.shift(float64(IMAGES[0, 1]), shift, order=1, mode="nearest")
    np.testing.assert_allclose(out[0, 1], expected, atol=5e-5)


def test_resized_crop_equals_pil():
    out = apply_all(compose.resized_crop(), area_frac=0.3, aspect=1.1, offset_frac=(0.6, 0.25))["scene"]
    w, h = WIDTH * math.sqrt(0.3 * 1.1), HEIGHT * math.sqrt(0.3 / 1.1)
    left, top = (WIDTH - w) * 0.6, (HEIGHT - h) * 0.25
    expected = resize_pil(IMAGES[2, 0].numpy(), (HEIGHT, WIDTH), (left, top, left + w, top + h))
    np.testing.assert_allclose(out[2, 0], expected, atol=5e-5)


def test_a_window_wider_than_the_frame_is_cut_to_it():
    out = apply_all(compose.resized_crop(), area_frac=0.8, aspect=4.0, offset_frac=(0.5, 0.5))["scene"]
    h = HEIGHT * math.sqrt(0.2)
    box = (0, (HEIGHT - h) / 2, WIDTH, (HEIGHT + h) / 2)
    expected = resize_pil(IMAGES[2, 0].numpy(), (HEIGHT, WIDTH), box)
    np.testing.assert_allclose(out[2, 0], expected, atol=5e-5)


def test_what_tilts_behind_the_camera_is_no_longer_valid():
    quads = torch.tensor([[20.0, 15], [75, 20], [70, 58], [16, 50]]).expand(NUM_ROWS, 2, 4, 2).clone()
    quads[:, 1, 2, 0] += 5000  # one corner far to the right, which turns towards the camera
    boxes = torch.tensor([[10.0, 10, 60, 60], [10, 10, 5000, 60]]).expand(NUM_ROWS, 2, 4)
    valid = torch.ones(NUM_ROWS, 2, dtype=torch.bool)
    sample = {"about_x_deg": torch.zeros(NUM_ROWS), "about_y_deg": torch.full((NUM_ROWS,), -15.0)}
    batch = make_inputs(quads=quads, quad_valid=valid, boxes=boxes, box_valid=valid)
    out = compose.tilt().apply({}, sample, batch)
    assert out["quad_valid"].tolist() == [[True, False]] * NUM_ROWS
    assert out["box_valid"].tolist() == [[True, False]] * NUM_ROWS


def test_labels_without_their_coordinates_stay():
    batch = {n: v for n, v in make_inputs().items() if n in ("scene", "quad_valid", "box_valid")}
    out = compose.vertical_flip().apply({}, {"on": torch.ones(NUM_ROWS, dtype=torch.bool)}, batch)
    assert_equal(
        {n: out[n] for n in ("quad_valid", "box_valid")}, {n: batch[n] for n in ("quad_valid", "box_valid")}
    )


# -- wrong settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compose.tilt(Range(-90, 0)), "tilt(about_x_deg) must be (low, high)"),
        (lambda: compose.tilt(about_y_deg=Range(0, 90)), "tilt(about_y_deg) must be (low, high)"),
        (lambda: compose.tilt(fov_deg=0.0), "tilt(fov_deg) must be between 1 and 150, got 0.0"),
        (lambda: compose.tilt(Range(-40, 40), Range(-40, 40)), "would see past the horizon"),
        (lambda: compose.motion_blur(Range(-1, 2)), "motion_blur(length_px)"),
        (lambda: compose.motion_blur(angle_deg=Range(-999, 2)), "motion_blur(angle_deg)"),
        (lambda: compose.defocus(Range(0, 99)), "defocus(radius_px)"),
        (lambda: compose.jpeg(Range(0, 90)), "jpeg(quality)"),
        (lambda: compose.jpeg(Range(10.5, 90)), "jpeg(quality) must be whole numbers, got (10.5, 90); round"),
        (lambda: compose.gamma(Range(0, 1)), "gamma(gamma)"),
        (lambda: compose.white_balance(Range(1000, 5000)), "white_balance(kelvin)"),
        (lambda: compose.shadow(Range(0.5, 0.2)), "shadow(strength) must be (low, high)"),
        (lambda: compose.shadow(angle_deg=Range(0, 999)), "shadow(angle_deg)"),
        (lambda: compose.shadow(offset_frac=Range(0, 9)), "shadow(offset_frac)"),
        (lambda: compose.shadow(softness_frac=Range(0, 1)), "shadow(softness_frac)"),
        (lambda: compose.resample(Range(0, 1)), "resample(scale)"),
        (lambda: compose.resized_crop(Range(0.5, 1.5)), "resized_crop(area_frac)"),
        (lambda: compose.resized_crop(aspect=Range(0, 1)), "resized_crop(aspect)"),
        (lambda: compose.color_jitter(Range(-1, 1)), "color_jitter(brightness)"),
        (lambda: compose.color_jitter(contrast=Range(-1, 1)), "color_jitter(contrast)"),
        (lambda: compose.color_jitter(saturation=Range(-1, 1)), "color_jitter(saturation)"),
        (lambda: compose.color_jitter(hue_deg=Range(-999, 1)), "color_jitter(hue_deg)"),
        (lambda: compose.erasing(Range(0, 2)), "erasing(area_frac)"),
        (lambda: compose.erasing(aspect=Range(0, 2)), "erasing(aspect)"),
        (lambda: compose.erasing(level=Range(0, 2)), "erasing(level)"),
        (lambda: compose.solarize(Range(0, 2)), "solarize(threshold)"),
        (lambda: compose.translation(Range(-2, 2)), "translation(shift_frac)"),
        *(
            (lambda stage=stage: stage.definition(p=1.5), f"{name}(p) must be between 0 and 1, got 1.5")
            for name, stage in SKIPPABLE.items()
        ),
    ],
)
def test_a_wrong_setting_is_one_clear_error(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize(
    "stage",
    [
        compose.exposure(Range(0.0, 0.0)),
        compose.contrast(Range(1.0, 1.0)),
        compose.gamma(Range(1.0, 1.0)),
        compose.saturation(Range(1.0, 1.0)),
        compose.hue(Range(0.0, 0.0)),
        compose.resample(Range(1.0, 1.0)),
        compose.defocus(Range(0.0, 0.0)),
        compose.motion_blur(Range(0.0, 0.0)),
        compose.read_noise(Range(0.0, 0.0)),
    ],
    ids=lambda value: value.definition.name if hasattr(value, "definition") else str(value),
)
def test_black_and_white_pixels_have_a_gradient(stage, level):
    """A pixel that was projected onto a bound can leave it."""
    image = torch.full((NUM_ROWS, 3, 9, 11), level, requires_grad=True)
    batch = {"image": image, "image_id": torch.arange(NUM_ROWS), "draw": torch.zeros(NUM_ROWS).long()}
    out, _ = stage({}, random.key(0), batch)
    assert torch.equal(out["image"], image)
    (gradient,) = torch.autograd.grad(out["image"].sum(), image)
    assert bool((gradient[..., 3:-3, 3:-3] > 0.5).all())


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        (compose.resample(Range(0.2, 0.5)), "scale"),
        (compose.defocus(Range(0.5, 1.5)), "radius_px"),
        (compose.motion_blur(Range(0.0, 1.0)), "length_px"),
        (compose.blur(Range(0.0, 0.7)), "sigma_px"),
    ],
    ids=lambda value: value.definition.name if hasattr(value, "definition") else value,
)
def test_a_sample_beyond_the_configured_range_is_refused(stage, field):
    batch = {
        "image": noise("x", NUM_ROWS, 3, 9, 11),
        "image_id": torch.arange(NUM_ROWS),
        "draw": torch.zeros(3).long(),
    }
    sample = stage.sample(random.key(0), batch)
    sample[field] = torch.full_like(sample[field], 3.0)
    with pytest.raises(ValueError, match=f"{field} must be at most .*, as configured, got 3"):
        stage.apply({}, sample, batch)
