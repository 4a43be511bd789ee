"""Helpers that register commands and read their arguments."""

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any

OVERRIDES = (
    "Every setting of the study is an option by its dotted name, with a TOML value: "
    "--optimizer.learning_rate 0.1, --pipeline.camera/exposure.stops '[-1, 1]', "
    "--pipeline.camera/exposure.stops.low -2, --seed 1."
)


class Paragraphs(argparse.HelpFormatter):
    """Wrap each paragraph, and leave a paragraph with indented lines as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if "\n " in p else textwrap.fill(p, width) for p in paragraphs)


def add_command(
    commands: Any, name: str, run: Any, help: str, more: str = "", examples: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Register a command.

    Args:
        commands: The subparsers of the command line.
        name: The name of the command.
        run: A function of the parsed options; it returns the exit code.
        help: One line, in lower case.
        more: A paragraph below the options.
        examples: Whole commands, shown last.
    """
    shown = "\n".join(["examples:", *(f"  fpatch {example}" for example in examples)])
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog="\n\n".join(filter(None, [more, shown if examples else ""])),
        formatter_class=Paragraphs,
    )
    parser.set_defaults(run=run)
    return parser


def take_checkpoint(command: argparse.ArgumentParser) -> None:
    """Add the options that name a split and a checkpoint."""
    command.add_argument("--split", choices=("test", "validation"), default="test", help="(default: test)")
    command.add_argument("--checkpoint", default="best", help="best, last or step-00000100 (default: best)")


def take_data_root(command: argparse.ArgumentParser) -> None:
    """Add the option that names the folder of the data of a run that was moved or sent."""
    command.add_argument(
        "--data.root",
        dest="data_root",
        metavar="DIR",
        help="the folder of the tables, images and weights, if they are not where they were",
    )


def take_mlflow(command: argparse.ArgumentParser) -> None:
    """Add the option that names an MLflow server for the records of a run folder."""
    command.add_argument(
        "--mlflow-uri",
        help="an MLflow server for the records (default: the recorded one, if you have named it yourself)",
    )


def read_number(text: str) -> float:
    """Read a sampled value: a number, or true or false for 1 and 0.

    Raises:
        ValueError: If the text is none of these.
    """
    return {"true": 1.0, "false": 0.0}[text] if text in ("true", "false") else float(text)
