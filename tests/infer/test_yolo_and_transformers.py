"""YOLO families and transformer detectors against their libraries, and against formulas in float64.

The networks are real and untrained; the weights of their class heads are scaled up, so that scores differ.
"""

import copy
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import TinyYolo, noise, tiny_yolo
from laws import NoWaiting, fake_devices
from library_victims import (
    make_detr,
    make_transformer,
    make_ultralytics,
    need_ultralytics,
    picture,
    spread_scores,
)
from packaging.version import Version
from safetensors.torch import save_file
from study_fixture import environment
from torch import nn
from torch.utils._pytree import tree_map

from fpatch import infer
from fpatch.core.files import file_digest
from fpatch.core.tree import to_device
from fpatch.graph.build import build
from fpatch.infer.transformers_detector import target_size
from fpatch.infer.yolo import decode_one_to_one, fit_images
from fpatch.ops.detections import ABSENT, log_scores

ODD = noise("odd image", 2, 3, 97, 131)
"""Not square, and of a size that nothing divides."""


def dense_of(stage, images=ODD):
    return stage.apply({}, {}, {"image": images})["detections"]["dense"]


def final_of(stage, images=ODD, **settings):
    values = stage.apply({}, {}, {"image": images})
    return infer.suppress(**settings).apply({}, {}, values)["detections"]["final"]


def to_xyxy(boxes):
    center, size = np.split(np.asarray(boxes, dtype=np.float64), 2, axis=-1)
    return np.concatenate([center - size / 2, center + size / 2], axis=-1)


def close(found, expected, atol=0.0, rtol=1e-5):
    torch.testing.assert_close(
        found.detach().double(), torch.as_tensor(np.asarray(expected)).double(), rtol=rtol, atol=atol
    )


class Answer(nn.Module):
    """A network that answers what it was given, whatever the images."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.eval()

    def forward(self, images):
        zero = 0 * images.mean()
        return tree_map(lambda t: t + zero if torch.is_tensor(t) else t, self.answer)


def skip_before(version, what):
    """Skip a test whose oracle is wrong in older releases of Ultralytics."""
    if Version(importlib.metadata.version("ultralytics")) < Version(version):
        pytest.skip(f"Ultralytics before {version}: {what}")


# -- the letterbox


def sizes_by_hand(h, w, size):
    """Where LetterBox(auto=False) puts an image: new height and width, top, left."""
    ratio = min(size[0] / h, size[1] / w)
    new_h, new_w = max(round(h * ratio), 1), max(round(w * ratio), 1)
    return new_h, new_w, round((size[0] - new_h) / 2 - 0.1), round((size[1] - new_w) / 2 - 0.1)


@pytest.mark.parametrize("shape", [(97, 131), (131, 97), (60, 160), (33, 500), (160, 128), (1, 900)])
@pytest.mark.parametrize("size", [160, (128, 160), (161, 97)])
def test_letterbox_is_that_of_ultralytics(shape, size):
    augment = need_ultralytics("ultralytics.data.augment")
    images, array = picture(*shape)
    config = infer.yolo(TinyYolo(1, "v8"), format="v8", size=size).config
    found, offset, scale = fit_images(images, config)
    if shape == (1, 900):
        skip_before("8.4.183", "its letterbox leaves no row of an image this thin")
    expected = augment.LetterBox(size, auto=False)(image=array.astype(np.float32))
    close(255 * found[0].permute(1, 2, 0), expected, atol=0.01)
    levels = augment.LetterBox(size, auto=False)(image=array)  # in steps of 1/2048, rounded to whole levels
    close(255 * found[0].permute(1, 2, 0), levels, atol=1.5)
    h, w = shape
    new_h, new_w, top, left = sizes_by_hand(h, w, (size, size) if isinstance(size, int) else size)
    close(offset, [left, top, left, top])
    close(scale, [new_w / shape[1], new_h / shape[0]] * 2)


def test_letterbox_pads_with_gray_around_the_image():
    config = infer.yolo(TinyYolo(1, "v8"), format="v8", size=(97, 160)).config
    found, offset, _ = fit_images(ODD, config)
    assert torch.equal(found[..., 14:145], ODD)
    assert bool((found[..., :14] == 114 / 255).all())
    assert bool((found[..., 145:] == 114 / 255).all())
    assert offset.tolist() == [14, 0, 14, 0]


def test_stretch_fills_the_input():
    config = infer.yolo(TinyYolo(1, "v4"), format="v4", size=(64, 160), fit="stretch").config
    found, offset, scale = fit_images(ODD, config)
    assert torch.equal(found, F.interpolate(ODD, (64, 160), mode="bilinear"))
    assert not bool(offset.any())
    close(scale, [160 / 131, 64 / 97] * 2, rtol=1e-6)


def test_without_a_size_images_go_in_as_they_are():
    found, offset, scale = fit_images(ODD, infer.yolo(TinyYolo(1, "v8"), format="v8").config)
    assert found is ODD
    assert not bool(offset.any())
    assert bool((scale == 1).all())


# -- formats, by hand in float64


def probabilities(name, *shape):
    """Spread over (0, 1), some of them very small."""
    return noise(name, *shape) ** torch.linspace(1, 8, shape[-1])


def logit(p):
    p = np.asarray(p, dtype=np.float64)
    return np.log(p) - np.log1p(-p)


def back(boxes, h, w, size):
    """Boxes of the network's input to pixels of the image."""
    new_h, new_w, top, left = sizes_by_hand(h, w, size)
    return (np.asarray(boxes, np.float64) - [left, top, left, top]) / ([new_w / w, new_h / h] * 2)


