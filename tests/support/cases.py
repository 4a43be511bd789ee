"""What the laws are checked on: every stage, and pipelines that combine them awkwardly.

A new stage is one line in `CASES`. It is given what it reads of `make_inputs`, or other inputs by keyword.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import optree
import torch
from PIL import ImageDraw
from torch import Tensor, nn
from torchvision_victims import ARCHITECTURES, make_victim

from fpatch import compose, create, defend, graph, implant, infer, losses, metrics, random, viz
from fpatch.core.resource import define_loader
from fpatch.core.tree import constant
from fpatch.core.types import Range
from fpatch.graph.node import node
from fpatch.graph.pipeline import Pipeline, pipeline
from fpatch.graph.stage import Stage
from fpatch.ops.detections import ABSENT

NUM_ROWS, HEIGHT, WIDTH = 3, 97, 131
SHAPES = {"hood": (3, 20, 31), "roof": (3, 16, 9)}
DETECTORS = ("infer.torchvision_detector", "infer.yolo", "infer.transformers_detector")
SHARED = ("patch", "masks")
"""Values without an axis of rows."""


class TinyDetector(nn.Module):
    """Every cell of 8 x 8 pixels answers one box of two classes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.backbone, self.boxes, self.logits = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        randomize(self, seed)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images - 0.5).tanh()
        rows, columns = features.shape[-2:]
        places = (torch.arange(count, device=images.device) for count in (rows, columns))
        y, x = torch.meshgrid(*places, indexing="ij")
        center = 8 * torch.stack([x, y, x, y]).flatten(1).T + 4
        size = 12 * self.boxes(features).tanh().exp().flatten(2).transpose(1, 2)
        low_high = torch.cat([-size[..., :2], size[..., 2:]], dim=-1)
        return {"boxes": center + low_high, "logits": self.logits(features).flatten(2).transpose(1, 2)}


class TinyYolo(TinyDetector):
    """The same cells, in the format of a family, their scores spread over (0, 1)."""

    def __init__(self, seed: int, format: str) -> None:
        super().__init__(seed)
        self.format = format

    def forward(self, images: Tensor) -> Any:
        found = super().forward(images)
        low, high = found["boxes"].chunk(2, dim=-1)
        center_size = torch.cat([(low + high) / 2, high - low], dim=-1)
        scores = (1 + (2 * found["logits"]).tanh()) / 2
        if self.format == "v4":
            size = constant([*images.shape[:-3:-1], *images.shape[:-3:-1]], images)
            return [(found["boxes"] / size)[:, :, None], scores]
        if self.format == "v5":
            return torch.cat([center_size, scores.sum(-1, keepdim=True) / 2, scores], dim=-1), [scores]
        if self.format == "v8":
            return torch.cat([center_size, scores], dim=-1).transpose(1, 2), {"besides": scores}
        best, label = scores.max(-1, keepdim=True)
        best, order = best.topk(50, dim=1)
        found = torch.cat([found["boxes"], label], dim=-1).gather(1, order.expand(-1, -1, 5))
        return torch.cat([found[..., :4], best, found[..., 4:]], dim=-1)


class TinyClassifier(nn.Module):
    """Five classes from the mean of random features."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5)
        randomize(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images - 0.5).tanh().mean((-1, -2)))


class TinyNet(nn.Module):
    """From images to features, by a layer of a norm and one of dropout."""

    def __init__(self, seed: int, norm: str = "", dropout: float = 0.0) -> None:
        super().__init__()
        norms = {"batch": nn.BatchNorm2d(6), "instance": nn.InstanceNorm2d(6, track_running_stats=True)}
        self.conv, self.norm = nn.Conv2d(3, 6, 8, 8), norms.get(norm, nn.Identity())
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(6, 5)
        randomize(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(images - 0.5)).tanh().mean((-1, -2))))


class TinyGenerator(nn.Module):
    """From a latent [b, 4, h, w] to a picture twelve times as large, less one pixel."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 4, 4)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.ConvTranspose2d(6, 3, 3, 3, padding=1)
        randomize(self, seed)

    def forward(self, latents: Tensor) -> Tensor:
        return (self.out(self.norm(self.up(latents)).tanh()).tanh() + 1) / 2


