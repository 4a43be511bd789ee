"""The time of a step that trains a network over that of a plain PyTorch loop.

The same network, batch size, augmentation, losses, optimizer and schedule: the plain loop draws by one
`torch.Generator` and calls torch.optim. The detector is that of `fpatch demo`. The classifier is a resnet18
with batch statistics. The step has its augmentation from the keys of its rows, and checks its numbers.

    python benchmarks/network.py [--repeats 21] [--small]
"""

from collections.abc import Callable
from typing import Any

import torch
from harness import Options, Record, interleave, read_options
from torch import Tensor, nn
from torchvision.models import resnet18

import fpatch
from fpatch import compose, graph, losses, node, random
from fpatch.demo.training import COVERED_FRAC, detection_losses, detector_pipeline
from fpatch.demo.victim import TinyDetector

PEAK, STEPS = 6e-3, 1000
SETTINGS = fpatch.Optimizer(
    "adamw", PEAK, "one_cycle", betas=(0.95, 0.999), peak_momentum=0.85, rise_frac=0.2, weight_decay=1e-3,
    clip_norm=10.0,
)  # fmt: skip


def make_batch(b: int, side: int) -> dict[str, Tensor]:
    """Random scenes with one object each, and a class."""
    g = torch.Generator().manual_seed(0)
    low = side * (0.1 + 0.3 * torch.rand(b, 1, 2, generator=g))
    return {
        "scene": torch.rand(b, 3, side, side, generator=g),
        "boxes": torch.cat([low, low + side * 0.4], -1),
        "labels": torch.zeros(b, 1, dtype=torch.int64),
        "box_valid": torch.ones(b, 1, dtype=torch.bool),
        "target": torch.randint(10, (b,), generator=g),
        "image_id": torch.arange(b),
        "draw": torch.zeros(b, dtype=torch.int64),
    }


def plain_augmentation(batch: dict[str, Tensor], g: torch.Generator, covers: bool) -> dict[str, Tensor]:
    """The augmentation of the pipeline, as plain code."""
    image, boxes = batch["scene"], batch["boxes"]
    b, _, h, w = image.shape

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=g)

    mirror = uniform(1, 1, 1) < 0.5
    left, top, right, bottom = boxes.unbind(-1)
    mirrored = torch.stack([w - right, top, w - left, bottom], -1)
    image, boxes = torch.where(mirror, image.flip(-1), image), torch.where(mirror[..., 0], mirrored, boxes)
    image = (image * uniform(1, 1, 1, low=-0.6, high=0.6).exp2()).clamp(0, 1)
    image = (0.5 + (image - 0.5) * uniform(1, 1, 1, low=0.8, high=1.2)).clamp(0, 1)
    noise = torch.randn(image.shape, generator=g)
    if covers:
        size = boxes[:, 0, 2:] - boxes[:, 0, :2]
        start = boxes[:, 0, :2] + size * uniform(2, low=-0.1, high=0.7)
        left, top = start[:, :, None].unbind(1)
        right, bottom = (start + size * uniform(2, low=0.2, high=0.7))[:, :, None].unbind(1)
        x, y = torch.arange(w) + 0.5, torch.arange(h) + 0.5
        across, down = (x > left) & (x < right), (y > top) & (y < bottom)
        hidden = across[:, None, None, :] & down[:, None, :, None] & (uniform(1, 1, 1) < COVERED_FRAC)
        cover = torch.where(uniform(1, 1, 1) < 0.5, uniform(3, 1, 1), 0.5 + 0.3 * noise)
        image = torch.where(hidden, cover, image)
    return {**batch, "boxes": boxes, "image": (image + noise * uniform(1, 1, 1, high=0.03)).clamp(0, 1)}


def plain_loop(model: nn.Module, loss: Callable[[dict[str, Tensor]], Tensor], covers: bool) -> Any:
    """One step of a plain loop on a batch."""
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS, pct_start=0.2)

    def step(batch: dict[str, Tensor]) -> float:
        value = loss(plain_augmentation(batch, g, covers))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        return float(value.detach())

    return step


def pipeline_step(pipeline: fpatch.Pipeline, weights: dict[str, float]) -> Any:
    """One step of fpatch on a batch, from the state that the last one left."""
    objective, optimizer = fpatch.Objective(pipeline, weights), fpatch.make_optimizer(SETTINGS, STEPS)
    made = [fpatch.make_state(objective, optimizer, random.key(0))]
    step = fpatch.make_step(objective, optimizer)

    def advance(batch: dict[str, Tensor]) -> float:
        made[0], info = step(made[0], batch)
        return float(info.loss)

    return advance


def make_detectors(channels: int) -> tuple[Any, Any]:
    """The step and the plain loop of the detector of the demo."""
    ours, theirs = (
        TinyDetector(width=channels, generator=torch.Generator().manual_seed(0)).to(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )

    def loss(batch: dict[str, Tensor]) -> Tensor:
        found = {f"found_{name}": value for name, value in theirs(batch["image"]).items()}
        terms = detection_losses({**batch, **found}, {})
        return terms["focal"].mean() + terms["overlap"].mean()

    step = pipeline_step(detector_pipeline(ours).at("train"), {"focal": 1.0, "overlap": 1.0})
    return step, plain_loop(theirs, loss, covers=True)


def make_classifiers() -> tuple[Any, Any]:
    """The step and the plain loop of a classifier with batch statistics."""
    torch.manual_seed(0)
    ours, theirs = (resnet18(num_classes=10).to(memory_format=torch.channels_last) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    parts = {
        "mirror": compose.horizontal_flip(),
        "exposure": node(compose.exposure(stops=fpatch.Range(-0.6, 0.6)), reads={"image": "scene"}),
        "contrast": compose.contrast(factor=fpatch.Range(0.8, 1.2)),
        "noise": compose.read_noise(std_frac=fpatch.Range(0.0, 0.03)),
        "victim": node(graph.module(ours, trainable=True), reads=["image"], writes=["logits"]),
        "loss": node(
            losses.criterion("CrossEntropyLoss"),
            reads={"input": "logits", "target": "target"},
            writes=["wrong"],
        ),
    }

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(theirs(batch["image"]), batch["target"])

    step = pipeline_step(fpatch.pipeline(parts).at("train"), {"wrong": 1.0})
    return step, plain_loop(theirs, loss, covers=False)


def measure(name: str, pair: tuple[Any, Any], b: int, side: int, options: Options, record: Record) -> None:
    """One network."""
    step, plain = pair
    batch = make_batch(b, side)
    functions: dict[str, Callable[[], object]] = {"step": lambda: step(batch), "plain": lambda: plain(batch)}
    times = interleave(functions, options.repeats, warmup=1 if options.small else 3)
    record.add(
        f"{name}, {b} x {side} x {side}",
        step_ms=times.ms("step"),
        plain_ms=times.ms("plain"),
        **{"step / plain": times.ratio("step", "plain")},
    )


def main(argv: list[str] | None = None) -> None:
    """Both networks."""
    options = read_options(__doc__, argv)
    if not options.small:
        fpatch.keep_freed_memory()
    record = Record("network", options)
    if options.small:
        measure("detector of the demo", make_detectors(16), 2, 32, options, record)
        return
    measure("detector of the demo", make_detectors(64), 32, 96, options, record)
    measure("resnet18", make_classifiers(), 32, 128, options, record)


if __name__ == "__main__":
    main()
