"""The values of every stage against an independent implementation, in float64 wherever there is one."""

import itertools
import math

import kornia
import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
import torchvision
from cases import (
    HEIGHT,
    NUM_ROWS,
    WIDTH,
    TinyClassifier,
    TinyDetector,
    detector,
    make_inputs,
    make_quads,
    noise,
)
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import adjust_saturation
from typecheck import unchecked

from fpatch import compose, create, implant, infer, losses, metrics, random
from fpatch.core.types import Range
from fpatch.infer._boundary import run_victim
from fpatch.losses.non_printability import PRINTABLE
from fpatch.ops.color import LUMA
from fpatch.ops.geometry import box_corners

KEY = random.key(2)
IMAGES = noise("images", NUM_ROWS, 3, HEIGHT, WIDTH)
LUMA_ROW = np.array(LUMA)


def apply(stage, sample=None, **inputs):
    return stage.apply({}, sample or {}, {**make_inputs(), **inputs})


def column(*values: float) -> Tensor:
    return torch.tensor(values)


# -- light


def test_exposure_doubles_the_light_per_stop():
    out = apply(compose.exposure(), {"stops": column(-1, 0, 0.5)}, image=IMAGES)["image"]
    gain = np.array([0.5, 1.0, math.sqrt(2)])[:, None, None, None]
    np.testing.assert_allclose(out, (IMAGES.double().numpy() * gain).clip(0, 1), atol=2e-7)


def test_contrast_turns_about_middle_gray():
    out = apply(compose.contrast(), {"factor": column(0, 1, 1.7)}, image=IMAGES)["image"]
    factor = np.array([0, 1, 1.7])[:, None, None, None]
    np.testing.assert_allclose(out, (0.5 + (IMAGES.double().numpy() - 0.5) * factor).clip(0, 1), atol=2e-7)
    assert bool((out[0] == 0.5).all())


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.8])
def test_saturation_equals_torchvision(factor):
    """torchvision rounds the weights of luma to four digits."""
    out = apply(compose.saturation(), {"factor": column(factor, factor, 1.0)}, image=IMAGES)["image"]
    expected = adjust_saturation(IMAGES.double(), factor)
    torch.testing.assert_close(out[:2].double(), expected[:2], rtol=0, atol=2e-4)
    torch.testing.assert_close(out[2], IMAGES[2], rtol=0, atol=1e-6)


def test_hue_turns_chroma_in_yiq():
    degrees = [-70.0, 0.0, 33.0]
    dull = 0.4 + 0.2 * IMAGES
    out = apply(compose.hue(), {"angle_deg": column(*degrees)}, image=dull)["image"].double().numpy()
    to_yiq = np.array(
        [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
    )
    for row, angle in enumerate(np.radians(degrees)):
        yiq = np.einsum("ij,jhw->ihw", to_yiq, dull[row].double().numpy())
        chroma = (yiq[1] + 1j * yiq[2]) * np.exp(1j * angle)
        turned = np.einsum("ij,jhw->ihw", np.linalg.inv(to_yiq), np.stack([yiq[0], chroma.real, chroma.imag]))
        np.testing.assert_allclose(out[row], turned, atol=3e-7)
    luma = np.einsum("c,bchw->bhw", LUMA_ROW, out)
    np.testing.assert_allclose(luma, np.einsum("c,bchw->bhw", LUMA_ROW, dull.double()), atol=3e-7)


def test_gray_has_no_hue_and_no_saturation():
    gray = IMAGES[:, :1].expand(-1, 3, -1, -1)
    for stage, sample in (
        (compose.hue(), {"angle_deg": column(10.0, 90.0, 180.0)}),
        (compose.saturation(), {"factor": column(0, 0.5, 3)}),
    ):
        torch.testing.assert_close(apply(stage, sample, image=gray)["image"], gray, rtol=0, atol=1e-6)


# -- noise and blur


def test_read_noise_is_standard_normal_and_grows_with_its_setting():
    keys = random.split(KEY, 3)
    gray = torch.full((3, 3, 97, 131), 0.5)
    out = apply(compose.read_noise(), {"std_frac": column(0, 0.01, 0.05), "key": keys}, image=gray)["image"]
    field = (out - gray)[1:].double() / torch.tensor([0.01, 0.05]).view(2, 1, 1, 1)
    assert torch.equal(out[0], gray[0])
    for row in field:
        # 38,121 draws: five standard errors of mean, variance, skewness and kurtosis
        assert abs(float(row.mean())) < 5 * 38121**-0.5
        assert abs(float(row.var()) - 1) < 5 * (2 / 38121) ** 0.5
        assert abs(float((row**3).mean())) < 5 * (15 / 38121) ** 0.5
        assert abs(float((row**4).mean()) - 3) < 5 * (96 / 38121) ** 0.5
    correlation = float((field[0] * field[1]).mean())
    assert abs(correlation) < 5 * 38121**-0.5
    assert abs(float((field[0][:, :, 1:] * field[0][:, :, :-1]).mean())) < 5 * 38121**-0.5


def test_read_noise_is_expanded_from_its_key():
    inputs = make_inputs(image=torch.full((3, 3, 11, 7), 0.5))
    stage = compose.read_noise(Range(0.02, 0.02))
    out, sample = stage({}, KEY, inputs)
    field = random.gaussian_field(sample["key"], (3, 11, 7))
    torch.testing.assert_close(out["image"], 0.5 + 0.02 * field)
    assert set(sample) == {"std_frac", "key"}


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.3, 2.0])
def test_blur_equals_scipy(sigma):
    stage = compose.blur(Range(0.0, 2.0))
    out = apply(stage, {"sigma_px": column(sigma, 0.7, sigma)}, image=IMAGES)["image"].double().numpy()
    radius = math.ceil(3 * 2.0)
    for row, s in enumerate((sigma, 0.7, sigma)):
        expected = scipy.ndimage.gaussian_filter(
            IMAGES[row].double().numpy(), max(s, 1e-3), axes=(1, 2), radius=radius, mode="nearest"
        )
        np.testing.assert_allclose(out[row], expected, atol=5e-7)
    if sigma == 0:
        assert torch.equal(torch.from_numpy(out[0]).float(), IMAGES[0])


