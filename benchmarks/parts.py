"""The time of parts that could be slow: losses of a patch, an implant's filter, a deterministic gradient.

Losses: forward and backward for 16 patches of 3 x 128 x 128 (64 colors for the non-printability score). The
implant: 16 images of 3 x 320 x 320 with a patch of 300 x 300 pixels, drawn 40 and 150 pixels wide,
forward and backward, with the filter and without, in turn. Interpolation: that whose gradient has the same
bits every time, which an implant uses on a GPU if `train.deterministic` asks for it, over that of torch,
forward and backward, for 24 patches of 4 x 64 x 64 in regions of 96 x 96.

    python benchmarks/parts.py [--repeats 11] [--device cpu|cuda] [--small]
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Record, interleave, read_options
from torch import Tensor

from fpatch import implant, losses, random
from fpatch.core.tree import to_device
from fpatch.graph.stage import Stage
from fpatch.ops.sampling import sample_in_order
from fpatch.runtime.device import deterministic_algorithms


def loss_step(stage: Stage, num: int, side: int, device: str) -> Callable[[], object]:
    """Forward and backward of a loss of patches."""
    patch = random.uniform(random.key(0), (num, 3, side, side)).to(device).requires_grad_()
    batch = {"patch": {"a": patch}, "image_id": torch.arange(num, device=device)}

    def step() -> Tensor:
        (term,) = (stage.apply({}, {}, batch)[name] for name in stage.definition.writes)
        return torch.autograd.grad(term.mean(), patch)[0]

    return step


def implant_step(num: int, width: float, antialias: bool, device: str) -> Callable[[], object]:
    """Forward and backward of an implant of images."""
    patch = random.uniform(random.key(1), (3, 300, 300)).to(device).requires_grad_()
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.05], [0.97, 1.0], [0.02, 0.95]]) * width + 80
    batch = {
        "scene": random.uniform(random.key(2), (num, 3, 320, 320)),
        "quads": corners.expand(num, 1, 4, 2),
        "quad_patch": torch.zeros(num, 1, dtype=torch.int64),
        "quad_valid": torch.ones(num, 1, dtype=torch.bool),
        "image_id": torch.arange(num),
        "draw": torch.zeros(num, dtype=torch.int64),
    }
    stage = implant.warp(names=("a",), antialias=antialias)
    sample, batch = to_device((stage.sample(random.key(3), batch), batch), device)
    batch["patch"] = {"a": patch}

    def step() -> Tensor:
        return torch.autograd.grad(stage.apply({}, sample, batch)["image"].mean(), patch)[0]

    return step


def interpolation_step(num: int, side: int, in_order: bool, device: str) -> Callable[[], object]:
    """Forward and backward of an interpolation, nearly as many points as texels."""
    textures = random.uniform(random.key(4), (num, 4, side, side)).to(device).requires_grad_()
    points = torch.linspace(-1.2, 1.2, 3 * side // 2, device=device)
    grid = torch.stack(torch.meshgrid(points, points, indexing="xy"), dim=-1).expand(num, -1, -1, 2)

    def step() -> Tensor:
        with deterministic_algorithms(in_order):
            if in_order:
                shown = sample_in_order(textures, grid, align_corners=False)
            else:
                shown = F.grid_sample(textures, grid, align_corners=False)
            return torch.autograd.grad(shown.square().sum(), textures)[0]

    return step


def compare(
    workload: str, name: str, step: Callable[[], object], plain: Callable[[], object], record: Record
) -> None:
    """A step over the plain one, in turn."""
    options = record.options
    times = interleave({name: step, "plain": plain}, options.repeats, device=options.device)
    figures = {f"{name}_ms": times.ms(name), "plain_ms": times.ms("plain")}
    record.add(workload, **figures, ratio=times.ratio(name, "plain"))


def main(argv: list[str] | None = None) -> None:
    """A line per part."""
    options = read_options(__doc__, argv, ("cpu", "cuda"))
    record = Record("parts", options)
    num, side = (2, 32) if options.small else (16, 128)
    for stage in (losses.non_printability(), losses.saliency(), losses.total_variation()):
        step = loss_step(stage, num, side, options.device)
        times = interleave({"step": step}, options.repeats, device=options.device)
        record.add(f"{stage.definition.name}, {num} x 3 x {side} x {side}", step_ms=times.ms("step"))
    for width in (12.0,) if options.small else (40.0, 150.0):
        filtered, plain = (implant_step(num, width, antialias, options.device) for antialias in (True, False))
        compare(f"implant, 300 px drawn {width:.0f} px wide", "filtered", filtered, plain, record)
    num, side = (2, 16) if options.small else (24, 64)
    in_order, plain = (interpolation_step(num, side, asked, options.device) for asked in (True, False))
    compare(f"interpolation, {num} x 4 x {side} x {side}", "in_order", in_order, plain, record)


if __name__ == "__main__":
    main()
