"""Patch-steps per second of a population in one step, over those of a loop of separate steps.

Every member has its own patch and its own draws, on the same photographs; the population is timed with all
members at once, and with so many at a time as make 16 rows.

    python benchmarks/population.py [--repeats 11] [--device cpu] [--small]
"""

from harness import Options, Record, interleave, read_options
from workloads import make_batch, make_pipeline, make_victim

import fpatch
from fpatch import random

ROWS_PER_MEMBER = 4
ROWS_AT_ONCE = 16


def measure(name: str, p: int, side: int, options: Options, record: Record) -> None:
    """One victim and one size of population; patches are an eighth of the picture wide."""
    victim, patch_px = make_victim(name), side // 4
    pipeline = make_pipeline(victim, patch_px)
    batch = make_batch(ROWS_PER_MEMBER, side, patch_px=patch_px)
    objective = fpatch.Objective(pipeline, {pipeline.terms[0]: 1.0})
    optimizers = [
        fpatch.make_optimizer(fpatch.Optimizer(learning_rate=0.01 * (i + 1)), 1000) for i in range(p)
    ]
    states = [fpatch.make_state(objective, o, random.key(i)) for i, o in enumerate(optimizers)]
    steps = [fpatch.make_step(objective, o) for o in optimizers]
    at_once = {"all": None, "some": ROWS_AT_ONCE // ROWS_PER_MEMBER}
    population = {
        how: fpatch.make_population_step([objective] * p, optimizers, members_at_once=num)
        for how, num in at_once.items()
    }

    def loop() -> None:
        for step, state in zip(steps, states, strict=True):
            step(state, batch)

    times = interleave(
        {
            "loop": loop,
            "all": lambda: population["all"](states, [batch] * p),
            "some": lambda: population["some"](states, [batch] * p),
        },
        options.repeats,
        device=options.device,
    )
    record.add(
        f"{name}, {p} members x {ROWS_PER_MEMBER} x {side} x {side}",
        loop_per_s=1000 * p / times.ms("loop"),
        all_per_s=1000 * p / times.ms("all"),
        some_per_s=1000 * p / times.ms("some"),
        ratio_all=times.ratio("loop", "all"),
        ratio_some=times.ratio("loop", "some"),
    )


def main(argv: list[str] | None = None) -> None:
    """Every size of population and of picture."""
    options = read_options(__doc__, argv)
    record = Record("population", options.device, options.small)
    if options.small:
        workloads = [("tiny", 2, 64)]
    else:
        workloads = [("mobilenet_v3_small", p, side) for p in (16, 64) for side in (64, 224)]
    for name, p, side in workloads:
        measure(name, p, side, options, record)
    record.write(options.json)


if __name__ == "__main__":
    main()