def test_blur_without_width_is_the_image():
    assert torch.equal(compose.blur(Range(0, 0))({}, KEY, make_inputs())[0]["image"], make_inputs()["image"])


# -- geometry


def affine_sample(**changes) -> dict[str, Tensor]:
    fixed = {"angle_deg": 0.0, "shear_deg": 0.0, "scale": 1.0, "shift_frac": (0.0, 0.0)} | changes
    return {name: torch.tensor([value] * NUM_ROWS) for name, value in fixed.items()}


MOVES = {
    "turn": {"angle_deg": 25.0},
    "shear": {"shear_deg": -20.0},
    "zoom": {"scale": 1.4},
    "shift": {"shift_frac": (0.11, -0.07)},
    "all": {"angle_deg": -13.0, "shear_deg": 8.0, "scale": 0.8, "shift_frac": (-0.05, 0.1)},
}


def affine_reference(angle_deg=0.0, shear_deg=0.0, scale=1.0, shift_frac=(0.0, 0.0)) -> np.ndarray:
    """Scale, then shear along x, then rotate clockwise on the screen, about the center; then shift."""
    turn, shear = math.radians(angle_deg), math.tan(math.radians(shear_deg))
    center, shift = np.array([WIDTH / 2, HEIGHT / 2]), np.array(shift_frac) * [WIDTH, HEIGHT]
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ np.array([[1, shear], [0, 1]]) * scale
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, center + shift - linear @ center
    return matrix


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_affine_equals_kornia(move):
    out = apply(compose.affine(), affine_sample(**move), scene=IMAGES)["scene"]
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ affine_reference(**move) @ half  # kornia's pixel centers are integers
    expected = kornia.geometry.warp_affine(
        IMAGES.double(),
        torch.tensor(matrix[:2]).expand(NUM_ROWS, -1, -1),
        (HEIGHT, WIDTH),
        padding_mode="border",
        align_corners=True,
    )
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_affine_moves_corners_and_boxes_as_pixels(move):
    matrix, inputs = affine_reference(**move), make_inputs()
    out = apply(compose.affine(), affine_sample(**move), quads=make_quads())
    np.testing.assert_allclose(out["quads"], moved(matrix, make_quads().double().numpy()), atol=1e-4)
    for row, k in itertools.product(range(NUM_ROWS), range(2)):
        x0, y0, x1, y1 = inputs["boxes"][row, k].double().numpy()
        corners = moved(matrix, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))
        hull = np.concatenate([corners.min(0), corners.max(0)])
        inside = hull.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        np.testing.assert_allclose(out["boxes"][row, k], inside, atol=1e-4)
        share = np.prod(inside[2:] - inside[:2]) / np.prod(hull[2:] - hull[:2])
        assert bool(out["box_valid"][row, k]) == (bool(inputs["box_valid"][row, k]) and share >= 0.25)