def test_v4_by_hand():
    corners = 1.4 * noise("v4 boxes", 2, 30, 1, 4) - 0.2
    confidences = probabilities("v4 confidences", 2, 30, 5)
    stage = infer.yolo(Answer([corners, confidences]), format="v4", size=(128, 160))
    dense = dense_of(stage)
    in_pixels = corners[:, :, 0].double().numpy() * [160, 128, 160, 128]
    close(dense["boxes"], back(in_pixels, 97, 131, (128, 160)), atol=1e-4)
    close(dense["logits"], logit(confidences))
    assert set(dense) == {"boxes", "logits"}
    close(log_scores(dense).exp(), confidences)


@pytest.mark.parametrize("besides", [True, False])
def test_v5_by_hand(besides):
    center_size = 100 * noise("v5 boxes", 2, 30, 4)
    scores = probabilities("v5 scores", 2, 30, 1 + 5)
    answer = torch.cat([center_size, scores], dim=-1)
    stage = infer.yolo(Answer((answer, [scores]) if besides else answer), format="v5", size=128)
    dense = dense_of(stage)
    close(dense["boxes"], back(to_xyxy(center_size), 97, 131, (128, 128)), atol=1e-4)
    close(dense["objectness"], logit(scores[..., 0]))
    close(dense["logits"], logit(scores[..., 1:]))
    close(log_scores(dense).exp(), scores[..., :1].double() * scores[..., 1:].double())


def test_v8_by_hand():
    center_size, scores = 100 * noise("v8 boxes", 2, 30, 4), probabilities("v8 scores", 2, 30, 5)
    answer = torch.cat([center_size, scores], dim=-1).transpose(1, 2)
    dense = dense_of(infer.yolo(Answer((answer, {})), format="v8", num_classes=5))
    close(dense["boxes"], to_xyxy(center_size), atol=1e-4)
    close(dense["logits"], logit(scores))


def test_v10_by_hand():
    boxes, scores = 100 * noise("v10 boxes", 2, 30, 4), probabilities("v10 scores", 2, 1, 30).mT
    labels = (7 * noise("v10 labels", 2, 30)).floor()
    answer = torch.cat([boxes, scores, labels[..., None]], dim=-1)
    dense = dense_of(infer.yolo(Answer(answer), format="v10", num_classes=7))
    assert torch.equal(dense["boxes"], boxes)
    expected = np.full((2, 30, 7), ABSENT)
    np.put_along_axis(expected, labels.long().numpy()[..., None], logit(scores), axis=-1)
    close(dense["logits"], expected)


def test_distributions_over_distances_by_hand():
    """A one-to-one head of two maps, of 2 x 3 and 1 x 2 cells, whose distances are means over 4 bins."""
    bins, scores = 3 * noise("bins", 2, 16, 8), noise("scores", 2, 5, 8)
    maps = [torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 1, 2)]
    answer = (torch.zeros(2, 8, 6), {"one2one": {"boxes": bins, "scores": scores, "feats": maps}})
    dense = dense_of(infer.yolo(Answer(answer), format="v10"), noise("small", 2, 3, 16, 24))
    logits = bins.double().numpy().reshape(2, 4, 4, 8)
    weights = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    left, top, right, bottom = np.moveaxis((weights * np.arange(4)[:, None]).sum(2), 1, 0)
    cells = [(x + 0.5, y + 0.5, 8) for y in range(2) for x in range(3)] + [(0.5, 0.5, 16), (1.5, 0.5, 16)]
    x, y, stride = np.array(cells).T
    expected = np.stack([x - left, y - top, x + right, y + bottom], axis=-1) * stride[:, None]
    close(dense["boxes"], expected, atol=1e-4)
    assert torch.equal(dense["logits"], scores.mT)


