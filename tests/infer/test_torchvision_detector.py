"""Detectors of torchvision against what the library itself computes and answers, and where they come from."""

import hashlib
import inspect
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from cases import SHAPES as PATCHES
from cases import make_inputs, noise
from safetensors.torch import save_file
from study_fixture import make_study
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torchvision.models import detection
from torchvision.transforms.functional import normalize
from torchvision_victims import ARCHITECTURES, NUM_CLASSES, make_victim, spread

from fpatch import build, create, implant, infer, node, pipeline, random
from fpatch.infer.torchvision_model import load_model
from fpatch.ops.detections import ABSENT
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.step import make_state, make_step
from fpatch.study.config import load_study

SHAPES = {"resized": (100, 140), "tall": (150, 90), "as it is": (112, 160)}
IMAGES = {name: noise(name, 3, 3, *shape) for name, shape in SHAPES.items()}
TWO_STAGES = "Faster R-CNN"
SIGMOID = ("RetinaNet", "FCOS")


@pytest.fixture(scope="module")
def victims():
    return {name: make_victim(name) for name in ARCHITECTURES}


def answer(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return infer.torchvision_detector(model).apply({}, {}, {"image": images})["detections"]["dense"]


def listen(model: Any, images: Tensor) -> dict[str, Any]:
    """What the parts of the library say while it answers a batch as it likes to."""
    heard: dict[str, Any] = {}
    names = {name: getattr(model, name, None) for name in ("transform", "head", "anchor_generator", "rpn")}
    if hasattr(model, "roi_heads"):
        names["box_predictor"] = model.roi_heads.box_predictor
    parts = {name: part for name, part in names.items() if part is not None}
    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: heard.setdefault(name, out))
        for name, part in parts.items()
    ]
    with torch.no_grad():
        model(list(images))
    for hook in hooks:
        hook.remove()
    return heard