def test_a_marker_moves_with_its_quad_and_its_box():
    """A white square on black ends where the moved corners say."""
    scene = torch.zeros(NUM_ROWS, 3, HEIGHT, WIDTH)
    scene[:, :, 30:50, 50:80] = 1.0
    box = torch.tensor([[[50.0, 30.0, 80.0, 50.0]]]).expand(NUM_ROWS, -1, -1)
    quad = torch.tensor([[[[50.0, 30.0], [80.0, 30.0], [80.0, 50.0], [50.0, 50.0]]]]).expand(
        NUM_ROWS, -1, -1, -1
    )
    sample = affine_sample(**MOVES["all"])
    valid = torch.ones(NUM_ROWS, 1, dtype=torch.bool)
    out = apply(compose.affine(), sample, scene=scene, quads=quad, boxes=box, box_valid=valid)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    weight = out["scene"][1, 0]
    center = torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    torch.testing.assert_close(center, out["quads"][1, 0].mean(0), rtol=0, atol=0.05)
    bright = weight > 0.5
    low_high = torch.stack([x[bright].min(), y[bright].min(), x[bright].max(), y[bright].max()])
    torch.testing.assert_close(low_high, out["boxes"][1, 0], rtol=0, atol=1.0)


def test_a_box_that_leaves_the_frame_is_no_longer_valid():
    out = apply(compose.affine(), affine_sample(shift_frac=(0.5, 0.0)))
    assert out["box_valid"][:, 0].tolist() == [True, True, False]
    assert not bool(out["box_valid"][:, 1].any())


def test_rectangles_keep_the_aspect_of_their_patch():
    """Marked by color: their bounds lie in the box of the quad, at the drawn size and position."""
    names = ("wide", "high")
    patches = {"wide": torch.ones(3, 10, 40), "high": torch.ones(3, 30, 6)}
    quads = torch.tensor([[[10.0, 20], [110, 14], [112, 80], [8, 90]]]).expand(NUM_ROWS, 1, 4, 2)
    sample = {
        "opacity": torch.ones(NUM_ROWS, 1),
        "scale": torch.tensor([[1.0], [0.5], [0.8]]),
        "offset_frac": torch.tensor([[[0.0, 0.0]], [[1.0, 0.5]], [[0.0, 1.0]]]),
    }
    index = torch.tensor([[0], [0], [1]])
    image = apply(
        implant.rectangle(names=names),
        sample,
        scene=torch.zeros(NUM_ROWS, 3, HEIGHT, WIDTH),
        patch=patches,
        quads=quads,
        quad_patch=index,
        quad_valid=torch.ones(NUM_ROWS, 1, dtype=torch.bool),
    )["image"]
    low, room = np.array([8.0, 14.0]), np.array([104.0, 76.0])
    for row, (size, scale, offset) in enumerate(
        [((40, 10), 1.0, (0, 0)), ((40, 10), 0.5, (1, 0.5)), ((6, 30), 0.8, (0, 1))]
    ):
        fitted = np.array(size) * min(room / np.array(size)) * scale
        corner = low + (room - fitted) * np.array(offset)
        y, x = np.nonzero(image[row, 0].numpy() > 0)
        found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        np.testing.assert_allclose(found, np.concatenate([corner, corner + fitted]), atol=0.51)


def test_warp_scales_about_the_center_and_moves_corners_by_the_side():
    inputs = make_inputs(quads=make_quads(), quad_valid=torch.ones(NUM_ROWS, 3, dtype=torch.bool))
    stage = implant.warp(names=("hood", "roof"))
    sample = stage.sample(KEY, inputs)
    jitter = 0.1 * noise("jitter", NUM_ROWS, 3, 4, 2) - 0.05
    changed = {**sample, "scale": torch.full((NUM_ROWS, 3), 0.8), "jitter": jitter}
    quads = make_quads().double()
    center = quads.mean(2, keepdim=True)
    sides = [(quads[:, :, (i + 1) % 4] - quads[:, :, i]).norm(dim=-1) for i in range(4)]
    side = (torch.stack(sides).sum(0) / 4)[..., None, None]
    by_hand = (center + 0.8 * (quads - center) + side * jitter).float()
    expected = stage.apply({}, sample, {**inputs, "quads": by_hand})["image"]
    found = stage.apply({}, changed, inputs)["image"]
    differs = (found - expected).abs().amax(1) > 1e-3
    assert float(differs.float().mean()) < 1e-3  # a center of a pixel on an edge


# -- patches