def randomize(module: nn.Module, seed: int) -> None:
    for name, parameter in module.named_parameters():
        values = random.normal(random.fold_in(random.key(seed), name), tuple(parameter.shape))
        with torch.no_grad():
            parameter.copy_(values / max(1, parameter[:1].numel()) ** 0.5)
    module.eval()


def draw_ellipse(height: int, width: int) -> Tensor:
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return (2 - 2 * (x * x + y * y)).clamp(0, 1)


def draw_answer(image: Any, logits: Any, target: Any) -> Any:
    """The answer and the true class as dark columns of a PIL image."""
    pen = ImageDraw.Draw(image)
    for x, number in enumerate((int(logits.argmax()), int(target))):
        pen.line((x, 0, x, number), fill="black")
    return image


detector = define_loader("detector", lambda seed: TinyDetector(seed))


def make_yolos() -> nn.Module:
    """The smallest of the family that transformers has, with logits that differ."""
    from transformers import YolosConfig, YolosForObjectDetection

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokens = {"image_size": [96, 128], "patch_size": 16, "num_detection_tokens": 16, "num_labels": 4}
    model = YolosForObjectDetection(YolosConfig(**sizes, **tokens))
    randomize(model, 8)
    return model


tiny_yolo = define_loader("tiny_yolo", lambda seed, format: TinyYolo(seed, format))
tiny_yolos = define_loader("tiny_yolos", make_yolos)
classifier = define_loader("classifier", lambda seed: TinyClassifier(seed))
ellipse = define_loader("ellipse", draw_ellipse)
tiny_net = define_loader("tiny_net", lambda seed, norm="", dropout=0.0: TinyNet(seed, norm, dropout))
tiny_generator = define_loader("tiny_generator", lambda seed: TinyGenerator(seed))
torchvision_victim = define_loader("torchvision_victim", lambda name: make_victim(name))
drawer = define_loader("drawer", lambda: draw_answer)
picture = define_loader("picture", lambda shape: noise("picture", *shape))


def noise(name: str, *shape: int) -> Tensor:
    return random.uniform(random.fold_in(random.key(7), name), shape)


