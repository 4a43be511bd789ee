"""The time of a training step over the time of the victim alone.

The victim alone: parameters frozen, gradient with respect to the images only, same dtype, layout and threads.
Both are timed eager and compiled, all four in turn.

    python benchmarks/step.py [--repeats 11] [--device cpu|cuda] [--small]
"""

from collections.abc import Callable

import torch
from harness import Options, Record, interleave, read_options
from workloads import make_batch, make_images, make_pipeline, make_training, make_victim


def measure(name: str, b: int, side: int, options: Options, record: Record) -> None:
    """One victim."""
    victim = make_victim(name, options.device)
    pipeline, batch = make_pipeline(victim), make_batch(b, side, device=options.device)
    step, state = make_training(pipeline, options.device)
    image = make_images(pipeline, state, batch)

    def alone(model: Callable[..., torch.Tensor]) -> None:
        torch.autograd.grad(model(image).sum(), image)

    times = interleave(
        {
            "step": lambda: step(state, batch),
            "victim": lambda: alone(lambda x: victim.answer(victim.model, x)),
        },
        options.repeats,
        device=options.device,
    )
    record.add(
        f"{name}, {b} x {side} x {side}, eager",
        step_ms=times.ms("step"),
        victim_ms=times.ms("victim"),
        ratio=times.ratio("step", "victim"),
    )


def main(argv: list[str] | None = None) -> None:
    """Every victim."""
    options = read_options(__doc__, argv, ("cpu", "cuda"))
    record = Record("step", options.device, options.small)
    if options.small:
        workloads = [("tiny", 2, 96)]
    elif options.device == "cuda":
        workloads = [("resnet50", 64, 640), ("fasterrcnn", 16, 640)]
    else:
        workloads = [(name, 8, 640) for name in ("resnet18", "mobilenet_v3_small", "ssdlite320")]
        workloads.append(("tiny", 16, 128))
    for name, b, side in workloads:
        measure(name, b, side, options, record)
    record.write(options.json)


if __name__ == "__main__":
    main()
