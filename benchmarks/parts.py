"""The time of parts that could be slow: the losses of a patch, and the implant with its filter.

Losses: forward and backward for 16 patches of 3 x 128 x 128 (64 colors for the non-printability score). The
implant: 16 photographs of 3 x 320 x 320 with a patch of 300 x 300 pixels, drawn 40 and 150 pixels wide,
forward and backward, with the filter and without, in turn.

    python benchmarks/parts.py [--repeats 11] [--small]
"""

from collections.abc import Callable

import torch
from harness import Record, interleave, read_options
from torch import Tensor

from fpatch import implant, losses, random
from fpatch.stage import Stage


def loss_step(stage: Stage, num: int, side: int) -> Callable[[], object]:
    """Forward and backward of a loss of patches."""
    patch = random.uniform(random.key(0), (num, 3, side, side)).requires_grad_()
    batch = {"patch": {"a": patch}, "image_id": torch.arange(num)}

    def step() -> Tensor:
        (term,) = (stage.apply({}, {}, batch)[name] for name in stage.definition.writes)
        return torch.autograd.grad(term.mean(), patch)[0]

    return step


def implant_step(num: int, width: float, antialias: bool) -> Callable[[], object]:
    """Forward and backward of an implant of photographs."""
    patch = random.uniform(random.key(1), (3, 300, 300)).requires_grad_()
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.05], [0.97, 1.0], [0.02, 0.95]]) * width + 80
    batch = {
        "scene": random.uniform(random.key(2), (num, 3, 320, 320)),
        "patch": {"a": patch},
        "quads": corners.expand(num, 1, 4, 2),
        "quad_patch": torch.zeros(num, 1, dtype=torch.int64),
        "quad_valid": torch.ones(num, 1, dtype=torch.bool),
        "image_id": torch.arange(num),
        "draw": torch.zeros(num, dtype=torch.int64),
    }
    stage = implant.warp(names=("a",), antialias=antialias)
    sample = stage.sample(random.key(3), batch)

    def step() -> Tensor:
        return torch.autograd.grad(stage.apply({}, sample, batch)["image"].mean(), patch)[0]

    return step


def main(argv: list[str] | None = None) -> None:
    """A line per part."""
    options = read_options(__doc__, argv)
    record = Record("parts", options)
    num, side = (2, 32) if options.small else (16, 128)
    for stage in (losses.non_printability(), losses.saliency(), losses.total_variation()):
        step = loss_step(stage, num, side)
        times = interleave({"step": step}, options.repeats)
        record.add(f"{stage.definition.name}, {num} x 3 x {side} x {side}", step_ms=times.ms("step"))
    for width in (12.0,) if options.small else (40.0, 150.0):
        filtered, plain = (implant_step(num, width, antialias) for antialias in (True, False))
        times = interleave({"filtered": filtered, "plain": plain}, options.repeats)
        record.add(
            f"implant, 300 px drawn {width:.0f} px wide",
            filtered_ms=times.ms("filtered"),
            plain_ms=times.ms("plain"),
            ratio=times.ratio("filtered", "plain"),
        )


if __name__ == "__main__":
    main()
