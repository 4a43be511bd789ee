"""Do images and gradients pass between a patch and each kind of real detector?

    python experiments/detectors.py --data ../shared/data/toycar

The images of the toy car (see `toycar.py`) are letterboxed to 320 x 320 pixels. Three patches lie on its
panels, 1.7 times as wide as their corners. The victims are Faster R-CNN, SSDlite, FCOS (at half the size),
YOLO11n and YOLOS. Some steps of Adam on `losses.vanish` hide the car, which is the box around its panels,
twice as large.

The networks are untrained, so their detections mean nothing. Convolutions are drawn by He's rule from a seed,
and batch normalization takes its statistics from the images: signals and gradients neither fade nor explode.

The table shows mechanics, not an effect: the size of the dense answer, the norm of the gradient at the
patches, the loss before and after small steps on four images, the time of a step beside that of the victim
alone, and that the victim keeps its bits. `fpatch demo` and `toycar.py` show the effect on a trained victim.
`--weights fcos=FILE` puts trained weights into the same table.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.ssd import SSD

import fpatch
from fpatch import Range, Stage, create, implant, infer, losses, random
from fpatch.cli.console import console
from fpatch.data import TargetSet, targets
from fpatch.ops.geometry import quad_bounds

PANELS = ("hood", "roof", "door")
SIZE = (320, 320)
WIDER = 1.7
BATCH = 4
LEARNING_RATE = 0.002


class Report(NamedTuple):
    """The measurements of one victim."""

    boxes: tuple[int, ...]
    gradient: float
    losses: tuple[float, ...]
    seconds: float
    alone: float
    unchanged: bool


def load_yolos(weights: str | Path | None = None) -> Any:
    """YOLOS in its tiny size."""
    from transformers import YolosConfig, YolosForObjectDetection

    if weights is not None:
        return infer.transformers_model(weights).value
    torch.manual_seed(0)
    tiny = YolosConfig(
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=[320, 320],
        initializer_range=0.1,
    )
    return YolosForObjectDetection(tiny).eval()


yolos = fpatch.define_loader("yolos", load_yolos)


def torchvision_victim(architecture: str, **settings: Any) -> Callable[[str | None], Stage]:
    """A stage from a file of weights, or from a seed."""

    def make(weights: str | None) -> Stage:
        start: dict[str, Any] = {"seed": 0} if weights is None else {}
        model = infer.torchvision_model(weights, architecture=architecture, **start, **settings)
        return infer.torchvision_detector(model)

    return make


VICTIMS: dict[str, Callable[[str | None], Stage]] = {
    "faster_rcnn": torchvision_victim("fasterrcnn_mobilenet_v3_large_320_fpn"),
    "ssdlite": torchvision_victim("ssdlite320_mobilenet_v3_large"),
    "fcos": torchvision_victim("fcos_resnet50_fpn", min_size=160, max_size=160),
    "yolo11n": lambda weights: infer.yolo(
        infer.ultralytics_model(weights, architecture="yolo11n.yaml"), format="v8", size=320
    ),
    "yolos": lambda weights: infer.transformers_detector(
        yolos(weights), {"shortest_edge": 320, "longest_edge": 320}
    ),
}


def try_victim(victim: Stage, images: TargetSet, num_steps: int, untrained: bool) -> Report:
    """Train three patches against a victim for some steps."""
    whole = fpatch.pipeline({
        "pixels": create.pixels({name: (3, 64, 64) for name in PANELS}),
        "implant": implant.warp(scale=Range(WIDER, WIDER)),
        "victim": victim,
        "vanish": losses.vanish(label="any"),
    })  # fmt: skip
    key = random.key(0)
    batch = with_car(images.batch(images.image_ids[:BATCH]))
    model = victim.config.model.value
    if untrained:
        enliven(model, batch["scene"])
    before = digest(model)
    objective = fpatch.Objective(whole, {"vanish": 1.0})
    optimizer = fpatch.make_optimizer(fpatch.Optimizer(learning_rate=LEARNING_RATE), num_steps)
    state = fpatch.make_state(objective, optimizer, key)
    step = fpatch.make_step(objective, optimizer)
    wanted = ("image", "detections", "vanish")
    with torch.no_grad():
        first, sample = whole(state.params, key, batch, want=wanted)
    gradients, durations = [], []
    for _ in range(num_steps):
        start = time.perf_counter()
        state, info = step(state, batch)
        durations.append(time.perf_counter() - start)
        gradients.append(float(info.grad_norm))
    with torch.no_grad():
        last = whole.apply(state.params, sample, batch, want=wanted)
    return Report(
        boxes=tuple(last["detections"]["dense"]["boxes"].shape[1:]),
        gradient=gradients[0],
        losses=tuple(float(values["vanish"].mean()) for values in (first, last)),
        seconds=min(durations),
        alone=time_alone(victim, last["image"]),
        unchanged=digest(model) == before,
    )


def enliven(model: nn.Module, images: Tensor) -> None:
    """Set weights and statistics under which an untrained network tells images apart."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
                nn.init.kaiming_normal_(module.weight)
        for norm in norms:
            norm.train().momentum = 1.0
        if norms:
            model(list(images) if isinstance(model, FasterRCNN | FCOS | SSD) else images)
    for norm in norms:
        norm.eval()