def test_cells_are_made_where_the_head_is_and_keep_their_place_in_half_precision():
    maps = [torch.zeros(1, 1, 1, 600)]
    head = {"boxes": torch.zeros(1, 4, 600), "scores": torch.zeros(1, 2, 600), "feats": maps}
    with fake_devices():
        there = to_device(head, "cuda")
        with NoWaiting():
            assert decode_one_to_one(there, (8, 4800))["boxes"].device.type == "cuda"
    boxes = decode_one_to_one({**head, "boxes": head["boxes"].bfloat16()}, (8, 4800))["boxes"]
    assert torch.equal(boxes[0, :, 2], 8 * torch.arange(600) + 4.0)


@pytest.mark.parametrize("name", ["v4", "v5", "v8", "v10"])
def test_gradients_reach_the_image_and_nothing_else(name):
    model = TinyYolo(1, name)
    images = ODD.clone().requires_grad_()
    dense = dense_of(infer.yolo(model, format=name, size=120, num_classes=2), images)
    present = dense["logits"] > ABSENT
    (dense["boxes"].sum() + dense["logits"][present].sum()).backward()
    assert bool(images.grad.isfinite().all())
    assert float((images.grad != 0).float().mean()) > 0.9 if name != "v10" else bool((images.grad != 0).any())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gradient_is_that_of_log_odds_however_sure_the_network_is():
    class Sure(nn.Module):
        def forward(self, images):
            z = images.flatten(1)[:, :30]
            return torch.cat([torch.ones(len(images), 30, 4), z.sigmoid()[..., None]], dim=-1).mT

    # float32 cannot tell probabilities nearer to 1 than 6e-8; near 0 it can
    images = torch.linspace(-60, 9, 30).repeat(1, 3 * 10)[:, :900].reshape(1, 3, 10, 30).requires_grad_()
    dense = dense_of(infer.yolo(Sure().eval(), format="v8", num_classes=1), images)
    close(dense["logits"][0, :, 0], images.detach().flatten()[:30], atol=2e-3)
    dense["logits"].sum().backward()
    close(images.grad.flatten()[:30], torch.ones(30), rtol=2e-3)


@pytest.mark.parametrize(
    ("name", "answer", "what"),
    [
        ("v4", torch.zeros(2, 30, 9), r"a pair of boxes .* and confidences .*, got \[2, 30, 9\]"),
        ("v4", (torch.zeros(2, 30, 4), torch.zeros(2, 30, 5)), r"got \(\[2, 30, 4\], \[2, 30, 5\]\)"),
        ("v4", (torch.zeros(2, 30, 1, 4), torch.zeros(2, 9, 5)), r"got \(\[2, 30, 1, 4\], \[2, 9, 5\]\)"),
        ("v5", torch.zeros(2, 30, 5), r"must answer \[b, n, 5 \+ c\], got \[2, 30, 5\]"),
        ("v5", {"boxes": torch.zeros(2, 3)}, r"got \{boxes: \[2, 3\]\}"),
        ("v5", None, "got NoneType"),
        ("v5", torch.zeros(2, 9, 30), r"9 boxes of 25 classes, which looks like another format; give num"),
        ("v8", torch.zeros(2, 30, 9), r"9 boxes of 26 classes, which looks like another format; give num"),
        ("v8", [torch.zeros(2, 3, 8, 8, 9)], r"got \(\[2, 3, 8, 8, 9\]\)"),
        (
            "v8",
            torch.full((2, 9, 30), 1.5),
            r"must be probabilities, got 1.5 to 1.5 in \[2, 9, 30\]; this is",
        ),
        ("v8", torch.full((2, 9, 30), torch.nan), "must be probabilities, got nan"),
        ("v10", torch.zeros(2, 9, 30), r"must answer \[b, m, 6\], got \[2, 9, 30\]"),
        ("v10", torch.zeros(2, 30, 6), r"yolo\(num_classes\) is required"),
    ],
)
def test_an_answer_of_another_format_is_refused(name, answer, what):
    with pytest.raises(ValueError, match=what):
        dense_of(infer.yolo(Answer(answer), format=name))