def imports(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def make_quads() -> Tensor:
    """Three placements per row: one tilted, one over it and half outside, one somewhere else."""
    quads = [
        [[20.0, 15.0], [75.0, 20.0], [70.0, 58.0], [16.0, 50.0]],
        [[-12.0, 30.0], [41.0, 24.0], [44.0, 61.0], [-9.0, 66.0]],
        [[90.0, 60.0], [142.0, 62.0], [138.0, 108.0], [88.0, 101.0]],
    ]
    return torch.tensor(quads) + 6 * noise("quads", NUM_ROWS, 3, 4, 2)


def make_inputs(**others: Any) -> dict[str, Any]:
    """All that a stage may read: three rows, of which two show one photograph and one lacks a placement."""
    return {**optree.tree_map(Tensor.clone, _standard_inputs()), **others}


@cache
def _standard_inputs() -> dict[str, Any]:
    quads = make_quads()
    quads[2, 1] = float("nan")
    boxes = torch.tensor([[10.0, 8.0, 80.0, 70.0], [60.0, 30.0, 131.0, 97.0]])
    boxes = boxes + 4 * noise("boxes", NUM_ROWS, 2, 4)
    images = noise("image", NUM_ROWS, 3, HEIGHT, WIDTH)
    # an odd number of boxes: what is equal only in whole vectors of a processor shows
    dense = {name: value.detach()[:, :191] for name, value in TinyDetector(3)(images).items()}
    final = {
        "boxes": torch.cat([boxes, boxes + 15, boxes - 40], dim=1),
        "scores": noise("scores", NUM_ROWS, 6),
        "labels": torch.tensor([[0, 1, 0, 1, 1, 0]]).repeat(NUM_ROWS, 1),
        "valid": noise("valid", NUM_ROWS, 6) > 0.2,
    }
    return {
        "image_id": torch.tensor([7, 7, 3]),
        "draw": torch.tensor([0, 1, 0]),
        "scene": noise("scene", NUM_ROWS, 3, HEIGHT, WIDTH),
        "image": images,
        "quads": quads,
        "quad_patch": torch.tensor([[0, 1, 1], [1, 0, 0], [0, 1, 0]]),
        "quad_valid": quads.isfinite().all(-1).all(-1),
        "boxes": boxes,
        "labels": torch.tensor([[0, 1]]).repeat(NUM_ROWS, 1),
        "box_valid": torch.tensor([[True, True], [True, False], [False, True]]),
        "target": torch.tensor([1, 4, 0]),
        "logits": 4 * noise("logits", NUM_ROWS, 5) - 2,
        "detections": {"dense": dense, "final": final},
        "patch": {name: noise(name, *shape) for name, shape in SHAPES.items()},
    }


def make_batch() -> dict[str, Tensor]:
    """What a target set gives of it: the batch of `demo`."""
    names = ("image_id", "draw", "scene", "quads", "quad_patch", "quad_valid", "boxes", "box_valid", "labels")
    inputs = make_inputs()
    return {name: inputs[name] for name in names}


def make_dense(objectness: bool = False, class_boxes: bool = False) -> dict[str, Any]:
    """What detectors of other families give: one more class that is absent, and padding at the end."""
    dense = dict(make_inputs()["detections"]["dense"])
    dense["logits"] = torch.cat([dense["logits"], 2 * noise("third", NUM_ROWS, 191, 2) - 1], dim=-1)
    dense["logits"][..., 3] = dense["logits"][:, -7:] = ABSENT
    if objectness:
        dense["objectness"] = 4 * noise("objectness", NUM_ROWS, 191) - 2
    if class_boxes:
        dense["boxes"] = dense["boxes"][:, :, None] + 30 * noise("class boxes", NUM_ROWS, 191, 4, 4) - 15
    return {"dense": dense}


@dataclass(frozen=True)
class Case:
    """A stage or a pipeline, with parameters and a batch for it.

    Attributes:
        subject: Has `sample` and `apply`.
        params: Of the parameterizations in it.
        batch: Named tensors, and the patches where the subject reads them without making them.
        tolerance: Largest difference that another size of batch may make: not 0 only behind a network.
        few_draws: Two rows may well draw the same, as when it is one index of a few.
        fake: Tensors without values can go through it: it neither counts nor checks what it was given.
    """

    subject: Any  # a Stage or a Pipeline
    params: dict[str, Tensor]
    batch: dict[str, Any]
    tolerance: float = 0.0
    few_draws: bool = False
    fake: bool = True

    @property
    def stages(self) -> list[Stage]:
        return [self.subject] if isinstance(self.subject, Stage) else [n.stage for n in self.subject.values()]


def case(
    subject: Stage | Pipeline,
    without: tuple[str, ...] = (),
    few_draws: bool = False,
    fake: bool = True,
    **others: Any,
) -> Case:
    """A case from the standard inputs, less some and with others."""
    if isinstance(subject, Stage):
        d = subject.definition
        params = {} if d.init is None else d.init(subject.config, random.key(1))
        names = {*d.reads, *d.optional, *others}
    else:
        params = subject.init(random.key(1))
        names = {"quads", "quad_valid", "boxes", "box_valid", *subject.required(), *others}
    inputs = make_inputs(**others)
    batch = {name: inputs[name] for name in inputs if name in {"image_id", "draw", *names} - set(without)}
    found = Case(subject, params, batch)
    classifiers = ("infer.classifier", "defend.double_masking")
    networks = ("infer.detector", "create.generator", "graph.module", *classifiers, *DETECTORS)
    has_network = any(s.definition.name in networks for s in found.stages)
    return Case(subject, params, batch, 2e-5 if has_network else 0.0, few_draws, fake)


VICTIM_TERMS = {name: noise(name, NUM_ROWS) for name in ("a/vanish", "b/vanish")}


def demo() -> Pipeline:
    """What the demo trains and measures."""
    return pipeline(
        {
            "pixels": create.pixels({"side": (3, 20, 36), "rear": (3, 20, 20)}),
            "total_variation": losses.total_variation(),
            "non_printability": losses.non_printability(),
            "affine": node(compose.affine(), phases={"train"}),
            "implant": implant.warp(jitter_frac=0.05),
            "camera": {
                "exposure": compose.exposure(),
                "contrast": compose.contrast(),
                "noise": compose.read_noise(),
                "blur": compose.blur(),
            },
            "victim": infer.detector(detector(seed=1)),
            "vanish": losses.vanish(),
            "suppress": node(infer.suppress(), phases={"eval"}),
            "hit": node(metrics.detection_hit(), phases={"eval"}),
        }
    )


def two_implants() -> Pipeline:
    """A sticker over a poster, and a victim that classifies."""
    return pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "poster": implant.warp(scale=Range(0.8, 1.2)),
            "sticker": node(implant.rectangle(scale=Range(0.2, 0.5)), reads={"scene": "image"}),
            "victim": infer.classifier(classifier(seed=2)),
            "misclassify": losses.misclassify(),
        }
    )