@pytest.mark.parametrize("size", [(9, 40), (33, 12), (20, 31)])
def test_resize_equals_pil(size):
    patch = noise("patch", 3, 20, 31)
    out = apply(create.resize({"hood": size}), patch={"hood": patch, "roof": noise("roof", 3, 4, 4)})["patch"]
    channels = [
        Image.fromarray(channel.numpy()).resize(size[::-1], Image.Resampling.BILINEAR) for channel in patch
    ]
    np.testing.assert_allclose(out["hood"], np.stack([np.asarray(c) for c in channels]), atol=2e-6)
    assert torch.equal(out["roof"], noise("roof", 3, 4, 4))


@pytest.mark.parametrize("mode", ["nearest", "bicubic", "area"])
def test_resize_equals_interpolate_and_stays_in_range(mode):
    patch = (noise("patch", 2, 3, 20, 31) > 0.5).float()
    out = apply(create.resize({"hood": (13, 40)}, interpolation=mode), patch={"hood": patch})["patch"]["hood"]
    expected = F.interpolate(patch.double(), (13, 40), mode=mode, antialias=mode == "bicubic")
    torch.testing.assert_close(out.double(), expected.clamp(0, 1), rtol=0, atol=2e-6)


def test_resize_of_an_unknown_patch_is_refused():
    with unchecked(), pytest.raises(ValueError, match=r"resize\(interpolation\) must be .* got 'linear'"):
        create.resize({"hood": (2, 2)}, interpolation="linear")
    with pytest.raises(ValueError, match=r"resize\(sizes\): no patch 'hod'; did you mean 'hood'"):
        apply(create.resize({"hod": (3, 3)}))


def test_stack_repeats_one_channel():
    patch = noise("patch", 1, 5, 7)
    out = apply(
        create.stack(3), patch={"hood": patch, "rows": noise("rows", 4, 1, 5, 7), "done": noise("c", 3, 2, 2)}
    )
    assert torch.equal(out["patch"]["hood"], torch.cat([patch] * 3))
    assert out["patch"]["rows"].shape == (4, 3, 5, 7)
    assert torch.equal(out["patch"]["done"], noise("c", 3, 2, 2))
    with pytest.raises(ValueError, match=r"stack: patch 'two' must have 1 channel, got shape \[2, 5, 7\]"):
        apply(create.stack(3), patch={"two": noise("two", 2, 5, 7)})


def test_masks_come_from_files_and_tensors(tmp_path):
    alpha = (noise("alpha", 6, 9) * 255).round().byte().numpy()
    gray = Image.fromarray(alpha)
    gray.save(tmp_path / "gray.png")
    colored = Image.new("RGBA", (9, 6), (255, 0, 0, 0))
    colored.putalpha(gray)
    colored.save(tmp_path / "alpha.png")
    masks = {
        "gray": create.mask_image(tmp_path / "gray.png"),
        "alpha": create.mask_image(tmp_path / "alpha.png"),
        "given": torch.from_numpy(alpha) / 255,
    }
    out = apply(create.mask(masks))["masks"]
    for name in masks:
        torch.testing.assert_close(out[name], torch.from_numpy(alpha)[None] / 255)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.25, torch.full((1, 1, 1), 0.25)),
        (1, torch.ones(1, 1, 1)),
        (noise("alpha", 6, 9), noise("alpha", 6, 9)[None]),
        (noise("alpha", 1, 6, 9), noise("alpha", 1, 6, 9)),
    ],
    ids=["number", "whole number", "2-D", "3-D"],
)
def test_a_mask_is_a_number_or_an_opacity_per_pixel(given, expected):
    assert torch.equal(apply(create.mask({"hood": given}))["masks"]["hood"], expected)


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (torch.full((2, 3), 1.5), r"shape \[2, 3\]"),
        (torch.full((2, 3), -0.1), r"shape \[2, 3\]"),
        (torch.full((2, 3), math.nan), r"shape \[2, 3\]"),
        (torch.zeros(3, 2, 3), r"shape \[3, 2, 3\]"),
        (torch.zeros(0, 3), r"shape \[0, 3\]"),
        (1.5, "1.5"),
        (-1, "-1"),
    ],
)
def test_a_wrong_mask_is_refused(mask, what):
    rule = r"must be a number, \[height, width\] or \[1, height, width\], within 0..1, got " + what
    with pytest.raises(ValueError, match=rf"mask\('hood'\) {rule}"):
        apply(create.mask({"hood": mask}))


# -- victims


def test_victims_are_called_as_they_are():
    model = TinyDetector(5)
    with torch.no_grad():
        dense = apply(infer.detector(model), image=IMAGES)["detections"]["dense"]
        for name, value in model(IMAGES).items():
            assert torch.equal(dense[name], value)
        classes = TinyClassifier(5)
        assert torch.equal(apply(infer.classifier(classes), image=IMAGES)["logits"], classes(IMAGES))