@pytest.mark.parametrize("name", ["v4", "v5", "v8"])
def test_another_number_of_classes_is_refused(name):
    with pytest.raises(ValueError, match=r"with c = 3, got"):
        dense_of(infer.yolo(TinyYolo(1, name), format=name, num_classes=3))


def test_a_class_beyond_the_last_is_refused():
    with pytest.raises(
        ValueError, match=r"yolo\(num_classes=1\): the answer holds class 1; classes count from 0"
    ):
        dense_of(infer.yolo(Answer(torch.ones(2, 3, 6)), format="v10", num_classes=1))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"format": "v7"}, r"victim.format: expected one of 'v4', 'v5', 'v8', 'v10', got 'v7'"),
        ({"format": "v8", "size": 0}, r"yolo\(size\) must be at least 1, got 0"),
        ({"format": "v8", "size": (64, 0)}, r"yolo\(size\) must be at least 1, got 0"),
        ({"format": "v8", "num_classes": 0}, r"yolo\(num_classes\) must be at least 1"),
        ({"format": "v8", "fit": "crop"}, r"victim.fit: expected one of 'letterbox', 'stretch', got 'crop'"),
    ],
)
def test_wrong_settings_are_refused(settings, what):
    with pytest.raises(ValueError, match=what):
        build({"victim": {"stage": "infer.yolo", "model": {"loader": "cases:tiny_yolo"}, **settings}})


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="yolo: 'the model' is in training mode"):
        dense_of(infer.yolo(TinyYolo(1, "v8").train(), format="v8"))
    with pytest.raises(ValueError, match="transformers_detector: 'the model' is in training mode"):
        dense_of(infer.transformers_detector(TinyYolo(1, "v8").train()))


def test_a_network_that_detaches_is_refused():
    class Detached(TinyYolo):
        def forward(self, images):
            return super().forward(images.detach())[0].detach()

    stage = infer.yolo(Detached(1, "v8"), format="v8")
    with pytest.raises(ValueError, match="Detached: no answer depends on the images by autograd"):
        dense_of(stage)
    with torch.no_grad():
        assert dense_of(stage)["logits"].shape == (2, 192, 2)


def test_show_tells_the_scores():
    stage = infer.yolo(tiny_yolo(seed=1, format="v5"), format="v5")
    values = stage.apply({}, {}, {"image": ODD})
    shown = stage.definition.show(stage.config, values, values)
    assert set(shown) == {"log_scores/patch", "log_scores/none"}
    assert float(shown["log_scores/patch"].max()) < 0


# -- Ultralytics


ARCHITECTURES = {
    "yolo11n": ("v8", False),
    "yolov8n": ("v8", False),
    "yolov5n": ("v8", False),
    "yolov10n": ("v8", False),
    "yolov10n, end to end": ("v10", True),
    "yolo26n": ("v10", True),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request):
    """An untrained network, its format, and whether it is end to end."""
    need_ultralytics()
    name, (form, end2end) = request.param.partition(",")[0], ARCHITECTURES[request.param]
    return make_ultralytics(name, end2end), form, end2end


def digest(model):
    state = {n: p.clone() for n, p in [*model.named_parameters(), *model.named_buffers()]}
    return state, {n: p.grad for n, p in model.named_parameters()}


def test_dense_is_the_raw_output_of_ultralytics(network):
    model, form, end2end = network
    images, _ = picture(128, 160)
    dense = dense_of(infer.yolo(model, format=form), images)
    with torch.no_grad():
        answer, raw = model(images)
        if end2end:  # the same head without its choice of the best 300
            raw = raw["one2one"]
            answer = model.model[-1]._inference(raw).mT
            close(dense["boxes"], answer[..., :4], atol=1e-3)
        else:
            raw = raw.get("one2many", raw)
            answer = answer.mT
            close(dense["boxes"], to_xyxy(answer[..., :4]), atol=1e-3)
    assert answer.shape == (1, 420, 10)
    close(dense["logits"], raw["scores"].mT, atol=1e-4, rtol=1e-4)  # a probability near 1 tells no more
    close(log_scores(dense).exp(), answer[..., 4:])
    assert float(dense["logits"].std()) > 0.5