def two_victims() -> Pipeline:
    """Two detectors trained against at once, and a third that is only measured."""
    victims = {"small": infer.detector(detector(seed=1)), "large": infer.detector(detector(seed=3))}
    return pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "implant": implant.warp(jitter_frac=0.05),
            "victims": infer.ensemble(
                victims | {"unseen": node(infer.detector(detector(seed=4)), phases="eval")},
                {
                    "vanish": losses.vanish(),
                    "suppress": node(infer.suppress(), phases={"eval"}),
                    "hit": node(metrics.detection_hit(), phases={"eval"}),
                },
            ),
            "joined": losses.ensemble(("victims/small/vanish", "victims/large/vanish"), "worst"),
        }
    )


def three_patches() -> Pipeline:
    """A gray patch that is resized, a small and a flat one, one of them masked."""
    return pipeline(
        {
            "pixels": create.pixels({"hood": (1, 24, 17), "roof": (1, 7, 40), "door": (1, 12, 12)}),
            "resize": create.resize({"hood": (30, 11)}),
            "stack": create.stack(3),
            "mask": create.mask({"door": ellipse(height=33, width=21)}),
            "implant": implant.warp(jitter_frac=0.1),
            "camera": {"light": {"exposure": compose.exposure()}, "blur": compose.blur(Range(0.5, 1.5))},
        }
    )


def wired(loss: Stage, *reads: str) -> Pipeline:
    """A loss whose arguments are values of other names."""
    return pipeline({"loss": node(loss, reads=reads)})


def gathered(name: str, **arguments: Any) -> Pipeline:
    """A metric of torchmetrics on a classifier's answers."""
    metric = metrics.torchmetric(metrics.torchmetrics(name=name, **arguments))
    return pipeline({"metric": node(metric, reads=["logits", "target"])})


def moved() -> Pipeline:
    """Two gray patches through every stage that moves or repeats one, so that each row has its own."""
    return pipeline(
        {
            "pixels": create.pixels({"hood": (1, 9, 7), "roof": (1, 7, 12)}),
            "stack": create.stack(3),
            "symmetric": create.symmetric("x", only=("hood",)),
            "tile": create.tile(size=(20, 31), only=("hood",)),
            "scroll": create.scroll(),
            "reflect": create.reflect(only=("roof",)),
            "spectrum": create.spectrum(only=("hood",)),
            "save": create.save(),
            "implant": implant.warp(jitter_frac=0.05),
        }
    )