def test_a_victim_keeps_its_parameters_and_buffers():
    class Normed(nn.Sequential):
        pass

    model = Normed(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(5))
    model(IMAGES)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = IMAGES.clone().requires_grad_()
    apply(infer.classifier(model), image=images)["logits"].sum().backward()
    expected = IMAGES.clone().requires_grad_()
    model.requires_grad_(False)(expected).sum().backward()
    torch.testing.assert_close(images.grad, expected.grad)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_victim_in_training_mode_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 8, 8), nn.Dropout())
    model.eval()
    model[1].train()
    with pytest.raises(ValueError, match=r"classifier: '1' is in training mode.*call model.eval"):
        apply(infer.classifier(model), image=IMAGES)


def boxes_and_logits(x):
    return {"boxes": x.flatten(2).mT, "logits": x.flatten(2).mT}


@pytest.mark.parametrize(
    ("stage", "answer", "found"),
    [
        (infer.classifier, lambda x: x, r"logits \[3, c\], got \[3, 4, 12, 16\]; wrap it"),
        (infer.classifier, lambda x: {"scores": x.mean((2, 3))}, r"got {scores: \[3, 4\]}"),
        (infer.classifier, lambda x: x.mean((0, 2, 3))[None], r"got \[1, 4\]"),
        (
            infer.detector,
            lambda x: (x.flatten(2).mT, x[:, 0]),
            r"before suppression, got \(\[3, 192, 4\], \[",
        ),
        (infer.detector, lambda x: {"boxes": x.flatten(2).mT}, r"got {boxes: \[3, 192, 4\]}; wrap it"),
        (
            infer.detector,
            lambda x: {"boxes": x.flatten(2), "logits": x.flatten(2)},
            r"got {boxes: \[3, 4, 192\]",
        ),
        (
            infer.detector,
            lambda x: [boxes_and_logits(row[None]) for row in x],
            r"got \({boxes: \[1, 192, 4\]",
        ),
        (
            infer.detector,
            lambda x: {**boxes_and_logits(x), "objectness": x[:, :1].flatten(2).mT},
            r"objectness: \[3, 192, 1\]}",
        ),
    ],
)
def test_a_victim_that_answers_in_another_form_is_refused(stage, answer, found):
    class Other(nn.Sequential):
        def forward(self, images):
            return answer(super().forward(images))

    with pytest.raises(ValueError, match=found):
        apply(stage(Other(nn.Conv2d(3, 4, 8, 8)).eval()), image=IMAGES)


def test_whole_numbers_of_a_victim_pass_the_boundary():
    class Counting(nn.Module):
        def forward(self, images):
            bright = (images > 0.5).sum((1, 2, 3))
            return {"logits": images.mean((2, 3)), "bright": bright, "constant": torch.zeros(len(images))}

    images = IMAGES.clone().requires_grad_()
    out = run_victim(Counting().eval(), images)
    assert out["bright"].dtype == torch.int64
    assert not out["bright"].requires_grad
    (out["logits"].sum() + out["constant"].sum()).backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / (HEIGHT * WIDTH)))


def test_operators_without_torch_func_work_behind_the_boundary():
    """roi_align has no rule for torch.func."""

    class Pooled(nn.Module):
        def forward(self, images):
            boxes = torch.tensor([[0.0, 4.0, 5.0, 60.0, 40.0]]).repeat(len(images), 1)
            boxes[:, 0] = torch.arange(len(images))
            return torchvision.ops.roi_align(images, boxes, (2, 3)).flatten(1)

    model = Pooled().eval()

    def total(images):
        return infer.classifier(model).apply({}, {}, {"image": images})["logits"].square().sum()

    images = IMAGES.clone().requires_grad_()
    model(images).square().sum().backward()
    torch.testing.assert_close(torch.func.grad(total)(IMAGES), images.grad)


# -- suppression


def make_dense(seed: int, num: int, classes: int) -> dict[str, Tensor]:
    corner = 90 * noise(f"corner{seed}", NUM_ROWS, num, 2)
    size = 10 + 40 * noise(f"size{seed}", NUM_ROWS, num, 2)
    logits = 8 * noise(f"logits{seed}", NUM_ROWS, num, classes) - 4
    return {"boxes": torch.cat([corner, corner + size], -1), "logits": logits}


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 1.0])
def test_suppression_equals_torchvision_per_row_and_class(iou):
    dense = make_dense(1, 60, 3)
    config = infer.suppress(score=0.3, iou=iou, num_detections=180)
    final = apply(config, detections={"dense": dense})["detections"]["final"]
    for row in range(NUM_ROWS):
        scores = dense["logits"][row].double().sigmoid()
        boxes = dense["boxes"][row][:, None].expand(-1, 3, -1).reshape(-1, 4)
        labels = torch.arange(3).repeat(60)
        scores = scores.flatten()
        keep = torchvision.ops.batched_nms(boxes.double(), scores, labels, iou)
        keep = keep[scores[keep] >= 0.3]
        valid = final["valid"][row]
        assert int(valid.sum()) == len(keep) > 10
        torch.testing.assert_close(final["boxes"][row][valid], boxes[keep])
        torch.testing.assert_close(final["scores"][row][valid].double(), scores[keep], rtol=0, atol=1e-6)
        assert torch.equal(final["labels"][row][valid], labels[keep])