@pytest.mark.parametrize(
    ("shape", "levels", "box_px", "score", "share"),
    [
        ((128, 160), np.uint8, 1e-3, 1e-4, 1.0),
        ((97, 131), np.float32, 1e-2, 1e-3, 0.99),  # an overlap of 0.7 may fall to the other side
        ((97, 131), np.uint8, 1.0, 0.03, 0.85),  # their resize rounds to whole levels, and so does predict
    ],
    ids=["as it is", "resized", "resized and rounded"],
)
def test_final_is_what_ultralytics_predicts(network, shape, levels, box_px, score, share):
    from ultralytics import YOLO

    if levels is np.float32:
        skip_before("8.4.175", "predict moves boxes back by one ratio for both sides, up to half a pixel off")
    model, form, end2end = network
    images, array = picture(*shape)
    shell: Any = YOLO("yolo11n.yaml", verbose=False)
    shell.model = copy.deepcopy(model)
    shell.model.names = {i: str(i) for i in range(6)}
    settings = {"imgsz": (128, 160), "rect": False, "conf": 0.001, "iou": 0.7, "max_det": 300}
    head = {"nms": False} if end2end else {}
    source = np.ascontiguousarray(array[..., ::-1]).astype(levels)
    (result,) = shell.predict(source, **settings, **head, verbose=False, device="cpu")
    expected = result.boxes.data.double()
    stage = infer.yolo(model, format=form, size=(128, 160))
    options = {"iou": 1.0} if end2end else {"iou": 0.7, "multi_label": False, "num_candidates": 30000}
    found = rows_of(final_of(stage, images, score=0.001, num_detections=300, **options))
    found[:, 0:4:2].clamp_(0, shape[1])
    found[:, 1:4:2].clamp_(0, shape[0])
    assert len(expected) >= 20
    assert float(expected[:, 4].std()) > 0.05
    assert abs(len(found) - len(expected)) <= 2 * (1 - share) * len(expected)
    assert share_found(found, expected, box_px, score) >= share


def rows_of(final):
    """The valid detections of the first image: xyxy, score, class."""
    columns = [final["boxes"][0], final["scores"][0, :, None], final["labels"][0, :, None]]
    return torch.cat(columns, dim=-1)[final["valid"][0]].double()


def share_found(found, expected, box_px, score):
    """What share of the expected rows is among those found."""
    same = (found[None, :, :4] - expected[:, None, :4]).abs().amax(-1) <= box_px
    same &= (found[None, :, 4] - expected[:, None, 4]).abs() <= score
    same &= found[None, :, 5] == expected[:, None, 5]
    return float(same.any(1).double().mean())


def test_ultralytics_networks_stay_the_same_and_pass_gradients(network):
    model, form, _ = network
    before, grads = digest(model)
    images = ODD.clone().requires_grad_()
    dense = dense_of(infer.yolo(model, format=form, size=128), images)
    (dense["logits"].sum() + dense["boxes"].sum()).backward()
    assert bool(images.grad.isfinite().all())
    assert float((images.grad != 0).float().mean()) > 0.99
    after, grads_after = digest(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert grads == grads_after == dict.fromkeys(grads)


def test_a_network_does_not_depend_on_the_descriptions_built_before_it():
    """The description of v6 names an activation, which Ultralytics 8.4.113 keeps for all later networks."""
    need_ultralytics()
    images = ODD[..., :64, :64]

    def answer(architecture):
        with torch.no_grad():
            return infer.ultralytics_model(architecture=architecture, num_classes=3).value(images)[0]

    before = answer("yolo11n.yaml")
    answer("yolov6n.yaml")
    assert torch.equal(answer("yolo11n.yaml"), before)


def test_a_network_just_used_for_prediction_can_be_attacked():
    """Ultralytics predicts in inference mode, and would keep anchors that no gradient may pass."""
    need_ultralytics()
    model = infer.ultralytics_model(architecture="yolov8n.yaml", num_classes=2).value
    with torch.inference_mode():
        model(ODD[..., :96, :128])
    images = ODD[..., :96, :128].clone().requires_grad_()
    dense_of(infer.yolo(model, format="v8"), images)["boxes"].sum().backward()
    assert bool(images.grad.isfinite().all())


def test_ultralytics_cannot_be_compiled_and_says_so():
    need_ultralytics()
    named = infer.ultralytics_model(architecture="yolov8n.yaml")
    assert not infer.yolo(named, format="v8").definition.traits.compile
    assert not infer.yolo(named.value, format="v8").definition.traits.compile
    assert infer.yolo(TinyYolo(1, "v8"), format="v8").definition.traits.compile


# -- loading Ultralytics


def test_state_dicts_are_loaded(tmp_path):
    need_ultralytics()
    settings = {"architecture": "yolov8n.yaml", "num_classes": 2}
    model = infer.ultralytics_model(**settings, seed=5).value
    spread_scores(model)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    expected = dense_of(infer.yolo(model, format="v8", size=64))
    for name in ("a.pt", "a.safetensors"):
        other = infer.ultralytics_model(tmp_path / name, **settings)
        found = dense_of(infer.yolo(other, format="v8", size=64))
        assert torch.equal(found["logits"], expected["logits"])
    untrained = dense_of(infer.yolo(infer.ultralytics_model(**settings), format="v8", size=64))
    assert not torch.equal(untrained["logits"], expected["logits"])
    with pytest.raises(
        ValueError, match=r"not the weights of yolov8n.yaml with 3 classes \(num_classes\): size"
    ):
        _ = infer.ultralytics_model(tmp_path / "a.pt", architecture="yolov8n.yaml", num_classes=3).value
    with pytest.raises(ValueError, match=r"not the weights of yolo11n.yaml .*: Missing key"):
        _ = infer.ultralytics_model(tmp_path / "a.pt", architecture="yolo11n.yaml", num_classes=2).value


def test_a_pickled_checkpoint_is_refused_with_the_command_that_converts_it(tmp_path):
    need_ultralytics()
    settings = {"architecture": "yolov8n.yaml", "num_classes": 2}
    model = infer.ultralytics_model(**settings, seed=5).value
    torch.save({"model": copy.deepcopy(model).half(), "ema": None}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="a pickled checkpoint can run any code") as refused:
        _ = infer.ultralytics_model(tmp_path / "best.pt", **settings).value
    code = str(refused.value).partition('python -c "')[2].partition('"')[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True, timeout=100)
    loaded = infer.ultralytics_model(tmp_path / "best-state.pt", **settings).value
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value.float(), model.state_dict()[name].float(), rtol=1e-3, atol=1e-6)