def answers(loss: Stage) -> Pipeline:
    """A victim, and a loss that reads of the image only how large it is."""
    return pipeline({"victim": infer.detector(detector(seed=1)), "loss": loss})


def trained_network(**arguments: Any) -> Pipeline:
    """A network that is trained, as it is in training."""
    part = node(graph.module(tiny_net(**arguments), trainable=True), reads=["image"], writes=["logits"])
    return pipeline({"net": part}).at("train")


def two_views() -> Pipeline:
    """One network in two places."""
    first = graph.module(tiny_net(seed=3, norm="batch", dropout=0.3), trainable=True)
    parts = {
        "first": node(first, reads=["image"], writes=["logits"]),
        "second": node(
            graph.module(share="first", inputs=("scene",), outputs=("logits",)), writes={"logits": "others"}
        ),
    }
    return pipeline(parts).at("train")


GRAY = {"hood": noise("hood", 1, 20, 31), "roof": noise("roof", 1, 16, 9)}
ROWS = {"hood": noise("hood", NUM_ROWS, 3, 20, 31), "roof": noise("roof", 3, 16, 9)}
SEGMENTS = (9 * noise("classes", NUM_ROWS, 12, 17)).long()
INKS = ((0.05, 0.05, 0.06), (0.9, 0.1, 0.2), (0.1, 0.6, 0.3), (0.2, 0.2, 0.8), (0.95, 0.95, 0.9))
ELLIPSES = {"roof": draw_ellipse(height=8, width=13)[None]}
EMBEDDED = {
    "TripletMarginLoss": {"margin": 2.0},
    "ContrastiveLoss": {"distance": "CosineSimilarity", "pos_margin": 1.0, "neg_margin": 0.0},
    "SupConLoss": {},
}
"""Losses of embeddings by triplets, pairs and rows."""
CONTENT = {name: picture(shape=list(shape)) for name, shape in SHAPES.items()}

