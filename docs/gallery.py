"""Draw the pictures of the stages, which their pages in the reference show.

    python docs/gallery.py                              # all
    python docs/gallery.py --only compose.exposure      # one

The photographs are the two that scikit-learn ships.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from fpatch import random
from fpatch.core.types import Range, Sample
from fpatch.graph.stage import Stage, deterministic
from fpatch.infer.transformers_detector import MEAN, STD
from fpatch.viz import Panel, side_by_side

DOCS = Path(__file__).parent
NUM_DRAWS = 3
HEIGHT, WIDTH = 216, 320


# -- what the stages are shown on


def photograph(name: str, height: int, width: int) -> Tensor:
    """A photograph of scikit-learn's, [3, h, w] in 0..1."""
    pixels = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).float() / 255
    return F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def make_batch(num_rows: int) -> dict[str, Any]:
    """A photograph of a palace, with two places on its front, and a flower to put there."""
    scene = photograph("china.jpg", HEIGHT, WIDTH).expand(num_rows, -1, -1, -1).contiguous()
    quads = torch.tensor(
        [
            [[72.0, 98.0], [150.0, 95.0], [152.0, 148.0], [72.0, 150.0]],
            [[226.0, 120.0], [272.0, 114.0], [274.0, 160.0], [225.0, 162.0]],
        ]
    )
    box = torch.tensor([[54.0, 70.0, 176.0, 192.0]])
    flower = photograph("flower.jpg", 100, 150)
    return {
        "image_id": torch.zeros(num_rows, dtype=torch.int64),
        "draw": torch.arange(num_rows),
        "scene": scene,
        "image": scene,
        "quads": quads.expand(num_rows, -1, -1, -1).contiguous(),
        "quad_patch": torch.tensor([[0, 1]]).expand(num_rows, -1).contiguous(),
        "quad_valid": torch.ones(num_rows, 2, dtype=torch.bool),
        "boxes": box.expand(num_rows, 1, 4).contiguous(),
        "labels": torch.zeros(num_rows, 1, dtype=torch.int64),
        "box_valid": torch.ones(num_rows, 1, dtype=torch.bool),
        "target": torch.zeros(num_rows, dtype=torch.int64),
        "patch": {"flower": flower, "stripes": make_stripes(60, 60)},
    }


def make_disk(height: int, width: int) -> Tensor:
    """A soft ellipse, [h, w]."""
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return (4 - 4 * (x * x + y * y)).clamp(0, 1)


