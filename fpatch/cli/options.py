"""What a command is to the command line: a name, a function, and what is said of it."""

import argparse
from typing import Any

OVERRIDES = (
    "Any setting can be given by its dotted name, with a TOML value: --optimizer.learning_rate 0.1 "
    "--objective.weights.vanish 2 --pipeline.camera/exposure.stops '[-1, 1]' "
    "--pipeline.camera/exposure.stops.low -2 --seed 1"
)


def add_command(
    commands: Any, name: str, run: Any, help: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A command that calls `run` with its options, and returns what that returns as exit code."""
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog)
    parser.set_defaults(run=run)
    return parser


def read_number(text: str) -> float:
    """A sampled value, as it is typed: a number, or true or false for 1 and 0.

    Raises:
        ValueError: If it is none of these.
    """
    return {"true": 1.0, "false": 0.0}[text] if text in ("true", "false") else float(text)