CASES = {
    "pixels": case(create.pixels(SHAPES)),
    "pixels from images": case(
        create.pixels({"hood": (1, 9, 7)}, images={"roof": picture(shape=[3, 6, 9])}, clamp=Range(0.1, 0.8))
    ),
    "tanh": case(create.tanh(SHAPES)),
    "fourier": case(create.fourier({"hood": (3, 20, 31), "roof": (1, 7, 10)}, std=1.0)),
    "palette": case(create.palette({"hood": (20, 31), "roof": (7, 10)}, INKS, temperature=0.3)),
    "generator": case(create.generator(tiny_generator(seed=4), {"hood": (4, 2, 3), "roof": (4, 1, 1)})),
    "snap": case(create.snap(INKS)),
    "symmetric": case(create.symmetric("both")),
    "tile": case(create.tile(grid=(2, 3))),
    "tile rows": case(create.tile(size=(33, 40)), patch=ROWS),
    "scroll": case(create.scroll()),
    "scroll rows": case(create.scroll(Range(-0.5, 0.5), only=("hood",)), patch=ROWS),
    "reflect": case(create.reflect()),
    "low_pass": case(create.low_pass()),
    "high_pass": case(create.high_pass(0.4)),
    "high_pass rows": case(create.high_pass(only=("hood",)), patch=ROWS),
    "spectrum": case(create.spectrum()),
    "spectrum rows": case(create.spectrum(0.1, 0.9, only=("hood",)), patch=ROWS),
    "soft_proof": case(create.soft_proof()),
    "soft_proof rows": case(create.soft_proof(intent="absolute", only=("hood",)), patch=ROWS),
    "proof_table": case(create.proof_table(intent="perceptual")),
    "proof_table rows": case(create.proof_table(only=("hood",)), patch=ROWS),
    "save": case(create.save(only=("hood",)), patch=ROWS),
    "stack some": case(create.stack(3, only=("roof",)), patch={**GRAY, "hood": noise("hood", 3, 4, 5)}),
    "resize": case(create.resize({"hood": (9, 40)})),
    "resize bicubic": case(create.resize({"hood": (9, 40), "roof": (30, 3)}, interpolation="bicubic")),
    "stack": case(create.stack(3), patch=GRAY),
    "mask": case(create.mask({"roof": ellipse(height=8, width=13)})),
    "warp": case(implant.warp(scale=Range(0.5, 1.3), jitter_frac=0.1, names=tuple(SHAPES))),
    "warp masked": case(implant.warp(jitter_frac=0.02, names=tuple(SHAPES)), masks=ELLIPSES),
    "warp minified": case(
        implant.warp(scale=Range(0.1, 0.3), jitter_frac=0.1, names=tuple(SHAPES)), masks=ELLIPSES
    ),
    "warp turned, one": case(
        implant.warp(jitter_frac=0.02, names=tuple(SHAPES), angle_deg=Range(-40.0, 90.0), boxes="one"),
        masks=ELLIPSES,
    ),
    "rectangle turned": case(implant.rectangle(names=tuple(SHAPES), angle_deg=Range(-30.0, 30.0))),
    "fixed_ratio turned": case(implant.fixed_ratio(0.4, names=tuple(SHAPES), angle_deg=Range(-180.0, 180.0))),
    "fill_box turned": case(implant.fill_box(names=tuple(SHAPES), angle_deg=Range(5.0, 30.0))),
    "rectangle": case(implant.rectangle(names=tuple(SHAPES))),
    "rectangle, one": case(implant.rectangle(boxes="one", match_brightness=True, names=tuple(SHAPES))),
    "fixed_ratio": case(implant.fixed_ratio(0.15, offset_y_frac=Range(0.1, 0.3), names=tuple(SHAPES))),
    "fixed_ratio, one": case(
        implant.fixed_ratio(0.7, "width", Range(0.0, 1.0), boxes="one", names=tuple(SHAPES))
    ),
    "fill_box": case(implant.fill_box(match_brightness=True, names=tuple(SHAPES)), few_draws=True),
    "fill_box, one": case(implant.fill_box("one", antialias=False, names=tuple(SHAPES)), few_draws=True),
    "warp matched": case(
        implant.warp(jitter_frac=0.02, match_brightness=True, names=tuple(SHAPES)), masks=ELLIPSES
    ),
    "exposure": case(compose.exposure(Range(-2.0, 2.0))),
    "contrast": case(compose.contrast()),
    "saturation": case(compose.saturation(Range(0.0, 2.0))),
    "hue": case(compose.hue(Range(-90.0, 90.0))),
    "read_noise": case(compose.read_noise()),
    "blur": case(compose.blur(Range(0.0, 2.5))),
    "affine": case(compose.affine(Range(-30.0, 30.0))),
    "affine of the scene alone": case(compose.affine(), without=("quads", "boxes", "box_valid")),
    "tilt": case(compose.tilt(Range(-30.0, 30.0), Range(-20.0, 20.0))),
    "tilt of the image": case(
        pipeline({"tilt": node(compose.tilt(), reads={"scene": "image"}, writes={"scene": "image"})})
    ),
    "translation": case(compose.translation(Range(-0.4, 0.4), p=0.5)),
    "resized_crop": case(compose.resized_crop(Range(0.2, 0.8), p=0.5)),
    "horizontal_flip": case(compose.horizontal_flip()),
    "vertical_flip": case(compose.vertical_flip()),
    "gamma": case(compose.gamma()),
    "white_balance": case(compose.white_balance()),
    "motion_blur": case(compose.motion_blur(p=0.5)),
    "defocus": case(compose.defocus(p=0.5)),
    "jpeg": case(compose.jpeg(Range(20.0, 95.0), p=0.5)),
    "shadow": case(compose.shadow()),
    "resample": case(compose.resample(p=0.5)),
    "color_jitter": case(compose.color_jitter(p=0.5)),
    "erasing": case(compose.erasing()),
    "solarize": case(compose.solarize()),
    "grayscale": case(compose.grayscale(p=0.5)),
    "invert": case(compose.invert(p=0.5)),
    "kornia's light": case(compose.augmentation("RandomPlanckianJitter", {"mode": "blackbody", "p": 0.5})),
    "kornia's noise": case(compose.augmentation("RandomGaussianNoise", {"p": 0.5})),
    "kornia's order": case(compose.augmentation("ColorJitter", {"brightness": 0.2, "hue": 0.1, "p": 1.0})),
    "kornia's affine": case(compose.augmentation("RandomAffine", {"degrees": 20.0, "p": 0.7})),
    "kornia's posterize": case(compose.augmentation("RandomPosterize", {"p": 1.0})),
    "bit_depth": case(defend.bit_depth(2)),
    "median": case(defend.median()),
    "median of an even window": case(defend.median(2)),
    "gradient_smoothing": case(defend.gradient_smoothing(threshold=0.37)),
    "frequency_mask": case(defend.frequency_mask(threshold=0.145)),
    "double_masking": case(defend.double_masking(classifier(seed=2), (20, 30), num_masks=2), fake=False),
    "classifier": case(infer.classifier(classifier(seed=2))),
    "module": case(
        graph.module(classifier(seed=2), inputs=("image",), outputs=("logits",)),
    ),
    "module trained": case(trained_network(seed=3)),
    "module with dropout": case(trained_network(seed=3, dropout=0.3)),
    "module with batch statistics": case(trained_network(seed=3, norm="batch")),
    "module with statistics of images": case(trained_network(seed=3, norm="instance", dropout=0.1)),
    "module shared": case(two_views()),
    "detector": case(infer.detector(detector(seed=1))),
    **{
        f"torchvision's {name}": case(
            infer.torchvision_detector(torchvision_victim(name=name)), fake=name != "Faster R-CNN"
        )
        for name in ARCHITECTURES
    },
    "yolo v4": case(infer.yolo(tiny_yolo(seed=1, format="v4"), format="v4", size=96, fit="stretch")),
    "yolo v5": case(infer.yolo(tiny_yolo(seed=1, format="v5"), format="v5", num_classes=2)),
    "yolo v8": case(infer.yolo(tiny_yolo(seed=1, format="v8"), format="v8", size=(128, 112))),
    "yolo v10": case(infer.yolo(tiny_yolo(seed=1, format="v10"), format="v10", size=80, num_classes=3)),
    "suppress": case(infer.suppress(score=0.1, num_detections=20)),
    "vanish": case(losses.vanish(iou=0.05, label="any")),
    "vanish by probability": case(losses.vanish(iou=0.05, on="probability", label="any")),
    "vanish own class": case(
        losses.vanish(iou=0.05), detections=make_dense(objectness=True, class_boxes=True)
    ),
    "vanish, all boxes": case(
        losses.vanish(boxes="all", label="any"), detections=make_dense(objectness=True)
    ),
    "relabel": case(losses.relabel(iou=0.05), detections=make_dense(class_boxes=True)),
    "relabel targeted": case(losses.relabel(target=2, num_boxes=500), detections=make_dense(objectness=True)),
    "hallucinate": case(losses.hallucinate(1), detections=make_dense(objectness=True)),
    "hallucinate, class boxes": case(losses.hallucinate(2, iou=0.0), detections=make_dense(class_boxes=True)),
    "hallucinate in a box": case(answers(losses.hallucinate(1, box=(0.4, 0.1, 0.9, 0.6)))),
    "latency": case(answers(losses.latency())),
    "latency by probability": case(answers(losses.latency(0.6, on="probability"))),
    "misclassify": case(losses.misclassify()),
    "misclassify targeted": case(losses.misclassify(target=2)),
    "criterion": case(
        wired(
            losses.criterion(
                "CrossEntropyLoss", {"weight": [1.0, 0.5, 2.0, 1.0, 3.0], "label_smoothing": 0.1}
            ),
            *("logits", "target"),
        )
    ),
    "criterion of elements": case(wired(losses.criterion("HuberLoss", {"delta": 0.3}), "image", "scene")),
    "criterion not mapped": case(
        wired(losses.criterion("KLDivLoss"), "logits", "soft"), soft=noise("soft", NUM_ROWS, 5)
    ),
    **{
        f"metric_learning by {name}": case(
            wired(losses.metric_learning(name, arguments), "logits", "target"),
            fake=False,
            target=torch.tensor([0, 0, 1]),
        )
        for name, arguments in EMBEDDED.items()
    },
    "total_variation": case(losses.total_variation()),
    "non_printability": case(losses.non_printability()),
    "total_variation of one": case(
        losses.total_variation(only=("roof",)), patch={"roof": noise("roof", 1, 16, 9)}
    ),
    "saliency": case(losses.saliency()),
    "ensemble": case(losses.ensemble(("a/vanish", "b/vanish"), weights=(0.3, 2.0)), **VICTIM_TERMS),
    "ensemble, worst": case(losses.ensemble(("a/vanish", "b/vanish"), "worst"), **VICTIM_TERMS),
    "lp_distance": case(losses.lp_distance(CONTENT, masks={"roof": ellipse(height=16, width=9)}), fake=False),
    "lp_distance, p = 1": case(losses.lp_distance(CONTENT, p=1.0)),
    "lp_distance, p = inf": case(losses.lp_distance(CONTENT, p=float("inf"))),
    "lp_distance, p = 3.5": case(losses.lp_distance(CONTENT, p=3.5)),
    "detection_hit": case(metrics.detection_hit()),
    "detection_hit targeted": case(metrics.detection_hit(score=0.3, iou=0.3, goal=1)),
    "class_hit": case(metrics.class_hit()),
    "class_hit targeted": case(metrics.class_hit(goal=4)),
    "object_hit": case(metrics.object_hit()),
    "object_hit targeted": case(metrics.object_hit(score=0.3, iou=0.3, goal=0)),
    "mean_average_precision": case(metrics.mean_average_precision(score=0.3)),
    "torchmetric": case(gathered("MulticlassAccuracy", num_classes=5, average=None)),
    "torchmetric of lists": case(gathered("MulticlassCalibrationError", num_classes=5)),
    "drawing": case(viz.drawing(drawer(), ("image", "logits", "target")), fake=False),
    "class_bars": case(viz.class_bars(num_classes=3, width_px=100), fake=False),
    "box_overlay": case(viz.box_overlay(class_names=("car",), width_px=131), fake=False),
    "mask_overlay": case(viz.mask_overlay(hidden=(0,), width_px=90), segments=SEGMENTS, fake=False),
    "mask_overlay of logits": case(
        viz.mask_overlay(),
        segments=noise("segments", NUM_ROWS, 4, 20, 30),
        true_segments=SEGMENTS,
        fake=False,
    ),
    "two implants": case(two_implants()),
    "two victims": case(two_victims().at("train")),
    "three patches": case(three_patches(), quad_patch=torch.tensor([[0, 1, 2], [2, 0, 1], [1, 1, 2]])),
    "moved": case(moved(), quad_patch=torch.tensor([[0, 1, 1], [1, 0, 0], [0, 1, 0]])),
    "demo, train": case(demo().at("train")),
    "demo, test": case(demo().at("test")),
}

if find_spec("transformers"):
    size = {"height": 48, "width": 80}
    CASES["yolos"] = case(infer.transformers_detector(tiny_yolos(), size=size))
if find_spec("ultralytics") and imports("cv2"):  # which lacks a library of the system on some machines
    network = infer.ultralytics_model(architecture="yolo11n.yaml", num_classes=3)
    CASES["yolo11n"] = case(infer.yolo(network, format="v8", size=64), fake=False)
