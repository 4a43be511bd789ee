"""Patch-steps per second of a population in one step, over those of a loop of separate steps.

Every member has a patch, a learning rate and draws of its own, on the same four photographs; patches are a
quarter of the picture wide. The population is timed with all members at once, and with some of them at a
time, as many as a processor's cache holds best: 32 rows of 64 x 64 pixels, 8 of 224 x 224.

    python benchmarks/population.py [--repeats 11] [--device cpu] [--small]
"""

from harness import Options, Record, interleave, read_options
from workloads import make_batch, make_pipeline, make_victim

import fpatch
from fpatch import random

ROWS = 4
"""Of each member."""
ROWS_AT_ONCE = {64: 32, 224: 8}


def measure(name: str, p: int, side: int, options: Options, record: Record) -> None:
    """One victim, with so many members on pictures of one size."""
    pipeline = make_pipeline(make_victim(name), side // 4)
    batches = [make_batch(ROWS, side, patch_px=side / 4)] * p
    objectives = [fpatch.Objective(pipeline, {pipeline.terms[0]: 1.0})] * p
    settings = [fpatch.Optimizer(learning_rate=0.1 * (i + 1) / p) for i in range(p)]
    optimizers = [fpatch.make_optimizer(s, 1000) for s in settings]
    states = [fpatch.make_state(objectives[i], optimizers[i], random.key(i)) for i in range(p)]
    separate = [fpatch.make_step(objectives[i], optimizers[i]) for i in range(p)]
    at_once = {"all": None, "some": ROWS_AT_ONCE[side] // ROWS}
    steps = {
        how: fpatch.make_population_step(objectives, optimizers, members_at_once=num)
        for how, num in at_once.items()
    }
    times = interleave(
        {
            "loop": lambda: [separate[i](states[i], batches[i]) for i in range(p)],
            "all": lambda: steps["all"](states, batches),
            "some": lambda: steps["some"](states, batches),
        },
        options.repeats,
        device=options.device,
    )
    record.add(
        f"{name}, {p} patches, {ROWS} x {side} x {side} each",
        **{f"{how}_per_s": 1000 * p / times.ms(how) for how in ("loop", "all", "some")},
        all_ratio=times.ratio("loop", "all"),
        some_ratio=times.ratio("loop", "some"),
    )


def main(argv: list[str] | None = None) -> None:
    """Every number of members and size of picture."""
    options = read_options(__doc__, argv)
    record = Record("population", options.device, options.small)
    if options.small:
        workloads = [("tiny", 10, 64)]
    else:
        workloads = [("mobilenet_v3_small", p, side) for p in (16, 64) for side in (64, 224)]
    for name, p, side in workloads:
        measure(name, p, side, options, record)
    record.write(options.json)


if __name__ == "__main__":
    main()
