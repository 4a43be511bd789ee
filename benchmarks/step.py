"""The time of a training step over the time of the victim alone.

The victim alone: parameters frozen, gradient with respect to the images only, same dtype, layout and threads.
Both are run in turn, A B A B, after a warm-up; the ratio is that of each pair, and its median and quartiles
are printed.

    python benchmarks/step.py [--repeats 15] [--json FILE]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fpatch
from fpatch import compose, create, implant, infer, losses, random
from fpatch.demo.victim import TinyDetector


def make_batch(b: int, side: int, num_patches: int) -> dict[str, Tensor]:
    """Noise photographs with one placement per patch, each an eighth of the frame's side."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.95, 1.0], [-0.05, 0.9]]) * side / 8
    places = torch.stack([corners + side * (i + 1) / (num_patches + 2) for i in range(num_patches)])
    return {
        "scene": random.uniform(random.key(1), (b, 3, side, side)),
        "image_id": torch.arange(b),
        "draw": torch.zeros(b, dtype=torch.int64),
        "quads": places.expand(b, -1, -1, -1).contiguous(),
        "quad_patch": torch.arange(num_patches).expand(b, -1).contiguous(),
        "quad_valid": torch.ones(b, num_patches, dtype=torch.bool),
        "boxes": torch.tensor([[[0.1, 0.1, 0.9, 0.9]]]).expand(b, 1, 4) * side,
        "box_valid": torch.ones(b, 1, dtype=torch.bool),
        "target": torch.zeros(b, dtype=torch.int64),
    }


def make_pipeline(model: nn.Module, is_detector: bool, patches: dict[str, tuple[int, int, int]]) -> Any:
    """Affine, implant and a camera in front of a victim."""
    victim = infer.detector(model) if is_detector else infer.classifier(model)
    return fpatch.pipeline(
        {
            "pixels": create.pixels(patches),
            "stack": create.stack(3),
            "view": compose.affine(),
            "implant": implant.warp(),
            "exposure": compose.exposure(),
            "contrast": compose.contrast(),
            "saturation": compose.saturation(),
            "hue": compose.hue(),
            "noise": compose.read_noise(),
            "victim": victim,
            "loss": losses.vanish() if is_detector else losses.misclassify(),
        }
    )


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(
    name: str, model: nn.Module, is_detector: bool, b: int, side: int, repeats: int
) -> dict[str, Any]:
    """Interleaved times of a step and of the victim alone."""
    patches = {n: (1, 64, 64) for n in ("hood", "roof", "door")}
    pipeline, batch = make_pipeline(model, is_detector, patches), make_batch(b, side, len(patches))
    objective = fpatch.Objective(pipeline, {pipeline.terms[0]: 1.0})
    optimizer = fpatch.make_optimizer(fpatch.Optimizer(), 100)
    step = fpatch.make_step(objective, optimizer)
    state = fpatch.make_state(objective, optimizer, random.key(0))
    with torch.no_grad():
        image = pipeline.apply(state.params, pipeline.sample(random.key(2), batch), batch, want=("image",))[
            "image"
        ]
    image.requires_grad_()

    def victim() -> None:
        out = model(image)
        torch.autograd.grad(out["logits"].sum() if is_detector else out.sum(), image)

    victim()
    step(state, batch)
    pairs = [(timed(lambda: step(state, batch)), timed(victim)) for _ in range(repeats)]
    ratios = [a / v for a, v in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "workload": name,
        "step_ms": 1000 * statistics.median(a for a, _ in pairs),
        "victim_ms": 1000 * statistics.median(v for _, v in pairs),
        "ratio": middle,
        "quartiles": [low, high],
        "repeats": repeats,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="write the figures to this file too")
    options = parser.parse_args()
    from torchvision.models import resnet18

    workloads = (
        (
            "TinyDetector, 16 x 128 x 128",
            TinyDetector(generator=torch.Generator().manual_seed(0)),
            True,
            16,
            128,
        ),
        ("resnet18, 4 x 640 x 640", resnet18(weights=None), False, 4, 640),
    )
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(machine)
    figures = []
    for name, model, is_detector, b, side in workloads:
        model.eval().requires_grad_(False)
        figures.append(measure(name, model, is_detector, b, side, options.repeats))
        f = figures[-1]
        print(
            f"{name:<32} step {f['step_ms']:7.1f} ms   victim {f['victim_ms']:7.1f} ms   "
            f"ratio {f['ratio']:.2f} [{f['quartiles'][0]:.2f}, {f['quartiles'][1]:.2f}]"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "figures": figures}, file, indent=2)


if __name__ == "__main__":
    main()
