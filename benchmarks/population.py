"""Patch-steps per second of a population in one step, over those of a loop of separate steps.

Every member has a patch, a learning rate and draws of its own, on the same four images; patches are a
quarter of the picture wide. How many members are held at once matters: on a processor the rows should fit
its cache.

    python benchmarks/population.py [--repeats 11] [--device cpu|cuda] [--small]
"""

from harness import Options, Record, interleave, read_options
from workloads import make_batch, make_pipeline, make_victim

import fpatch
from fpatch import random

ROWS = 4
"""Of each member."""
WORKLOADS = [(16, 64, (8, 16)), (64, 64, (8, 64)), (16, 224, (2, 16)), (64, 224, (2,))]
"""Members, side of the picture, and numbers of members at once."""


def measure(name: str, p: int, side: int, at_once: tuple[int, ...], options: Options, record: Record) -> None:
    """One victim and one workload; the members held at once are timed in turn."""
    pipeline = make_pipeline(make_victim(name, options.device), side // 4)
    batches = [make_batch(ROWS, side, patch_px=side / 4, device=options.device)] * p
    objectives = [fpatch.Objective(pipeline, {pipeline.terms[0]: 1.0})] * p
    settings = [fpatch.Optimizer(learning_rate=0.1 * (i + 1) / p) for i in range(p)]
    optimizers = [fpatch.make_optimizer(s, 1000) for s in settings]
    states = [
        fpatch.make_state(objectives[i], optimizers[i], random.key(i), options.device) for i in range(p)
    ]
    separate = [fpatch.make_step(objectives[i], optimizers[i]) for i in range(p)]
    steps = {num: fpatch.make_population_step(objectives, optimizers, members_at_once=num) for num in at_once}
    together = {str(num): lambda step=step: step(states, batches) for num, step in steps.items()}
    loop = {"loop": lambda: [separate[i](states[i], batches[i]) for i in range(p)]}
    times = interleave(loop | together, options.repeats, device=options.device)
    for num in map(str, at_once):
        record.add(
            f"{name}, {p} patches, {ROWS} x {side} x {side} each, {num} at once",
            loop_per_s=1000 * p / times.ms("loop"),
            population_per_s=1000 * p / times.ms(num),
            ratio=times.ratio("loop", num),
        )


def main(argv: list[str] | None = None) -> None:
    """Every number of members and size of picture."""
    options = read_options(__doc__, argv, ("cpu", "cuda"))
    record = Record("population", options)
    for p, side, at_once in [(2, 64, (1, 2))] if options.small else WORKLOADS:
        measure("tiny" if options.small else "mobilenet_v3_small", p, side, at_once, options, record)


if __name__ == "__main__":
    main()
