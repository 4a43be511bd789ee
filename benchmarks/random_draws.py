"""The time of random numbers: the draws of one training step, and fields over `torch.rand` of the same size.

The draws are those of the pipeline of `workloads` for a batch: keys of rows, of stages and of settings, and a
number or a few from each. A field is drawn as a stage draws it, from a key per row, eager and compiled;
`torch.rand` draws from one generator, in any order that suits it, and eager, which is its faster form.

    python benchmarks/random_draws.py [--repeats 11] [--device cpu|cuda] [--small]
"""

import torch
from harness import Options, Record, interleave, read_options
from torch import Tensor
from workloads import make_batch, make_pipeline, make_victim

from fpatch import random
from fpatch.graph.keys import row_keys

CALLS = 20
"""Steps per timing, since one takes a few milliseconds."""


def measure_step(b: int, side: int, options: Options, record: Record) -> None:
    """All that a step draws."""
    pipeline, batch = make_pipeline(make_victim("tiny")), make_batch(b, side)

    def draw() -> None:
        for step in range(CALLS):
            keys = row_keys(random.fold_in(random.fold_in(random.key(0), "train"), step), batch)
            sample = pipeline.sample(keys, batch)
        assert sample

    times = interleave({"draws": draw}, options.repeats)
    record.add(f"draws of a step, {b} rows", draws_ms=times.ms("draws") / CALLS)


def measure_field(name: str, b: int, side: int, options: Options, record: Record) -> None:
    """One kind of field."""
    keys = random.split(random.key(1), b).to(options.device)
    shape = (3, side, side)

    def field(keys: Tensor) -> Tensor:
        return getattr(random, name)(keys, shape)

    compiled = torch.compile(field)
    times = interleave(
        {
            "field": lambda: field(keys),
            "compiled": lambda: compiled(keys),
            "rand": lambda: torch.rand(b, *shape, device=options.device),
        },
        options.repeats,
        device=options.device,
    )
    record.add(
        f"{name}, {b} x 3 x {side} x {side}",
        field_ms=times.ms("field"),
        compiled_ms=times.ms("compiled"),
        rand_ms=times.ms("rand"),
        ratio=times.ratio("field", "rand"),
        compiled_ratio=times.ratio("compiled", "rand"),
    )


def main(argv: list[str] | None = None) -> None:
    """The small draws, then the fields."""
    options = read_options(__doc__, argv, ("cpu", "cuda"))
    record = Record("random_draws", options)
    b, side = (2, 32) if options.small else (8, 640)
    measure_step(b, side, options, record)
    for name in ("gaussian_field", "uniform"):
        measure_field(name, b, side, options, record)


if __name__ == "__main__":
    main()