def decode(codes: Tensor, anchors: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Girshick et al. (2014), R-CNN, equations 1 to 4 of appendix C, in float64."""
    dx, dy, dw, dh = (codes.double() / torch.tensor(weights).double()).unbind(-1)
    left, top, right, bottom = anchors.double().unbind(-1)
    x, y = (left + right) / 2 + dx * (right - left), (top + bottom) / 2 + dy * (bottom - top)
    width, height = [
        (right - left) * dw.clamp(max=4.135166556742356).exp(),
        (bottom - top) * dh.clamp(max=4.135166556742356).exp(),
    ]
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)


def decode_sides(codes: Tensor, anchors: Tensor) -> Tensor:
    """Tian et al. (2019), FCOS: distances of the four sides in units of the stride."""
    left, top, right, bottom = anchors.double().unbind(-1)
    x, y, side = (left + right) / 2, (top + bottom) / 2, right - left
    to_left, to_top, to_right, to_bottom = (codes.double() * side[:, None]).unbind(-1)
    return torch.stack([x - to_left, y - to_top, x + to_right, y + to_bottom], dim=-1)


def to_image(boxes: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> Tensor:
    limit = torch.tensor(resized[::-1]).repeat(2).double()
    clipped = torch.minimum(boxes.clamp(min=0), limit)
    return clipped * torch.tensor(size[::-1]).repeat(2) / limit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_is_what_the_library_computes(victims, name, shape):
    model, images = victims[name], IMAGES[shape]
    with torch.no_grad():
        dense = answer(model, images)
    heard = listen(model, images)
    resized, size = heard["transform"][0].image_sizes[0], SHAPES[shape]
    assert (tuple(resized) == size) == (shape == "as it is" and not name.startswith("SSD"))
    if name == TWO_STAGES:
        found, num = heard["rpn"][0], model.rpn.post_nms_top_n()
        logits, codes = (said.split([len(p) for p in found]) for said in heard["box_predictor"])
        assert dense["boxes"].shape == (3, num, NUM_CLASSES, 4)
        for row, proposals in enumerate(found):
            k = len(proposals)
            each = codes[row].unflatten(-1, (NUM_CLASSES, 4))
            boxes = decode(each, proposals[:, None].expand(-1, NUM_CLASSES, -1), (10, 10, 5, 5))
            boxes = to_image(boxes, resized, size)
            torch.testing.assert_close(dense["boxes"][row, :k].double(), boxes, rtol=0, atol=1e-3)
            p = logits[row].double().softmax(-1)
            there = (boxes[..., 2:] - boxes[..., :2] > 0.02).all(-1)
            there[:, 0] = False
            expected = (p / (1 - p)).log()
            said = dense["logits"][row, :k].double()
            torch.testing.assert_close(said[there], expected[there], rtol=1e-4, atol=1e-4)
            assert int(there.sum()) > 20
            assert bool((dense["logits"][row, :, 0] == ABSENT).all())
            assert bool((dense["logits"][row, k:] == ABSENT).all())
            assert bool((dense["boxes"][row, k:] == 0).all())
        return
    head, anchors = heard["head"], heard["anchor_generator"][0]
    codes, logits = head["bbox_regression"], head["cls_logits"].double()
    if name == "FCOS":
        boxes = decode_sides(codes, anchors)
        p = (logits.sigmoid() * head["bbox_ctrness"].double().sigmoid()).sqrt()
    else:
        boxes = decode(codes, anchors, (1, 1, 1, 1) if name == "RetinaNet" else (10, 10, 5, 5))
        p = logits.sigmoid() if name == "RetinaNet" else logits.softmax(-1)
    torch.testing.assert_close(dense["boxes"].double(), to_image(boxes, resized, size), rtol=0, atol=1e-3)
    expected = (p / (1 - p)).log()
    if name not in SIGMOID:
        expected[..., 0] = ABSENT
    torch.testing.assert_close(dense["logits"].double(), expected, rtol=1e-4, atol=1e-4)


def open_wide(model: Any) -> tuple[float, int]:
    """No threshold, and no cut but the last; the settings that are left."""
    last = model.roi_heads if hasattr(model, "roi_heads") else model
    last.score_thresh = 0.0
    model.topk_candidates = 10**6
    last.detections_per_img = 60
    return last.nms_thresh, last.detections_per_img


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_suppressed_it_is_what_the_library_answers(name, shape):
    model, images = make_victim(name), IMAGES[shape]
    assert_same_answers(model, images)


def test_boxes_that_clipping_leaves_empty_are_not_answered():
    """Two of three classes are moved to the right, most of them out of the image."""
    model: Any = make_victim(TWO_STAGES)
    with torch.no_grad():
        model.roi_heads.box_predictor.bbox_pred.bias[4:12:4] += 40
        boxes = answer(model, IMAGES["resized"])["boxes"]
    empty = (boxes[..., 2:] - boxes[..., :2] == 0).any(-1)
    assert float(empty[:, :, 1:3].float().mean()) > 0.5
    assert_same_answers(model, IMAGES["resized"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16"],
)
def test_the_architectures_by_name_answer_as_the_library_does(architecture):
    small = {} if architecture.startswith("ssd") else {"min_size": 96, "max_size": 160}
    model = load_model(architecture=architecture, seed=0, num_classes=5, **small)
    spread(model)
    assert_same_answers(model, IMAGES["resized"][:1])


def assert_same_answers(model: nn.Module, images: Tensor) -> None:
    """The victim's dense answer, suppressed with the library's settings, against its predictions.

    In float64, in which no two scores are so near that rounding could exchange them.
    """
    model, images = model.double(), images.double()
    iou, num = open_wide(model)
    suppress = infer.suppress(score=1e-12, iou=iou, num_detections=num, num_candidates=10**6)
    labels = []
    for image in images:
        with torch.no_grad():
            (expected,) = model([image])
            dense = answer(model, image[None])
        final = suppress.apply({}, {}, {"detections": {"dense": dense}})["detections"]["final"]
        valid = final["valid"][0]
        assert int(valid.sum()) == len(expected["scores"]) >= 20
        assert float(-expected["scores"].diff().max()) > 1e-9
        assert torch.equal(final["labels"][0][valid], expected["labels"])
        torch.testing.assert_close(final["scores"][0][valid], expected["scores"], rtol=0, atol=1e-12)
        torch.testing.assert_close(final["boxes"][0][valid], expected["boxes"], rtol=0, atol=1e-4)
        labels.append(expected["labels"])
    assert len(torch.cat(labels).unique()) > 1


def test_the_settings_in_the_docstring_are_the_defaults_of_the_library():
    def defaults(function, *names):
        known = inspect.signature(function).parameters
        return tuple(known[name].default for name in names)

    said = inspect.getdoc(sys.modules[infer.torchvision_detector.module])
    assert said is not None
    rows = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()[-5:]]
    names = ("score_thresh", "nms_thresh", "detections_per_img")
    boxes = tuple(f"box_{name}" for name in names)
    lite = detection.ssdlite320_mobilenet_v3_large(weights_backbone=None)
    expected = {
        "Faster R-CNN": defaults(detection.FasterRCNN, *boxes),
        "RetinaNet": defaults(detection.RetinaNet, *names),
        "FCOS": defaults(detection.FCOS, *names),
        "SSD": defaults(detection.ssd.SSD, *names),
        "SSDlite": tuple(getattr(lite, name) for name in names),
    }
    assert {name: tuple(map(float, row)) for name, *row in rows} == expected


# -- it does not change, and the patch learns


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = b"" if tensor.grad is None else tensor.grad.numpy().tobytes()
        found.update(name.encode() + tensor.detach().numpy().tobytes() + grad)
    return found.hexdigest()


def soft_scores(values, patch_params) -> dict[str, Tensor]:
    """Everything that it says, pushed down."""
    return {"soft_scores": nn.functional.softplus(values["detections"]["dense"]["logits"]).mean((-1, -2))}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_victim_is_the_same_after_steps_that_move_the_loss(victims, name):
    model = victims[name]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.full_like(parameter, 0.25)
    attack = pipeline(
        {
            "pixels": create.pixels(PATCHES),
            "implant": implant.warp(),
            "victim": infer.torchvision_detector(model),
            "loss": node(soft_scores, writes=("soft_scores",)),
        }
    )
    inputs = make_inputs(scene=IMAGES["resized"])
    batch = {name: inputs[name] for name in ("image_id", "draw", *attack.required())}
    objective = Objective(attack, {"soft_scores": 1.0})
    optimizer = make_optimizer(Optimizer("adam", 0.05, "constant"), 5)
    state = make_state(objective, optimizer, random.key(3))
    step = make_step(objective, optimizer)
    before, found = digest(model), []
    for _ in range(5):
        state, info = step(state, batch)
        assert bool(torch.isfinite(info.grad_norm))
        found.append(float(info.loss))
    assert digest(model) == before
    assert not any(m.training for m in model.modules())
    assert found[-1] < found[0]
    for parameter in model.parameters():
        parameter.grad = None


@pytest.mark.parametrize("output", ["boxes", "logits"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gradient_reaches_the_image(victims, name, output):
    model, images = victims[name], IMAGES["resized"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(answer(model, images)[output].sum(), images)
    assert bool(gradient.isfinite().all())
    assert float((gradient != 0).float().mean()) > 0.2


def test_an_image_of_one_value_has_finite_gradients(victims):
    for model in victims.values():
        images = torch.zeros(1, 3, 100, 140, requires_grad=True)
        dense = answer(model, images)
        (gradient,) = torch.autograd.grad(dense["logits"].sum() + dense["boxes"].sum(), images)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("num", [100, 300])
def test_the_shape_does_not_depend_on_how_much_is_proposed(num):
    model: Any = make_victim(TWO_STAGES)
    model.rpn.nms_thresh, model.rpn._post_nms_top_n["testing"] = 0.3, num
    noisy, flat = IMAGES["resized"][:1], torch.zeros(1, 3, 100, 140)
    with torch.no_grad():
        together, alone = answer(model, torch.cat([noisy, flat])), answer(model, noisy)
        counts = [len(p) for p in listen(model, torch.cat([noisy, flat]))["rpn"][0]]
    assert min(counts) < max(counts) == min(num, counts[0])
    assert together["boxes"].shape[1] == alone["boxes"].shape[1] == num
    assert not bool((together["logits"][1, counts[1] :] != ABSENT).any())
    torch.testing.assert_close(together["logits"][:1], alone["logits"], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_it_is_compiled_in_pieces(victims):
    """The library's loops and the module made on the way break the graph; the answer is the same."""

    stage = infer.torchvision_detector(victims["SSD"])

    def logits(images):
        return stage.apply({}, {}, {"image": images})["detections"]["dense"]["logits"]

    torch._dynamo.reset()
    with pytest.raises(Unsupported):
        torch.compile(logits, backend="aot_eager", fullgraph=True)(IMAGES["resized"])
    torch._dynamo.reset()
    found = torch.compile(logits, backend="aot_eager")(IMAGES["resized"])
    torch.testing.assert_close(found, logits(IMAGES["resized"]), rtol=0, atol=1e-4)


# -- what it refuses


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_module_in_training_mode_is_refused(name):
    model: Any = make_victim(name)
    model.backbone.train()
    with pytest.raises(ValueError, match=r"torchvision_detector: 'backbone' is in training mode.*model.eval"):
        answer(model, IMAGES["resized"])


def test_another_module_is_refused():
    with pytest.raises(ValueError, match=r"FasterRCNN, RetinaNet, FCOS, SSD.*got Linear.*infer.detector"):
        answer(nn.Linear(1, 1).eval(), IMAGES["resized"])


# -- where networks come from

SMALL = {"architecture": "ssdlite320_mobilenet_v3_large", "num_classes": NUM_CLASSES}
TINY = {"architecture": "squeezenet1_1", "num_classes": 3}


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_seed_gives_the_same_untrained_network():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (load_model(seed=seed, **SMALL) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, other)
    assert not any(m.training for m in first.modules())


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_weights_come_from_a_local_file(tmp_path, suffix):
    trained = load_model(seed=1, **SMALL)
    path = tmp_path / f"victim.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(trained.state_dict(), path)
    resource = infer.torchvision_model(path, **SMALL)
    assert len(resource.sha256) == 64
    assert same(resource.value, trained)
    assert not any(m.training for m in resource.value.modules())


def test_a_study_names_it(tmp_path):
    """As docs/reference/victims.md writes it."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "victims.md").read_text()
    written = re.search(
        r"```toml\n(\[pipeline.victim\]\nstage = \"infer.torchvision.*?)\[pipeline.suppress", page, re.DOTALL
    )
    assert written is not None
    arguments = f'{{architecture = "{SMALL["architecture"]}", num_classes = {NUM_CLASSES}}}'
    victim = re.sub(r"\{.*\}", arguments, written[1]).replace("fcos.pth", "mine.safetensors")
    path = make_study(tmp_path)
    text = path.read_text()
    path.write_text(re.sub(r"\[pipeline.victim\].*?(?=\[pipeline)", victim, text, flags=re.DOTALL))
    save_file(load_model(seed=1, **SMALL).state_dict(), tmp_path / "mine.safetensors")
    victims = load_study(path).pipeline
    model = victims["victim"].stage.config.model
    assert (model.loader, len(model.sha256)) == ("infer.torchvision_model", 64)
    again = build(victims.config)["victim"].stage.config.model
    assert again == model
    assert same(again.value, load_model(seed=1, **SMALL))


@pytest.mark.parametrize(
    ("problem", "arguments", "message"),
    [
        ("no source", {}, "one source: a file .weights., download = 'DEFAULT', or.*a seed"),
        ("two sources", {"seed": 1, "download": "DEFAULT"}, "one source"),
        (
            "name",
            {"architecture": "fasterrcn_resnet50_fpn", "seed": 1},
            "did you mean 'fasterrcnn_resnet50_fpn'",
        ),
        ("segmentation", {"architecture": "lraspp_mobilenet_v3_large", "seed": 1}, "none of torchvision's"),
        ("published", {"download": "COCO"}, "'COCO': no such weights of ssdlite320.*known: COCO_V1, DEFAULT"),
        ("argument", {"seed": 1, "num_clases": 3}, "no argument 'num_clases'; did you mean 'num_classes'"),
        ("normalize", {"seed": 1, "normalize": False}, "detectors normalize their images"),
    ],
)
def test_a_wrong_request_is_refused(problem, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_model(**{**SMALL, **arguments})


def test_a_wrong_argument_of_a_classifier_is_refused():
    with pytest.raises(ValueError, match="num_clases"):
        load_model(architecture="squeezenet1_1", seed=1, num_clases=3)


def test_a_wrong_file_is_refused(tmp_path):
    def refused(state, suffix="pt"):
        path = tmp_path / f"wrong.{suffix}"
        torch.save(state, path)
        with pytest.raises(ValueError, match=rf"wrong.{suffix}") as error:
            infer.torchvision_model(path, **TINY).value  # noqa: B018
        return str(error.value)

    state = load_model(seed=1, normalize=False, **TINY).state_dict()
    first, *others = state
    assert "'num_classes': 3}: features.0.weight is missing; give" in refused({k: state[k] for k in others})
    assert "and 49 more" in refused({})
    assert "other.weight is not in the network" in refused(state | {"other.weight": torch.zeros(1)})
    assert "size mismatch for features.0.weight" in refused(state | {first: torch.zeros(1)})
    assert "holds model, epoch; save model.state_dict() alone" in refused({"model": state, "epoch": 3})
    assert "holds Tensor" in refused(torch.zeros(1))
    assert "must be a .safetensors, .pt or .pth file" in refused(state, "npz")
    (tmp_path / "bad.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"cannot be loaded from .*bad.pt"):
        infer.torchvision_model(tmp_path / "bad.pt", **TINY).value  # noqa: B018
    with pytest.raises(FileNotFoundError, match=r"none.pt: no such file"):
        infer.torchvision_model(tmp_path / "none.pt", **TINY)


class Malice:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_a_file_runs_no_code(tmp_path):
    torch.save({"weight": Malice()}, tmp_path / "malice.pt")
    with pytest.raises(ValueError, match=r"malice.pt"):
        infer.torchvision_model(tmp_path / "malice.pt", **TINY).value  # noqa: B018


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    """Behind a proxy that does not exist."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # which keeps the proxy that it was made with
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(OSError, match="_large: the weights COCO_V1 cannot be downloaded") as caught:
        _ = infer.torchvision_model(architecture="ssdlite320_mobilenet_v3_large", download="COCO_V1").value
    file = "ssdlite320_mobilenet_v3_large_coco-a79551df.pth"
    assert f"fetch https://download.pytorch.org/models/{file} elsewhere" in str(caught.value)
    assert f"put it at {tmp_path}/checkpoints/{file}, or anywhere and give weights" in str(caught.value)


@pytest.mark.parametrize("architecture", ["fasterrcnn_resnet50_fpn", "googlenet"])
def test_a_published_file_is_built_as_the_library_builds_it(tmp_path, monkeypatch, architecture):
    """With what it sets beside the weights: frozen batch norms with eps 0, a transformed input."""
    published: Any = torchvision.models.get_model_weights(architecture)
    arguments = {"weights_backbone": None} if "rcnn" in architecture else {"init_weights": True}
    with torch.random.fork_rng():
        state = torchvision.models.get_model(architecture, weights=None, **arguments).state_dict()
    state = {k: v for k, v in state.items() if "rcnn" not in architecture or "num_batches" not in k}
    path = tmp_path / "any name.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(published.DEFAULT.value, "url", f"https://example.com/file-{digest[:8]}.pth")
    before = torch.hub.get_dir()
    model = infer.torchvision_model(path, architecture=architecture).value
    assert torch.hub.get_dir() == before
    if "rcnn" in architecture:
        norms = [m for m in model.modules() if isinstance(m, torchvision.ops.FrozenBatchNorm2d)]
        assert len(norms) == 53
        assert {m.eps for m in norms} == {0.0}
    else:
        assert model.model.transform_input
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    cached = tmp_path / "hub" / "checkpoints" / f"file-{digest[:8]}.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(path.read_bytes())
    again = infer.torchvision_model(architecture=architecture, download="DEFAULT").value
    assert same(model, again)


def test_frozen_batch_norms_of_a_file_of_ones_own_need_no_count(tmp_path):
    trained = load_model(seed=1, **SMALL)
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "frozen.safetensors")
    assert same(load_model(tmp_path / "frozen.safetensors", **SMALL), trained)


def test_a_classifier_is_normalized():
    images = noise("classifier", 3, 3, 64, 80)
    plain = load_model(seed=1, normalize=False, **TINY).requires_grad_(False)
    model = load_model(seed=1, **TINY)
    preset = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    expected = plain(normalize(images, preset.mean, preset.std))
    found = infer.classifier(model).apply({}, {}, {"image": images})["logits"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float((plain(images) - expected).abs().max()) > 0.01
