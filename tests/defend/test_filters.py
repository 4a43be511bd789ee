"""Filters against independent implementations, and the gradients that they declare."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from cases import noise
from PIL import Image
from torch import Tensor

from fpatch import compose, defend
from fpatch.graph.stage import Stage

IMAGES = noise("filtered", 3, 3, 37, 50)


def smooth_images() -> Tensor:
    """A ramp with one textured corner, so that windows and blocks differ."""
    y, x = torch.linspace(0.1, 0.6, 37)[:, None], torch.linspace(0.0, 0.3, 50)
    images = (y + x).expand(3, 3, -1, -1).clone()
    images[:, :, 6:24, 20:43] = noise("texture", 3, 3, 18, 23)
    return images


def run(stage: Stage, images: Tensor) -> Tensor:
    return stage.apply({}, {}, {"image": images})["image"]


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_is_that_of_numpy(bits):
    levels = np.float32(2**bits - 1)
    expected = np.rint(IMAGES.numpy() * levels) / levels
    np.testing.assert_array_equal(run(defend.bit_depth(bits), IMAGES).numpy(), expected)


def test_eight_bits_keep_an_image_that_was_read():
    levels = torch.from_numpy(np.arange(256, dtype=np.uint8)).float() / 255
    image = levels.view(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert torch.equal(run(defend.bit_depth(8), image), image)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 9])
def test_median_is_that_of_scipy(size):
    found = run(defend.median(size), IMAGES).numpy()
    for row in range(3):
        for channel in range(3):
            expected = scipy.ndimage.median_filter(IMAGES[row, channel].numpy(), size, mode="reflect")
            np.testing.assert_array_equal(found[row, channel], expected)


def test_a_window_larger_than_the_image_is_mirrored_on():
    small = IMAGES[..., :3, :4].contiguous()
    expected = scipy.ndimage.median_filter(small[0, 0].numpy(), 15, mode="reflect")
    np.testing.assert_array_equal(run(defend.median(15), small)[0, 0].numpy(), expected)


def smoothed(image: np.ndarray, strength: float, threshold: float, window: int, overlap: int) -> np.ndarray:
    """Naseer et al. (2019), equations 2 to 5, by loops over pixels and windows in double precision."""
    gray = np.tensordot([0.299, 0.587, 0.114], image.astype(np.float64), axes=1)
    h, w = gray.shape
    g = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            dy = gray[i + 1, j] - gray[i, j] if i + 1 < h else 0.0
            dx = gray[i, j + 1] - gray[i, j] if j + 1 < w else 0.0
            g[i, j] = np.hypot(dx, dy)
    g = (g - g.min()) / (g.max() - g.min())
    kept, step = np.zeros_like(g), window - overlap
    for i in [*range(0, h - window, step), h - window]:
        for j in [*range(0, w - window, step), w - window]:
            part = slice(i, i + window), slice(j, j + window)
            if g[part].mean() > threshold:
                kept[part] = g[part]
    return image * np.clip(1 - strength * kept, 0, 1)


@pytest.mark.parametrize(
    ("threshold", "window", "overlap"), [(0.1, 15, 5), (0.02, 8, 0), (0.2, 7, 6), (0.05, 37, 0), (0.0, 1, 0)]
)
def test_gradient_smoothing_is_that_of_the_paper(threshold, window, overlap):
    images = smooth_images()
    found = run(
        defend.gradient_smoothing(threshold=threshold, window_px=window, overlap_px=overlap), images
    ).numpy()
    for image, result in zip(images.numpy(), found, strict=True):
        expected = smoothed(image, 2.3, threshold, window, overlap)
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)
    if threshold:
        assert (found == images.numpy()).any()
    assert (found != images.numpy()).any()


def test_a_flat_image_is_not_darkened():
    flat = torch.full((1, 3, 20, 20), 0.25)
    assert torch.equal(run(defend.gradient_smoothing(threshold=0.0), flat), flat)


@pytest.mark.parametrize(("threshold", "cutoff"), [(0.1, 4), (0.18, 1), (0.05, 9)])
def test_frequency_mask_is_that_of_scipy(threshold, cutoff):
    images = smooth_images()
    found = run(defend.frequency_mask(threshold, cutoff, fill=0.0), images)
    index = np.add.outer(np.arange(8), np.arange(8))
    blanked = 0
    for image, result in zip(images.double().numpy(), found.numpy(), strict=True):
        gray = np.tensordot([0.299, 0.587, 0.114], image, axes=1)
        gray = np.pad(gray, [(0, -n % 8) for n in gray.shape], mode="edge")
        for i in range(0, 37, 8):
            for j in range(0, 50, 8):
                high = scipy.fft.dctn(gray[i : i + 8, j : j + 8], norm="ortho")[index >= cutoff]
                blank = np.sqrt((high**2).sum() / 64) > threshold
                block = result[:, i : i + 8, j : j + 8]
                expected = 0.0 if blank else image[:, i : i + 8, j : j + 8].astype(np.float32)
                np.testing.assert_array_equal(block, expected)
                blanked += blank
    assert 0 < blanked < 3 * 35


def gradient(stage: Stage, images: Tensor, weights: Tensor) -> Tensor:
    inside = images.clone().requires_grad_()
    (run(stage, inside) * weights).sum().backward()
    assert inside.grad is not None
    return inside.grad


def test_bits_pass_the_gradient_straight_through():
    weights = noise("weights of a gradient", 3, 3, 37, 50)
    assert defend.bit_depth(2).definition.traits.surrogate == "straight-through"
    assert torch.equal(gradient(defend.bit_depth(2), smooth_images(), weights), weights)


def check_derivative(stage: Stage, images: Tensor) -> None:
    """The gradient against finite differences in double, where no pixel or window changes its side."""
    weights, direction = (noise(name, 3, 3, 37, 50) for name in ("weights of a gradient", "direction"))
    found = (gradient(stage, images.double(), weights.double()) * (direction - 0.5)).sum()
    moved = (run(stage, images.double() + sign * 1e-7 * (direction - 0.5)) for sign in (1, -1))
    change = sum(sign * (out * weights).sum() for sign, out in zip((1, -1), moved, strict=True)) / 2e-7
    torch.testing.assert_close(found, change, rtol=1e-5, atol=1e-5)
    assert not stage.definition.traits.surrogate


def test_the_gradient_of_smoothing_is_its_derivative():
    check_derivative(defend.gradient_smoothing(threshold=0.02, strength=1.5), smooth_images())


def test_the_gradient_of_a_median_is_that_of_the_pixel_taken():
    check_derivative(defend.median(3), IMAGES)


def test_the_gradient_of_a_mask_is_that_of_the_blend():
    """By finite differences of the blend in double, where the mask itself has none."""
    images, weights = smooth_images(), noise("weights of a gradient", 3, 3, 37, 50)
    stage = defend.frequency_mask(0.1, 4, fill=0.5)
    found = gradient(stage, images, weights)

    def blend(image: Tensor) -> Tensor:
        gray = np.tensordot([0.299, 0.587, 0.114], image.numpy(), axes=(0, 1))
        gray = np.pad(gray, [(0, 0), *((0, -n % 8) for n in gray.shape[1:])], mode="edge")
        index = np.add.outer(np.arange(8), np.arange(8)) >= 4
        out = image.clone()
        for row in range(3):
            for i in range(0, 37, 8):
                for j in range(0, 50, 8):
                    high = np.asarray(scipy.fft.dctn(gray[row, i : i + 8, j : j + 8], norm="ortho"))[index]
                    r = (high**2).sum() / 64 / 0.1**2
                    part = out[row, :, i : i + 8, j : j + 8]
                    part[:] = 0.5 + (part - 0.5) / (1 + r * r)
        return (out * weights).sum()

    direction = (noise("direction", 3, 3, 37, 50) - 0.5).double()
    ahead, behind = (blend(images.double() + s * 1e-6 * direction) for s in (1, -1))
    torch.testing.assert_close((found * direction).sum(), (ahead - behind) / 2e-6, rtol=1e-3, atol=1e-3)


def test_jpeg_and_resampling_are_stages_that_exist_already():
    """A fixed quality and scale make them defenses; PIL's JPEG is the reference in tests of compose."""
    assert "jpeg" not in defend.__all__
    assert compose.jpeg((20, 20)).definition.traits.surrogate.startswith("slope 3")
    sample = {"on": torch.ones(3, dtype=torch.bool), "scale": torch.full((3,), 0.5)}
    images = smooth_images()[..., :36, :]
    found = compose.resample((0.5, 0.5)).apply({}, sample, {"image": images})["image"]
    for image, result in zip(images.numpy(), found.numpy(), strict=True):
        for plane, expected in zip(image, result, strict=True):
            small = Image.fromarray(plane).resize((25, 18), Image.Resampling.BILINEAR)
            back = small.resize((50, 36), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(np.asarray(back), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: defend.bit_depth(0), r"bit_depth\(num_bits\) must be at least 1, got 0"),
        (lambda: defend.median(1), r"median\(size_px\) must be at least 2, got 1"),
        (lambda: defend.gradient_smoothing(overlap_px=15), r"overlap_px\) must be between 0 and 14, got 15"),
        (lambda: defend.gradient_smoothing(threshold=1.1), r"threshold\) must be between 0"),
        (lambda: defend.gradient_smoothing(strength=-1.0), r"strength\) must be"),
        (lambda: defend.gradient_smoothing(window_px=0), r"window_px\) must be at least 1"),
        (lambda: defend.frequency_mask(0.0), r"frequency_mask\(threshold\) must be between"),
        (lambda: defend.frequency_mask(cutoff=15), r"frequency_mask\(cutoff\) must be between 1 and 14"),
        (lambda: defend.frequency_mask(fill=2.0), r"frequency_mask\(fill\) must be between 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