def with_car(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the car as its object."""
    bounds = quad_bounds(batch["quads"])
    far = torch.where(batch["quad_valid"][..., None], bounds, bounds.new_tensor([1e6, 1e6, -1e6, -1e6]))
    low, high = far[..., :2].amin(1), far[..., 2:].amax(1)
    half = (high - low).amax(-1, keepdim=True)
    box = torch.cat([(low + high) / 2 - half, (low + high) / 2 + half], dim=-1).clamp(0, SIZE[0])
    count = len(box)
    return batch | {
        "boxes": box[:, None],
        "labels": torch.zeros(count, 1, dtype=torch.int64),
        "box_valid": torch.ones(count, 1, dtype=torch.bool),
    }


def time_alone(victim: Stage, images: Tensor, repeats: int = 2) -> float:
    """The shortest time, in seconds, of the victim with the gradient of the images."""
    durations = []
    for _ in range(repeats):
        inside = images.clone().requires_grad_()
        start = time.perf_counter()
        dense = victim.apply({}, {}, {"image": inside})["detections"]["dense"]
        torch.autograd.grad(dense["logits"].sum(), inside)
        durations.append(time.perf_counter() - start)
    return min(durations)


def digest(model: Any) -> str:
    """Return a digest of the parameters, the buffers and the presence of gradients."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return f"{found.hexdigest()} {[n for n, p in model.named_parameters() if p.grad is not None]}"


def main() -> None:
    """Try every victim and print a line for each."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, required=True, help="folder with warp.csv and its images")
    parser.add_argument("--steps", type=int, default=10, help="of Adam (default: 10)")
    parser.add_argument("--only", choices=VICTIMS, nargs="+", default=tuple(VICTIMS), help="(default: all)")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="VICTIM=FILE", help="may be repeated"
    )
    options = parser.parse_args()
    files = dict(entry.split("=", 1) for entry in options.weights)
    images = targets(options.data / "warp.csv", size=SIZE, patches=PANELS)
    table = Table(title=f"{len(images.image_ids)} images, {options.steps} steps of {BATCH}")
    for heading in ("victim", "dense boxes", "|gradient|", "loss", "step s", "victim s", "unchanged"):
        table.add_column(heading, justify="left" if heading == "victim" else "right")
    for name in options.only:
        with console.status(name):
            found = try_victim(VICTIMS[name](files.get(name)), images, options.steps, name not in files)
        numbers = " x ".join(map(str, found.boxes))
        loss = f"{found.losses[0]:.3g} -> {found.losses[-1]:.3g}"
        times = f"{found.seconds:.2f}", f"{found.alone:.2f}"
        table.add_row(
            name, numbers, f"{found.gradient:.2g}", loss, *times, "yes" if found.unchanged else "NO"
        )
    console.print(table)


if __name__ == "__main__":
    main()