def test_suppression_takes_the_best_candidates_first():
    dense = make_dense(2, 40, 2)
    few = apply(infer.suppress(score=0.0, iou=1.0, num_detections=7), detections={"dense": dense})[
        "detections"
    ]
    assert few["dense"] is dense
    assert few["final"]["boxes"].shape == (NUM_ROWS, 7, 4)
    best = dense["logits"].flatten(1).sigmoid().sort(descending=True).values[:, :7]
    torch.testing.assert_close(few["final"]["scores"], best)


def test_objectness_multiplies_the_score():
    dense = make_dense(3, 20, 2) | {"objectness": 6 * noise("objectness", NUM_ROWS, 20) - 3}
    final = apply(infer.suppress(score=0.0, iou=1.0), detections={"dense": dense})["detections"]["final"]
    product = dense["logits"].double().sigmoid() * dense["objectness"].double().sigmoid()[..., None]
    best = product.flatten(1).sort(descending=True).values
    torch.testing.assert_close(final["scores"][:, :40].double(), best, rtol=0, atol=1e-6)


def test_one_object_with_many_boxes_does_not_crowd_out_another():
    many, one = torch.tensor([10.0, 10, 40, 40]).repeat(NUM_ROWS, 60, 1), torch.tensor([70.0, 60, 90, 80])
    boxes = torch.cat([many, one.expand(NUM_ROWS, 1, 4)], dim=1)
    logits = torch.tensor([3.0] * 60 + [2.0]).expand(NUM_ROWS, 61)[..., None]
    final = apply(infer.suppress(), detections={"dense": {"boxes": boxes, "logits": logits}})["detections"]
    assert final["final"]["valid"].sum(1).tolist() == [2] * NUM_ROWS
    torch.testing.assert_close(final["final"]["boxes"][:, 1], one.expand(NUM_ROWS, 4))


def test_a_row_with_few_detections_ends_in_zeros():
    dense = make_dense(4, 5, 1)
    final = apply(infer.suppress(score=0.5, num_detections=9), detections={"dense": dense})["detections"][
        "final"
    ]
    assert 0 < int(final["valid"].sum()) < 5 * NUM_ROWS
    assert not bool(final["boxes"][~final["valid"]].any() or final["scores"][~final["valid"]].any())
    nothing = apply(infer.suppress(score=1.0), detections={"dense": dense})["detections"]["final"]
    assert nothing["boxes"].shape == (NUM_ROWS, 100, 4)
    assert not bool(nothing["valid"].any())