def make_stripes(height: int, width: int) -> Tensor:
    """Diagonal stripes, [3, h, w]."""
    phase = torch.arange(height)[:, None] + torch.arange(width)
    on = (phase // 8 % 2).float()
    return torch.stack([0.9 * on, 0.8 * on, 0.15 + 0.5 * (1 - on)])


class PagodaFinder(nn.Module):
    """A detector that anyone can follow: boxes of one size on a grid, as likely as they are red inside."""

    side, step = 120, 8

    def __init__(self, least: float = 0.05) -> None:
        super().__init__()
        self.least = least

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Dense boxes and their logits."""
        redness = self.average(images[:, :1] - images[:, 1:2])
        rows, columns = redness.shape[-2:]
        y, x = (self.step * torch.arange(n) for n in (rows, columns))
        y, x = torch.meshgrid(y, x, indexing="ij")
        boxes = torch.stack([x, y, x + self.side, y + self.side], dim=-1).flatten(0, 1).float()
        return {
            "boxes": boxes.expand(len(images), -1, 4),
            "logits": 200 * (redness.flatten(1) - self.least)[..., None],
        }

    def average(self, channel: Tensor) -> Tensor:
        """The mean inside every box."""
        return F.avg_pool2d(channel, self.side, stride=self.step)


class PagodaNamer(PagodaFinder):
    """The same with a second answer, a tree, as likely as they are green inside."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Dense boxes and the logits of two classes."""
        dense = super().forward(images)
        greenness = self.average(images[:, 1:2] - images[:, 2:])
        tree = 60 * (greenness.flatten(1) - 0.15)[..., None]
        return dense | {"logits": torch.cat([dense["logits"], tree], dim=-1)}


class Redness(nn.Module):
    """A backbone of one feature: how red a square is, at every eighth pixel."""

    out_channels = 1

    def forward(self, images: Tensor) -> Tensor:
        """Features [b, 1, h / 8, w / 8]."""
        return F.avg_pool2d(images[:, :1] - images[:, 1:2], 120, stride=8, padding=60)[..., :-1, :-1]


class PagodaHead(nn.Module):
    """What `PagodaFinder` says, in the words of an FCOS: squares of 15 strides, all of them well centered."""

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Logits of one class, the sides of the box in strides, and centerness."""
        redness = features[0].flatten(1)[..., None]
        return {
            "cls_logits": 200 * (redness - 0.05),
            "bbox_regression": torch.full_like(redness, 7.5).expand(-1, -1, 4),
            "bbox_ctrness": torch.full_like(redness, 30.0),
        }


def make_fcos() -> nn.Module:
    """The finder of pagodas as a model of torchvision's."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    as_it_is = {"min_size": HEIGHT, "max_size": WIDTH, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return FCOS(Redness(), 1, **as_it_is, anchor_generator=anchors, head=PagodaHead()).eval()


class PagodaYolo(PagodaFinder):
    """The same answers as a network of the v8 family gives them."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Centers, sizes and probabilities, [b, 4 + 1, n]."""
        found = super().forward(images)
        low, high = found["boxes"].chunk(2, dim=-1)
        scores = found["logits"].sigmoid()
        return torch.cat([(low + high) / 2, high - low, scores], dim=-1).transpose(1, 2)


class PagodaDetr(PagodaFinder):
    """The same answers as DETR gives them."""

    config = SimpleNamespace(model_type="detr", num_labels=1)

    def forward(self, images: Tensor) -> SimpleNamespace:  # type: ignore[override]
        """Centers and sizes in 0..1, and logits with that of no object."""
        h, w = images.shape[-2:]
        mean, std = (images.new_tensor(of)[:, None, None] for of in (MEAN, STD))
        found = super().forward(images * std + mean)
        low, high = (found["boxes"] / images.new_tensor([w, h, w, h])).chunk(2, dim=-1)
        boxes = torch.cat([(low + high) / 2, high - low], dim=-1)
        return SimpleNamespace(logits=F.pad(found["logits"], (0, 1)), pred_boxes=boxes)


class PagodaClassifier(nn.Module):
    """Pagoda or not: how red the middle of the picture is."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits of two classes."""
        middle = images[..., 72:192, 56:176]
        redness = (middle[:, 0] - middle[:, 1]).mean((-1, -2))
        return torch.stack([200 * (redness - 0.05), torch.zeros_like(redness)], dim=-1)


class Waves(nn.Module):
    """A generator network in the smallest size: a sum of three waves per color."""

    def forward(self, latent: Tensor) -> Tensor:
        """Pictures [b, 3, 48, 72]."""
        y, x = torch.linspace(0, 6, 48)[:, None], torch.linspace(0, 9, 72)
        phases = latent[..., None, None]
        waves = [torch.sin(phases[:, i] * x + phases[:, i + 3] * y + i) for i in range(3)]
        return 0.5 + 0.5 * torch.stack(waves, dim=1)


# -- the pictures, by family


def run(stage: Stage, batch: dict[str, Any]) -> tuple[dict[str, Any], Sample]:
    """What the stage writes for a batch, and what it drew."""
    definition = stage.definition
    params = {} if definition.init is None else definition.init(stage.config, random.key(0))
    out, sample = stage(params, random.key(219), batch)  # three draws far apart
    return {name: out[name] for name in definition.writes if name in out}, sample


def caption(sample: Sample, row: int) -> str:
    """What was drawn for a row, where it is a number or two."""
    parts = []
    for name, value in sample.items():
        hidden = name.endswith("key") or name in ("opacity", "on", "seed", "size_px")
        everywhere = name == "placement" and int(value[row]) < 0
        if value[row].numel() <= 2 and not hidden and not everywhere:
            numbers = [f"{float(v):.2f}".rstrip("0").rstrip(".") for v in value[row].flatten()]
            parts.append(f"{name} {' '.join(numbers)}")
    while len(", ".join(parts)) > 34:  # what fits above a picture
        parts.pop()
    return ", ".join(parts) or f"draw {row}"


def draw_mask(stage: Stage) -> list[list[Panel]]:
    """A mask, and the patch that it cuts out of the photograph."""
    from fpatch import implant

    batch = make_batch(1)
    masks = run(stage, batch)[0]["masks"]
    place = implant.warp(scale=Range(1.4, 1.4), names=("flower", "stripes"))
    placed, _ = place({}, random.key(0), batch | {"masks": masks})
    return [[Panel(enlarge(masks["flower"]), "the mask of a patch"), Panel(placed["image"][0], "implanted")]]


def draw_create(stage: Stage, inputs: Mapping[str, Any] = MappingProxyType({})) -> list[list[Panel]]:
    """Parameterizations: three starts. Others: the patches before and after."""
    d = stage.definition
    if d.init is not None:
        starts = [d.init(stage.config, random.fold_in(random.key(1), i)) for i in range(NUM_DRAWS)]
        written = [stage.apply(start, {}, make_batch(1))["patch"] for start in starts]
        return [[Panel(enlarge(next(iter(w.values()))), f"start {i}") for i, w in enumerate(written)]]
    batch = make_batch(NUM_DRAWS)
    if "scene" not in d.reads:
        batch["patch"] = {"flower": batch["patch"]["flower"]}
    batch |= inputs
    written, sample = run(stage, batch)
    name, before = "flower", batch["patch"]["flower"]
    after = written.get("patch", {}).get(name, before)
    shown = [Panel(enlarge(before), f"before, {before.shape[-2]} x {before.shape[-1]}")]
    rows = list(after) if after.ndim == 4 else [after]
    size = f"{after.shape[-2]} x {after.shape[-1]}"
    captions = [caption(sample, i) if after.ndim == 4 else size for i in range(len(rows))]
    return [shown + [Panel(enlarge(row), text) for row, text in zip(rows, captions, strict=True)]]


def enlarge(patch: Tensor) -> Tensor:
    """A patch as RGB on a canvas of one size, its pixels to be seen."""
    rgb = patch.expand(3, -1, -1) if patch.shape[0] == 1 else patch
    scale = min(HEIGHT / rgb.shape[-2], WIDTH / rgb.shape[-1])
    size = [max(1, round(side * scale)) for side in rgb.shape[-2:]]
    big = F.interpolate(rgb[None], size, mode="nearest")[0]
    left, top = (WIDTH - size[1]) // 2, (HEIGHT - size[0]) // 2
    return F.pad(big, (left, WIDTH - size[1] - left, top, HEIGHT - size[0] - top), value=1.0)


def draw_pictures(stage: Stage) -> list[list[Panel]]:
    """The photograph before, and after three draws; placements and boxes where they move."""
    batch = make_batch(NUM_DRAWS)
    d = stage.definition
    if stage.definition.role == "stage" and "scene" in d.writes:
        batch.pop("image")
    written, sample = run(stage, batch)
    name = "image" if "image" in written else "scene"
    moves = "boxes" in written
    before = Panel(batch["scene"][0], "before", truth=batch["boxes"][0] if moves else None)
    after = [
        Panel(
            picture, caption(sample, i), truth=written["boxes"][i][written["box_valid"][i]] if moves else None
        )
        for i, picture in enumerate(written[name])
    ]
    return [[before, *(after if d.sample is not deterministic else after[:1])]]


def draw_patch_loss(stage: Stage) -> list[list[Panel]]:
    """What a loss of the patch says of four patches."""
    flower = photograph("flower.jpg", 60, 90)
    patches = {
        "gray": torch.full((3, 60, 90), 0.5),
        "photograph": flower,
        "stripes": make_stripes(60, 90),
        "noise": random.uniform(random.key(2), (3, 60, 90)),
    }
    panels = []
    for name, patch in patches.items():
        written, _ = run(stage, make_batch(1) | {"patch": {"flower": patch}})
        (value,) = written.values()
        panels.append(Panel(enlarge(patch), f"{name}: {float(value[0]):.3f}"))
    return [panels]


COLORS = {"gray": (0.5, 0.5, 0.5), "red": (0.9, 0.2, 0.2), "green": (0.4, 0.8, 0.1)}


def with_and_without(color: str = "gray") -> Iterator[tuple[str, dict[str, Any]]]:
    """A photograph with nothing on it, and with patches of one color."""
    from fpatch import implant

    batch = make_batch(1)
    flat = torch.tensor(COLORS[color])[:, None, None].expand(3, 8, 8)
    batch["patch"] = {name: flat for name in batch["patch"]}
    place = implant.warp(scale=Range(1.6, 1.6), names=("flower", "stripes"))
    for name, opacity in (("no patch", 0.0), (f"{color} patches", 1.0)):
        sample = place.sample(random.key(0), batch)
        sample["opacity"] = sample["opacity"] * opacity
        yield name, place.apply({}, sample, batch)


def draw_answers(
    stages: Sequence[Stage], color: str = "gray", reads: Mapping[str, str] = MappingProxyType({})
) -> list[list[Panel]]:
    """A victim's answers with a patch and without, and what the last stage says of them."""
    from fpatch import infer

    shown = []
    for name, values in with_and_without(color):
        says = []
        for stage in stages:
            values |= {own: values[name] for own, name in reads.items() if name in values}
            values, _ = stage({}, random.key(0), values)
            if (summary := stage.definition.summary) is not None:
                state = summary.update(stage.config, summary.init(stage.config), values)
                numbers = summary.compute(stage.config, state)
                says += [f"{key} {number:.2f}" for key, number in numbers.items() if "/" not in key]
            for key in stage.definition.writes if stage is stages[-1] else ():
                if isinstance(values[key], Tensor) and values[key].ndim <= 2:
                    value = values[key].flatten()[0]
                    says.append(
                        f"{key} {bool(value)}" if value.dtype == torch.bool else f"{key} {float(value):.2f}"
                    )
        final = values.get("detections", {}).get("final")
        if final is None and "detections" in values:
            few = infer.suppress(score=0.3, iou=0.4)
            final = few({}, random.key(0), values)[0]["detections"]["final"]
        found = None if final is None else {key: value[0] for key, value in final.items()}
        while len(text := ", ".join([name, *says])) > 38:
            says.pop()
        shown.append(Panel(values["image"][0], text, found))
    return [shown]


def draw_ensemble(stage: Stage) -> list[list[Panel]]:
    """What two victims lose, and both together."""
    from fpatch import infer, losses, pipeline

    victims = [infer.detector(PagodaFinder(bias).eval()) for bias in (0.05, 0.07)]
    both = pipeline({"victims": infer.ensemble(victims, {"vanish": losses.vanish()}), "joined": stage})
    shown = []
    for name, values in with_and_without():
        values, _ = both({}, random.key(0), values)
        terms = " and ".join(f"{float(values[term]):.1f}" for term in stage.config.terms)
        shown.append(Panel(values["image"][0], f"{name}: {terms}, worst {float(values['ensemble']):.1f}"))
    return [shown]


def draw_embeddings(stage: Stage) -> list[list[Panel]]:
    """Four images of two classes, their colors as embeddings, and the terms of the rows."""
    whole = [photograph(name, 2 * HEIGHT, 2 * WIDTH) for name in ("china.jpg", "flower.jpg")]
    middle = slice(HEIGHT // 2, 3 * HEIGHT // 2)
    images = torch.stack([half for image in whole for half in image[:, middle].split(WIDTH, dim=-1)])
    target = torch.tensor([0, 0, 1, 1])
    embeddings = F.adaptive_avg_pool2d(images, (2, 3)).flatten(1)
    written = stage.apply({}, {}, {"embeddings": embeddings, "target": target})
    (terms,) = (written[name] for name in stage.definition.writes)
    rows = zip(images, target.tolist(), terms.tolist(), strict=True)
    return [[Panel(image, f"class {label}: {term:.2f}") for image, label, term in rows]]


def segment(values: dict[str, Any]) -> dict[str, Any]:
    """Pixels by their color: 0 sky, 1 pagoda, 2 tree."""
    red, green, blue = F.avg_pool2d(values["image"], 9, stride=1, padding=4).unbind(1)
    tree = (red + green + blue < 1.2) & (green > blue)
    return values | {"segments": torch.where(red > 1.15 * green, 1, torch.where(tree, 2, 0))}


def draw_drawing(stage: Stage, *before: Callable[[dict[str, Any]], dict[str, Any]]) -> list[list[Panel]]:
    """The picture that a stage draws, without the patches and with them."""
    shown = []
    for name, values in with_and_without():
        for earlier in before:
            values = earlier(values)
        picture = stage.apply({}, {}, values)["picture"][0] / 255
        shown.append(Panel(picture, name))
    return [shown]


def write_likelihood(image: Image.Image, logits: Any) -> Image.Image:
    """A line of text and a frame, by a function as a user writes it."""
    pen = ImageDraw.Draw(image)
    pen.rectangle((56, 72, 176, 192), outline="white")
    pen.text((56, 194), f"logit {logits[0] - logits[1]:+.1f}", fill="white", font_size=18)
    return image


# -- the stages


def make_stages() -> dict[str, tuple[Stage, Callable[[Stage], list[list[Panel]]]]]:
    """Every stage with settings that show what it does."""
    from fpatch import compose, create, defend, graph, implant, infer, losses, metrics, viz

    names = ("flower", "stripes")
    victim = infer.detector(PagodaFinder().eval())
    suppress = infer.suppress(score=0.3, iou=0.3)

    def after_classifier(stage: Stage) -> list[list[Panel]]:
        classifier = infer.classifier(PagodaClassifier().eval())
        (logits,) = {"preds", "input"} & {*stage.definition.reads}
        return draw_answers([classifier, stage], reads={logits: "logits"})

    def after(*before: Stage, color: str = "gray") -> Callable[[Stage], list[list[Panel]]]:
        return lambda stage: draw_answers([*before, stage], color)

    def answer(*stages: Stage) -> list[Callable[[dict[str, Any]], dict[str, Any]]]:
        return [lambda values, stage=stage: stage.apply({}, {}, values) for stage in stages]

    classify = answer(infer.classifier(PagodaClassifier().eval()))
    classes: dict[str, Any] = {"class_names": ("pagoda", "no pagoda"), "width_px": 260}
    areas: dict[str, Any] = {"class_names": ("sky", "pagoda", "tree"), "width_px": 260}
    shapes = {"flower": (3, 24, 36)}
    inks = (
        (0.1, 0.1, 0.12),
        (0.9, 0.2, 0.2),
        (0.95, 0.8, 0.2),
        (0.2, 0.5, 0.3),
        (0.2, 0.3, 0.7),
        (0.95, 0.95, 0.9),
    )
    flower = photograph("flower.jpg", 60, 90)
    often: dict[str, Any] = {"p": 1.0}
    anywhere = Range(0.0, 1.0)
    gray = {"patch": {"flower": flower.mean(0, keepdim=True)}}
    return {
        "create.pixels": (create.pixels(shapes), draw_create),
        "create.tanh": (create.tanh(shapes), draw_create),
        "create.palette": (create.palette({"flower": (24, 36)}, inks), draw_create),
        "create.fourier": (create.fourier({"flower": (3, 96, 144)}, std=0.05), draw_create),
        "create.generator": (create.generator(Waves().eval(), {"flower": (6,)}), draw_create),
        "create.resize": (create.resize({"flower": (20, 30)}), draw_create),
        "create.stack": (create.stack(3), partial(draw_create, inputs=gray)),
        "create.tile": (create.tile(grid=(2, 3)), draw_create),
        "create.symmetric": (create.symmetric("x"), draw_create),
        "create.scroll": (create.scroll(), draw_create),
        "create.reflect": (create.reflect(), draw_create),
        "create.high_pass": (create.high_pass(0.1), draw_create),
        "create.low_pass": (create.low_pass(0.1), draw_create),
        "create.spectrum": (create.spectrum(), draw_create),
        "create.snap": (create.snap(inks), draw_create),
        "create.soft_proof": (create.soft_proof(), draw_create),
        "create.proof_table": (create.proof_table(), draw_create),
        "create.mask": (create.mask({"flower": make_disk(60, 90)}), draw_mask),
        "create.save": (create.save(), draw_create),
        "implant.warp": (implant.warp(jitter_frac=0.08, scale=Range(0.8, 1.2), names=names), draw_pictures),
        "implant.rectangle": (implant.rectangle(names=names), draw_pictures),
        "implant.fixed_ratio": (
            implant.fixed_ratio(0.5, offset_x_frac=anywhere, offset_y_frac=anywhere, names=names),
            draw_pictures,
        ),
        "implant.fill_box": (implant.fill_box(boxes="one", names=names), draw_pictures),
        "compose.affine": (compose.affine(), draw_pictures),
        "compose.tilt": (compose.tilt(Range(-25.0, 25.0), Range(-25.0, 25.0)), draw_pictures),
        "compose.resized_crop": (compose.resized_crop(), draw_pictures),
        "compose.translation": (compose.translation(), draw_pictures),
        "compose.horizontal_flip": (compose.horizontal_flip(**often), draw_pictures),
        "compose.vertical_flip": (compose.vertical_flip(**often), draw_pictures),
        "compose.exposure": (compose.exposure(), draw_pictures),
        "compose.contrast": (compose.contrast(Range(0.5, 1.8)), draw_pictures),
        "compose.gamma": (compose.gamma(Range(0.5, 2.0)), draw_pictures),
        "compose.saturation": (compose.saturation(Range(0.0, 2.0)), draw_pictures),
        "compose.hue": (compose.hue(Range(-90.0, 90.0)), draw_pictures),
        "compose.white_balance": (compose.white_balance(), draw_pictures),
        "compose.color_jitter": (compose.color_jitter(), draw_pictures),
        "compose.grayscale": (compose.grayscale(**often), draw_pictures),
        "compose.invert": (compose.invert(**often), draw_pictures),
        "compose.solarize": (compose.solarize(**often), draw_pictures),
        "compose.shadow": (compose.shadow(**often), draw_pictures),
        "compose.erasing": (compose.erasing(**often), draw_pictures),
        "compose.blur": (compose.blur(Range(1.0, 4.0)), draw_pictures),
        "compose.defocus": (compose.defocus(Range(2.0, 5.0)), draw_pictures),
        "compose.motion_blur": (compose.motion_blur(Range(6.0, 16.0)), draw_pictures),
        "compose.resample": (compose.resample(Range(0.15, 0.5)), draw_pictures),
        "compose.read_noise": (compose.read_noise(Range(0.05, 0.15)), draw_pictures),
        "compose.jpeg": (compose.jpeg(Range(3.0, 20.0)), draw_pictures),
        "compose.augmentation": (
            compose.augmentation("RandomPlanckianJitter", {"mode": "blackbody", "p": 1.0}),
            draw_pictures,
        ),
        "defend.bit_depth": (defend.bit_depth(), draw_pictures),
        "defend.median": (defend.median(7), draw_pictures),
        "defend.gradient_smoothing": (defend.gradient_smoothing(), draw_pictures),
        "defend.frequency_mask": (defend.frequency_mask(), draw_pictures),
        "defend.double_masking": (
            defend.double_masking(PagodaClassifier().eval(), (24, 24), 12),
            draw_answers_of,
        ),
        "infer.classifier": (infer.classifier(PagodaClassifier().eval()), draw_answers_of),
        "graph.module": (
            graph.module(PagodaClassifier().eval(), inputs=("image",), outputs=("logits",)),
            draw_answers_of,
        ),
        "infer.detector": (victim, draw_answers_of),
        "infer.torchvision_detector": (infer.torchvision_detector(make_fcos()), draw_answers_of),
        "infer.yolo": (infer.yolo(PagodaYolo().eval(), format="v8", size=(256, 320)), draw_answers_of),
        "infer.transformers_detector": (
            infer.transformers_detector(PagodaDetr().eval(), {"shortest_edge": 216, "longest_edge": 320}),
            draw_answers_of,
        ),
        "infer.suppress": (suppress, after(victim)),
        "losses.vanish": (losses.vanish(), after(victim)),
        "losses.ensemble": (
            losses.ensemble(("victims/0/vanish", "victims/1/vanish"), "worst"),
            draw_ensemble,
        ),
        "losses.relabel": (losses.relabel(), after(infer.detector(PagodaNamer().eval()), color="green")),
        "losses.hallucinate": (losses.hallucinate(0), after(victim, color="red")),
        "losses.latency": (losses.latency(), after(victim, color="red")),
        "losses.misclassify": (losses.misclassify(), after(infer.classifier(PagodaClassifier().eval()))),
        "losses.criterion": (losses.criterion("CrossEntropyLoss"), after_classifier),
        "losses.metric_learning": (
            losses.metric_learning("TripletMarginLoss", {"margin": 0.3}),
            draw_embeddings,
        ),
        "losses.total_variation": (losses.total_variation(), draw_patch_loss),
        "losses.non_printability": (losses.non_printability(), draw_patch_loss),
        "losses.saliency": (losses.saliency(), draw_patch_loss),
        "losses.lp_distance": (losses.lp_distance({"flower": flower}), draw_patch_loss),
        "metrics.detection_hit": (metrics.detection_hit(), after(victim, suppress)),
        "metrics.object_hit": (metrics.object_hit(), after(victim, suppress)),
        "metrics.mean_average_precision": (metrics.mean_average_precision(), after(victim, suppress)),
        "metrics.torchmetric": (
            metrics.torchmetric(metrics.torchmetrics(name="MulticlassAccuracy", num_classes=2)),
            after_classifier,
        ),
        "viz.drawing": (viz.drawing(write_likelihood), lambda s: draw_drawing(s, *classify)),
        "viz.class_bars": (viz.class_bars(**classes), lambda s: draw_drawing(s, *classify)),
        "viz.box_overlay": (
            viz.box_overlay(("pagoda", "tree"), width_px=260),
            lambda s: draw_drawing(s, *answer(victim, suppress)),
        ),
        "viz.mask_overlay": (
            viz.mask_overlay(hidden=(0,), num_classes=3, **areas),
            lambda s: draw_drawing(s, segment),
        ),
        "metrics.class_hit": (metrics.class_hit(), after(infer.classifier(PagodaClassifier().eval()))),
    }


def draw_answers_of(stage: Stage) -> list[list[Panel]]:
    """A victim alone."""
    return draw_answers([stage])


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="a stage, e.g. compose.exposure")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    stages = make_stages()
    pictures = DOCS / "images" / "stages"
    pictures.mkdir(parents=True, exist_ok=True)
    for identity, (stage, draw) in stages.items():
        if only in (None, identity):
            figure = side_by_side(draw(stage), ("pagoda", "tree"), panel_px=260)
            pixels = (figure * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(pictures / f"{identity.replace('.', '-')}.jpg", quality=82)
            print(identity)


if __name__ == "__main__":
    main()
