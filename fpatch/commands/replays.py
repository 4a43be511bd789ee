"""What was logged is run again."""

import argparse
from collections.abc import Sequence
from typing import Any

from fpatch.commands.form import add_command
from fpatch.console import console, progress_bars, say


def add(commands: Any) -> None:
    """Give the command line these commands."""
    replay = add_command(
        commands,
        "replay",
        _replay,
        "rerun logged images from their logged samples",
        "Photographs, samples, results and composed images are compared, images by their digests, which is "
        "what a table holds of them. How to look at one, or at what it would be with another value sampled, "
        'stands in docs/analysis.md, "One logged image again"; fpatch grid does that to all.',
    )
    replay.add_argument("run_folder", metavar="RUN", help="the run folder")
    replay.add_argument(
        "--rows", metavar="A:B", help="rows of the table, e.g. 0:16, or one, e.g. 3 (default: all)"
    )
    replay.add_argument(
        "--table", default="test", help="test, test-last, validation-00000100 and the like (default: test)"
    )
    replay.add_argument("--step", type=int, metavar="N", help="rerun training update N instead")
    replay.add_argument(
        "--verify", action="store_true", help="exit 1 if anything is not bit for bit as logged"
    )


def _replay(options: argparse.Namespace) -> int:
    from fpatch.run_replay import replay_run, replay_step

    if options.step is not None:
        again = replay_step(options.run_folder, options.step)
        _say_environment(again.environment)
        console.print(f"update {again.step}, from the checkpoint of step {again.start}")
        for name, (logged, found) in again.scalars.items():
            mark = "identical" if logged == found or (logged != logged and found != found) else "DIFFERENT"
            say(f"  {name:<32} logged {logged!r}  rerun {found!r}  {mark}")
        return 0 if again.identical or not options.verify else 1
    with progress_bars() as report:
        result, environment = replay_run(options.run_folder, _read_slice(options.rows), options.table, report)
    _say_environment(environment)
    for row, found in sorted(result.differences.items()):
        say(f"row {row}: {'; '.join(found)}")
    different = len(result.differences)
    if different:
        console.print(f"largest difference of a number: {result.largest:g}")
    console.print(f"rows {len(result.rows)} identical {len(result.rows) - different} different {different}")
    return 1 if different and options.verify else 0


def _say_environment(differences: Sequence[str]) -> None:
    for sentence in differences:
        say(f"not the recorded execution: {sentence}")


def _read_slice(text: str | None) -> slice | None:
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        first = int(low) if low else 0
        return slice(first, int(high) if high else None) if colon else slice(first, first + 1 or None)
    except ValueError:
        raise ValueError(f"--rows must be A:B or a row number, got {text!r}") from None
