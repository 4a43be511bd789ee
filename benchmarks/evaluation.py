"""The peak memory of an evaluation with few rows and with many, each in a process of its own.

The victim has one rule, so that images are nearly all that an evaluation needs. Each runs with and without
the patch, after an evaluation of one block, with the settings of the allocator that the command line makes.
Beside the peak stands the size of all images, one of floats per row: memory that kept them would grow by it.

    python benchmarks/evaluation.py [--repeats 3] [--small]

At most 3 processes of a kind are started. Only Linux counts the peak of a part of a process.
"""

import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from harness import Options, Record, read_options
from memory import MB, RESET, peak_of

from fpatch import evaluate, keep_freed_memory, random
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.conditions import NONE, PATCH, make_conditions


def peak_mb(rows: int, side: int) -> float:
    """Of one evaluation, above what was held before it; for a fresh process."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        study = tiny_study(folder, {"data.size": [side, side]})
        test, scenes = study.pipeline.at("test"), study.data.open().split("test")
        params = test.init(random.key(0))
        made = make_conditions(test, params, random.key(1))
        shown = {c: made[c] for c in (PATCH, NONE)}

        def call(num_rows: int) -> object:
            draws = num_rows // len(scenes)
            return evaluate(test, params, scenes, random.key(2), num_draws=draws, conditions=shown)

        call(16)
        return peak_of(lambda: call(rows))


def measure(counts: tuple[int, ...], side: int, options: Options, record: Record) -> None:
    """The same evaluation with each number of rows."""
    repeats = 1 if options.small else min(options.repeats, 3)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for rows in counts:
            peaks = [pool.submit(peak_mb, rows, side).result() for _ in range(repeats)]
            record.add(
                f"evaluation, {rows} rows of {side} x {side}",
                peak_mb=statistics.median(peaks),
                all_images_mb=rows * 3 * side * side * 4 / MB,
            )


def main(argv: list[str] | None = None) -> None:
    """From a hundred rows to five thousand."""
    options = read_options(__doc__, argv)
    if not RESET.exists():
        raise SystemExit("benchmarks/evaluation.py measures on Linux only")
    measure(
        (32,) if options.small else (100, 1000, 5000),
        32 if options.small else 128,
        options,
        Record("evaluation", options),
    )


if __name__ == "__main__":
    main()
