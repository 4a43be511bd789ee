"""The time of a training step over the time of the victim alone, both eager and both compiled.

The victim alone: parameters frozen, gradient with respect to the images only, same dtype, layout and threads.
Beside them stands the step with the same bits every time (`train.deterministic`) over the step without. All
are timed in turn; on a GPU the share of an eager step in which a kernel runs is told, too. The process keeps
the memory that it frees, as the command line does.

    python benchmarks/step.py [--repeats 11] [--device cpu|cuda] [--small]
"""

from collections.abc import Callable

import torch
from harness import Options, Record, interleave, kernel_share, read_options
from torch import Tensor
from workloads import make_batch, make_images, make_pipeline, make_training, make_victim

import fpatch
from fpatch.runtime.device import deterministic_algorithms


def measure(name: str, b: int, side: int, options: Options, record: Record) -> None:
    """One victim."""
    victim = make_victim(name, options.device)
    pipeline, batch = make_pipeline(victim), make_batch(b, side, device=options.device)
    step, state = make_training(pipeline, options.device)
    compiled, _ = make_training(pipeline, options.device, compile=True)
    image = make_images(pipeline, state, batch)

    def answer(x: Tensor) -> Tensor:
        return victim.answer(victim.model, x)

    def alone(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(image).sum(), image)

    def deterministic() -> object:
        with deterministic_algorithms(True):
            return step(state, batch)

    functions: dict[str, Callable[[], object]] = {
        "step": lambda: step(state, batch),
        "victim": alone(answer),
        "deterministic step": deterministic,
    }
    ratios = [("step", "victim"), ("deterministic step", "step")]
    if not options.small:  # which takes a minute
        functions["compiled step"] = lambda: compiled(state, batch)
        ratios.append(("compiled step", "victim"))
    if not options.small and pipeline["victim"].stage.definition.traits.compile:
        functions["compiled victim"] = alone(torch.compile(answer, dynamic=False))
        ratios.append(("compiled step", "compiled victim"))
    times = interleave(functions, options.repeats, device=options.device)
    on_gpu = {"kernels_share": kernel_share(functions["step"])} if options.device == "cuda" else {}
    record.add(
        f"{name}, {b} x {side} x {side}",
        **on_gpu,
        **{f"{a.replace(' ', '_')}_ms": times.ms(a) for a in functions},
        **{f"{a} / {over}": times.ratio(a, over) for a, over in ratios},
    )


def main(argv: list[str] | None = None) -> None:
    """Every victim."""
    options = read_options(__doc__, argv, ("cpu", "cuda"))
    if not options.small:
        fpatch.keep_freed_memory()
    record = Record("step", options)
    if options.small:
        workloads = [("tiny", 2, 64)]
    elif options.device == "cuda":
        workloads = [("resnet50", 64, 640), ("fasterrcnn", 16, 640)]
    else:
        workloads = [(name, 8, 640) for name in ("resnet18", "mobilenet_v3_small", "ssdlite320")]
        workloads.append(("tiny", 16, 128))
    for name, b, side in workloads:
        measure(name, b, side, options, record)


if __name__ == "__main__":
    main()