def test_what_is_no_state_dict_is_refused(tmp_path):
    need_ultralytics()
    torch.save({"epoch": 3, "state": {}}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="it must hold a state dict of tensors only"):
        _ = infer.ultralytics_model(tmp_path / "run.pt", architecture="yolov8n.yaml").value
    with pytest.raises(
        ValueError, match=r"architecture='yolo99q.yaml'\) is neither a file nor a description"
    ):
        _ = infer.ultralytics_model(architecture="yolo99q.yaml").value
    with pytest.raises(ValueError, match=r"end2end=True\): yolov8n.yaml has no one-to-one head"):
        _ = infer.ultralytics_model(architecture="yolov8n.yaml", end2end=True).value


STATE = """
import logging, os, sys, warnings
import cv2, numpy, torch
from PIL import Image
warnings.simplefilter("error")
numpy.set_printoptions(precision=3)
torch.set_printoptions(precision=6)
cv2.setNumThreads(2)
from fpatch import infer
from fpatch.graph.build import build

def state():
    return {
        "environment": dict(os.environ), "filters": list(warnings.filters), "hook": sys.excepthook,
        "save": torch.save, "load": torch.load, "arange": torch.arange, "open": Image.open,
        "imread": cv2.imread, "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": (torch.get_num_threads(), cv2.getNumThreads()), "numpy": numpy.get_printoptions(),
        "matmul": torch.get_float32_matmul_precision(), "dtype": torch.get_default_dtype(),
        "print": vars(torch._tensor_str.PRINT_OPTS).copy(), "errors": numpy.geterr(),
        "cudnn": [getattr(torch.backends.cudnn, n) for n in ("enabled", "benchmark", "allow_tf32")],
        "tf32": torch.backends.cuda.matmul.allow_tf32, "generator": torch.get_rng_state().tolist(),
        "logging": (logging.root.level, len(logging.root.handlers)),
    }

before = state()
infer.ultralytics_model(architecture="yolov8n.yaml").value
after = state()
changed = [name for name in before if before[name] != after[name]]
from ultralytics.utils import AUTOINSTALL, ONLINE
from ultralytics.utils.events import events
print(changed, ONLINE, AUTOINSTALL, events.enabled)
"""


def test_ultralytics_leaves_the_process_as_it_was(tmp_path):
    need_ultralytics()
    given = {**environment(), "YOLO_CONFIG_DIR": str(tmp_path)}
    for name in ("OMP_NUM_THREADS", "YOLO_OFFLINE", "PYTEST_CURRENT_TEST"):
        given.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", STATE], env=given, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.strip() == "[] False False False", done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["Ultralytics"]


# -- transformers


KINDS = ("detr", "yolos", "conditional_detr", "deformable_detr", "rt_detr")