# -- losses, by loops in float64


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def holds_center(box, candidate) -> bool:
    x, y = (candidate[0] + candidate[2]) / 2, (candidate[1] + candidate[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


@pytest.mark.parametrize("label", ["own", "any"])
@pytest.mark.parametrize("on", ["logit", "probability"])
@pytest.mark.parametrize(("num_boxes", "iou"), [(1, 0.0), (6, 0.1), (4, 0.3), (500, 0.05)])
def test_vanish_by_a_loop(num_boxes, iou, on, label):
    pushed = softplus if on == "logit" else lambda x: 1 / (1 + math.exp(-x))
    inputs = make_inputs(detections={"dense": make_dense(4, 50, 2)})
    out = apply(losses.vanish(num_boxes=num_boxes, iou=iou, on=on, label=label), **inputs)["vanish"]
    dense = inputs["detections"]["dense"]
    for row in range(NUM_ROWS):
        objects = []
        named = (inputs[name][row].tolist() for name in ("boxes", "labels", "box_valid"))
        for box, own, valid in zip(*named, strict=True):
            near = [
                logits[own] if label == "own" else max(logits)
                for candidate, logits in zip(
                    dense["boxes"][row].tolist(), dense["logits"][row].tolist(), strict=True
                )
                if overlap(box, candidate) >= iou or holds_center(box, candidate)
            ]
            count = min(num_boxes, 50)
            highest = (sorted(near, reverse=True) + [-30.0] * count)[:count]
            objects += [sum(map(pushed, highest)) / count] if valid else []
        assert float(out[row]) == pytest.approx(sum(objects) / max(len(objects), 1), rel=1e-5)
    assert len(set(out.tolist())) == NUM_ROWS


def test_vanish_without_objects_is_zero():
    out = apply(losses.vanish(), box_valid=torch.zeros(NUM_ROWS, 2, dtype=torch.bool))["vanish"]
    assert out.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("target", "margin"), [(None, 10.0), (None, 3.0), (2, 10.0), (0, 0.3)])
def test_misclassify_by_a_loop(target, margin):
    inputs = make_inputs()
    out = apply(losses.misclassify(target=target, margin=margin), **inputs)["misclassify"]
    for row, (logits, true) in enumerate(
        zip(inputs["logits"].tolist(), inputs["target"].tolist(), strict=True)
    ):
        goal = true if target is None else target
        rival = max(logits[:goal] + logits[goal + 1 :])
        lead = logits[goal] - rival if target is None else rival - logits[goal]
        assert float(out[row]) == pytest.approx(max(lead + margin, 0.0), rel=1e-5, abs=1e-6)
    assert len(set(out.tolist())) > 1


@pytest.mark.parametrize(
    ("settings", "inputs", "message"),
    [
        ({}, {"target": torch.tensor([0, 5, 1])}, "a target is 5, but the victim has 5 classes, 0 to 4"),
        ({"target": 7}, {}, r"misclassify\(target\) is 7, but the victim has 5 classes"),
        (
            {"target": 0},
            {"logits": torch.zeros(NUM_ROWS, 1)},
            "the victim must have two classes at least, got 1; give it",
        ),
    ],
)
def test_a_class_that_cannot_be_answered_is_refused(settings, inputs, message):
    with pytest.raises(ValueError, match=message):
        apply(losses.misclassify(**settings), **inputs)


def test_total_variation_by_a_loop():
    patches = {"hood": noise("hood", 3, 5, 7), "roof": noise("roof", 3, 6, 2), "dot": noise("dot", 3, 1, 1)}
    means = []
    for patch in patches.values():
        pixels, differences = patch.double().numpy(), []
        for c, i, j in np.ndindex(pixels.shape):
            differences += [abs(pixels[c, i, j] - pixels[c, i, j - 1])] if j else []
            differences += [abs(pixels[c, i, j] - pixels[c, i - 1, j])] if i else []
        means.append(sum(differences) / max(len(differences), 1))
    out = apply(losses.total_variation(), patch=patches)["total_variation"]
    np.testing.assert_allclose(out, [sum(means) / 3] * NUM_ROWS, rtol=1e-5)


def test_total_variation_of_patches_per_row():
    rows = noise("rows", NUM_ROWS, 3, 5, 7)
    out = apply(losses.total_variation(), patch={"hood": rows})["total_variation"]
    alone = [apply(losses.total_variation(), patch={"hood": row})["total_variation"][0] for row in rows]
    torch.testing.assert_close(out, torch.stack(alone))


def test_non_printability_by_a_loop():
    colors = ((0.1, 0.2, 0.3), (0.9, 0.5, 0.4), (0.5, 0.5, 0.5))
    patches = {"hood": noise("hood", 3, 5, 7), "roof": noise("roof", NUM_ROWS, 3, 4, 2)}
    out = apply(losses.non_printability(colors=colors), patch=patches)["non_printability"]

    def mean_distance(patch):
        pixels = patch.double().flatten(1).T.tolist()
        return sum(min(math.dist(p, c) for c in colors) for p in pixels) / len(pixels)

    expected = [(mean_distance(patches["hood"]) + mean_distance(row)) / 2 for row in patches["roof"]]
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_printable_colors_score_zero_with_a_finite_gradient():
    patch = torch.tensor(PRINTABLE).T.reshape(3, 8, 8).clone().requires_grad_()
    out = apply(losses.non_printability(), patch={"hood": patch})["non_printability"]
    out.sum().backward()
    assert float(out.detach().max()) < 1e-5
    assert bool(torch.isfinite(patch.grad).all())
    with pytest.raises(ValueError, match=r"non_printability\(colors\) must be .* triples within 0..1"):
        losses.non_printability(colors=((0.1, 0.2, 1.3),))


# -- metrics, by hand


def final_detections(*rows):
    """[(box, score, label), ...] per row, padded with invalid ones, which would be hits."""
    most = max(map(len, rows))
    pad = ((10.0, 10.0, 50.0, 30.0), 0.95, 1)
    filled = [[*row, *[pad] * (most - len(row))] for row in rows]
    valid = torch.tensor([[i < len(row) for i in range(most)] for row in rows])
    boxes, scores, labels = (torch.tensor([[d[i] for d in row] for row in filled]) for i in range(3))
    return {"final": {"boxes": boxes, "scores": scores, "labels": labels, "valid": valid}}


def test_detection_hit_by_hand():
    target, beside, far = (10.0, 10.0, 50.0, 30.0), (30.0, 10.0, 70.0, 30.0), (80.0, 60.0, 95.0, 90.0)
    rows = [
        [(target, 0.9, 1), (far, 0.99, 1)],  # found
        [(target, 0.45, 1), (beside, 0.8, 1)],  # below the threshold, and displaced
        [(target, 0.9, 0)],  # another class
        [(target, 0.9, 1)],  # there is no object
        [(far, 0.9, 1)],  # gone
    ]
    count = len(rows)
    out = apply(
        metrics.detection_hit(score=0.5, iou=0.5, displaced_iou=0.1),
        detections=final_detections(*rows),
        boxes=torch.tensor([[far, target]]).repeat(count, 1, 1),
        labels=torch.tensor([[0, 1]]).repeat(count, 1),
        box_valid=torch.tensor([[False, True]] * 3 + [[False, False], [False, True]]),
        quads=torch.full((count, 1, 4, 2), torch.nan),
        quad_valid=torch.zeros(count, 1, dtype=torch.bool),
    )
    assert out["found"].tolist() == [True, False, False, False, False]
    assert out["displaced"].tolist() == [False, True, False, False, False]
    assert out["has_object"].tolist() == [True, True, True, False, True]
    assert out["best_score"][:3].tolist() == pytest.approx([0.9, 0.45, 0.0])
    assert out["best_score"][4].item() == 0


def test_detection_hit_asks_for_the_object_that_the_patch_is_on():
    first, second = (10.0, 10.0, 50.0, 30.0), (80.0, 60.0, 95.0, 90.0)
    on_second = box_corners(torch.tensor([82.0, 62.0, 90.0, 80.0])).expand(6, 1, 4, 2)
    seen = [[(first, 0.9, 0)], [(first, 0.9, 0)], [(second, 0.9, 0)]]
    out = apply(
        metrics.detection_hit(),
        detections=final_detections(*seen, *seen),
        boxes=torch.tensor([[first, second]]).repeat(6, 1, 1),
        labels=torch.zeros(6, 2, dtype=torch.int64),
        box_valid=torch.tensor([[True, True], [False, True], [False, True]] * 2),
        quads=on_second,
        quad_valid=torch.tensor([[False]] * 3 + [[True]] * 3),
    )
    assert out["found"].tolist() == [True, False, True, False, False, True]


def test_the_answer_to_a_neighbor_is_not_a_displaced_one():
    hidden, neighbor = (10.0, 10.0, 50.0, 30.0), (30.0, 10.0, 70.0, 30.0)
    out = apply(
        metrics.detection_hit(),
        detections=final_detections(*[[((32.0, 10.0, 70.0, 30.0), 0.9, 0)]] * 3),
        boxes=torch.tensor([[hidden, neighbor]]).repeat(3, 1, 1),
        labels=torch.zeros(3, 2, dtype=torch.int64),
        box_valid=torch.tensor([[True, True], [True, False], [True, True]]),
        quads=box_corners(torch.tensor([12.0, 12.0, 28.0, 28.0])).expand(3, 1, 4, 2),
        quad_valid=torch.ones(3, 1, dtype=torch.bool),
    )
    assert out["found"].tolist() == [False] * 3
    assert out["displaced"].tolist() == [False, True, False]


def test_class_hit_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [0.5, 0.5, 0.0], [1.0, 5.0, 2.0]])
    out = apply(metrics.class_hit(), logits=logits, target=torch.tensor([0, 1, 0, 1]))
    assert out["found"].tolist() == [True, False, True, True]
    assert out["answer"].tolist() == [0, 2, 0, 1]
    expected = [
        math.exp(row[t]) / sum(map(math.exp, row))
        for row, t in zip(logits.tolist(), (0, 1, 0, 1), strict=True)
    ]
    assert out["confidence"].tolist() == pytest.approx(expected, rel=1e-6)


def test_detections_of_a_victim_are_many():
    """A victim that answers nothing would make every comparison of detections empty."""
    out = apply(infer.detector(detector(seed=1)), image=IMAGES)
    final = apply(infer.suppress(score=0.0), **out)["detections"]["final"]
    assert int(final["valid"].sum(1).min()) >= 20
