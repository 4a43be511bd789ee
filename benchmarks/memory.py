"""The peak memory of a step against that of the victim alone, each in a process of its own.

What is counted is the peak above what the process held once everything was made: victim, batch, state, and a
first call on one small image, after which the libraries have loaded what they load lazily. On a CPU that is
resident memory as Linux counts it (`VmHWM`, after a reset), elsewhere the growth of `ru_maxrss`, which misses
what fits below the peak of the set-up; on a GPU the bytes that torch has allocated. The victim alone is given
the images, and its gradient is of the images only. Frames count the difference in batches of images, float32.

    python benchmarks/memory.py [--repeats 11] [--device cpu|cuda] [--small]

At most 3 processes of a kind are started: their figures differ little.
"""

import ctypes
import resource
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from harness import Options, Record, quartiles, read_options
from torch import Tensor
from workloads import make_batch, make_images, make_pipeline, make_training, make_victim

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MB = 2**20


def make(name: str, b: int, side: int, micro_batch: int | None, device: str) -> Callable[[], object]:
    """The measured call: a step, or with `micro_batch=0` the victim alone; called once on a small batch."""
    victim = make_victim(name, device)
    pipeline = make_pipeline(victim)
    batch, small = make_batch(b, side, device=device), make_batch(1, 96, device=device)
    step, state = make_training(pipeline, device, micro_batch=micro_batch or None)
    if micro_batch == 0:

        def alone(images: Tensor) -> Tensor:
            return torch.autograd.grad(victim.answer(victim.model, images).sum(), images)[0]

        image = make_images(pipeline, state, batch)
        alone(make_images(pipeline, state, small))
        return lambda: alone(image)
    step(state, small)
    return lambda: step(state, batch)


def peak_mb(name: str, b: int, side: int, micro_batch: int | None, device: str) -> float:
    """Of one call, above what was held before it; for a fresh process."""
    call = make(name, b, side, micro_batch, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / MB
    if not RESET.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        unit = 1 if sys.platform == "darwin" else 1024
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / MB
    return peak_of(call)


def peak_of(call: Callable[[], object]) -> float:
    """The peak of resident memory in a call, above what was held before it; only where Linux counts it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # what the set-up has freed and the allocator kept is not the call's
    RESET.write_text("5")
    before = resident_mb("VmRSS")
    call()
    return resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    """A figure of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(
    name: str, b: int, side: int, micro_batches: tuple[int, ...], options: Options, record: Record
) -> None:
    """One victim: alone, the step, and the step in micro-batches."""
    variants = {"victim": 0, "step": None} | {f"step, micro_batch {n}": n for n in micro_batches}
    # the small form does without processes of their own
    tasks = None if options.small else 1
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=tasks) as pool:
        rounds = [
            {v: pool.submit(peak_mb, name, b, side, n, options.device).result() for v, n in variants.items()}
            for _ in range(1 if options.small else min(options.repeats, 3))
        ]
    for variant in variants:
        record.add(
            f"{name}, {b} x {side} x {side}, {variant}",
            peak_mb=statistics.median(r[variant] for r in rounds),
            over_victim=quartiles([r[variant] / r["victim"] for r in rounds]),
            frames_above_victim=quartiles(
                [(r[variant] - r["victim"]) * MB / (b * 3 * side * side * 4) for r in rounds]
            ),
        )


def main(argv: list[str] | None = None) -> None:
    """Every victim."""
    options = read_options(__doc__, argv, ("cpu", "cuda"))
    record = Record("memory", options)
    if options.small:
        measure("mobilenet_v3_small", 2, 96, (1,), options, record)
    else:
        for name in ("resnet18", "mobilenet_v3_small"):
            measure(name, 8, 640, (4, 1), options, record)


if __name__ == "__main__":
    main()