@pytest.fixture(scope="module", params=KINDS)
def detr(request):
    """An untrained network, and the image processor of its family."""
    pytest.importorskip("transformers", exc_type=ImportError)
    import transformers

    model = make_transformer(request.param)
    kinds = {
        "detr": "Detr", "yolos": "Yolos", "conditional_detr": "ConditionalDetr",
        "deformable_detr": "DeformableDetr", "rt_detr": "RTDetr",
    }  # fmt: skip
    name = f"{kinds[request.param]}ImageProcessor"
    fast = f"{name}Fast"  # transformers 4 has two, and the other rounds what it resizes to whole levels
    return model, getattr(transformers, fast if fast in dir(transformers) else name)


def sizes_for(model, shape):
    """Settings under which the image processor resizes nothing, and some under which it does."""
    if model.config.model_type == "rt_detr":
        return {"height": shape[0], "width": shape[1]}, {"height": 64, "width": 96}
    return {"shortest_edge": min(shape), "longest_edge": max(shape)}, {
        "shortest_edge": 70,
        "longest_edge": 120,
    }


@pytest.mark.parametrize("resized", [False, True])
def test_dense_is_the_raw_output_of_transformers(detr, resized):
    model, processor = detr
    images, _ = picture(96, 128)
    size = sizes_for(model, (96, 128))[resized]
    with torch.no_grad():  # in floating point, so that the resize does not round to whole levels
        raw = model(**processor(size=size, do_rescale=False)(images=images[0], return_tensors="pt"))
    dense = dense_of(infer.transformers_detector(model, size=size), images)
    close(dense["boxes"], to_xyxy(raw.pred_boxes) * [128, 96, 128, 96], atol=2e-3)
    if raw.logits.shape[-1] == 8:
        z = raw.logits.double().softmax(-1)[..., :-1]
        expected = (z / (1 - z)).log()
    else:
        expected = raw.logits
    close(dense["logits"], expected, atol=1e-4, rtol=1e-4)
    assert float(dense["logits"].std(1).min()) > 0.01


@pytest.mark.parametrize(
    ("resized", "whole_levels", "box_px", "score", "share"),
    [(False, True, 1e-3, 1e-5, 1.0), (True, False, 5e-3, 1e-4, 1.0), (True, True, 1.0, 0.03, 0.8)],
    ids=["as it is", "resized", "resized and rounded"],
)
def test_final_is_what_transformers_gives(detr, resized, whole_levels, box_px, score, share):
    import transformers

    model, processor = detr
    images, array = picture(*((97, 131) if resized else (96, 128)))
    size = sizes_for(model, (96, 128))[resized]
    own = processor(size=size, do_rescale=whole_levels)
    with torch.no_grad():
        raw = model(**own(images=array if whole_levels else images[0], return_tensors="pt"))
        # in transformers 4, the fast processor of YOLOS takes its logits for those of a sigmoid
        plain = getattr(transformers, processor.__name__.removesuffix("Fast"))(size=size)
        (theirs,) = plain.post_process_object_detection(raw, threshold=0.0, target_sizes=[images.shape[-2:]])
    expected = torch.cat([theirs["boxes"], theirs["scores"][:, None], theirs["labels"][:, None]], dim=-1)
    options = {"multi_label": False} if raw.logits.shape[-1] == 8 else {}
    stage = infer.transformers_detector(model, size=size)
    found = rows_of(final_of(stage, images, score=0.0, iou=1.0, num_detections=len(expected), **options))
    assert len(found) == len(expected) >= 20
    assert float(expected[:, 4].std()) > 0.02
    assert share_found(found, expected.double(), box_px, score) >= share


def test_transformers_stay_the_same_and_pass_gradients(detr):
    model, _ = detr
    before, grads = digest(model)
    images = ODD.clone().requires_grad_()
    dense = dense_of(infer.transformers_detector(model, size={"height": 64, "width": 96}), images)
    (dense["logits"].sum() + dense["boxes"].sum()).backward()
    assert bool(images.grad.isfinite().all())
    assert float((images.grad != 0).float().mean()) > 0.9
    after, grads_after = digest(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert grads == grads_after == dict.fromkeys(grads)


def test_target_size_is_that_of_the_image_processors():
    transforms = pytest.importorskip("transformers.image_transforms", exc_type=ImportError)
    from transformers.models.yolos import image_processing_yolos as yolos

    names = ("get_size_with_aspect_ratio_yolos", "get_size_with_aspect_ratio")  # the second in transformers 4
    of_yolos = next(getattr(yolos, name) for name in names if hasattr(yolos, name))
    sizes = (np.asarray(noise("sizes", 20000, 4)) * [1380, 1380, 1380, 600]).astype(int) + 20
    for index, (h, w, short, more) in enumerate(sizes.tolist()):
        short = min(h, w) if index % 3 == 0 else short
        size = {"shortest_edge": short, "longest_edge": short + more}
        expected = transforms.get_size_with_aspect_ratio((h, w), short, short + more)
        assert target_size((h, w), size, 1) == expected
        assert target_size((h, w), size, 16) == of_yolos((h, w), short, short + more)


def test_another_network_is_refused():
    with pytest.raises(
        ValueError, match=r"must be one of detr, .* by its config.model_type, got TinyYolo \(None"
    ):
        dense_of(infer.transformers_detector(TinyYolo(1, "v8")))


def test_a_head_of_another_width_is_refused():
    pytest.importorskip("transformers", exc_type=ImportError)
    model = make_detr("yolos")
    model.config.num_labels = 8
    with pytest.raises(ValueError, match=r"a softmax over 8 labels has 9 logits per box, got 8"):
        dense_of(infer.transformers_detector(model, size={"height": 32, "width": 32}))


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (
            {"shortest_edge": 800},
            r"must hold shortest_edge and longest_edge, or height and width, got {'short",
        ),
        ({"height": 64, "width": 0}, r"size\['width'\]\) must be at least 1"),
    ],
)
def test_wrong_sizes_are_refused(size, what):
    with pytest.raises(ValueError, match=what):
        infer.transformers_detector(TinyYolo(1, "v8"), size=size)


# -- loading transformers


def test_safetensors_with_their_config_are_loaded(tmp_path):
    pytest.importorskip("transformers", exc_type=ImportError)
    model = make_detr("yolos")
    model.save_pretrained(tmp_path)
    named = infer.transformers_model(tmp_path / "model.safetensors")
    assert named.sha256 is not None
    loaded = named.value
    assert not loaded.training
    size = {"height": 32, "width": 32}
    found, expected = (dense_of(infer.transformers_detector(m, size=size)) for m in (loaded, model))
    assert torch.equal(found["logits"], expected["logits"])
    assert named.files == {"config.json": file_digest(tmp_path / "config.json")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"config.json has changed: sha256"):
        _ = dataclasses.replace(named).value
    with pytest.raises(ValueError, match="is no object detector"):
        _ = infer.transformers_model(tmp_path / "model.safetensors").value
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"must be a model.safetensors with its config.json beside it, got"):
        _ = infer.transformers_model(tmp_path / "model.safetensors").value


def test_pickled_weights_of_transformers_are_refused(tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"must be a model.safetensors"):
        _ = infer.transformers_model(tmp_path / "pytorch_model.bin").value


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({}, "takes either weights .* or pretrained"),
        (
            {"pretrained": "hustvl/yolos-tiny"},
            r"\(revision\) must be the commit of hustvl/yolos-tiny, 40 .* None",
        ),
        (
            {"pretrained": "hustvl/yolos-tiny", "revision": "main"},
            r"got 'main'; https://huggingface.co/hustvl",
        ),
    ],
)
def test_wrong_arguments_of_the_loader_are_refused(arguments, what):
    with pytest.raises(ValueError, match=what):
        _ = infer.transformers_model(**arguments).value


def test_without_network_it_says_what_to_fetch(tmp_path, monkeypatch):
    pytest.importorskip("transformers", exc_type=ImportError)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "95a90f3c189fbfca3bcfc6d7315b9e84d95dc2de"
    with pytest.raises(ValueError, match="cannot get hustvl/yolos-tiny at 95a9") as error:
        _ = infer.transformers_model(pretrained="hustvl/yolos-tiny", revision=commit).value
    assert f"fetch https://huggingface.co/hustvl/yolos-tiny/resolve/{commit}/model.safetensors and" in str(
        error.value
    )
    assert "give weights='<folder>/model.safetensors'" in str(error.value)


@pytest.mark.parametrize(
    ("package", "extra", "load"),
    [
        ("ultralytics", "ultralytics", lambda: infer.ultralytics_model(architecture="yolov8n.yaml").value),
        (
            "transformers",
            "transformers",
            lambda: infer.transformers_model(pretrained="a/b", revision="0" * 40).value,
        ),
    ],
)
def test_without_the_package_the_extra_is_named(monkeypatch, package, extra, load):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'fpatch\[{extra}\]'"):
        load()
