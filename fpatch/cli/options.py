"""Helpers that register commands and read their arguments."""

import argparse
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fpatch.core.text import read_number as text_number
from fpatch.core.text import read_whole as text_whole

if TYPE_CHECKING:
    from fpatch.cli.answers import Answer

MEASURED = (
    "Settings of [evaluate], of [data], of metrics, --seed and --device are options by their dotted names: "
    "--evaluate.num_draws 4, --evaluate.controls.poster poster.png, --data.objects other.csv, --data.test "
    "night, --pipeline.hit.goal stop; --defense.few.stage defend.bit_depth puts a stage before the victim. "
    "Results are named after them, and replace no others."
)
OVERRIDES = (
    "Every setting of the study is an option by its dotted name, with a TOML value: "
    "--optimizer.learning_rate 0.1, --pipeline.camera/exposure.stops '[-1, 1]', "
    "--pipeline.camera/exposure.stops.low -2, --seed 1. --defense.few.stage defend.bit_depth puts a stage "
    "before the victim."
)


class Paragraphs(argparse.HelpFormatter):
    """Wrap each paragraph, and leave a paragraph with indented lines as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if "\n " in p else textwrap.fill(p, width) for p in paragraphs)


def add_command(
    commands: Any,
    name: str,
    run: "Callable[[argparse.Namespace], Answer]",
    help: str,
    more: str = "",
    examples: Sequence[str] = (),
    found: str = "",
) -> argparse.ArgumentParser:
    """Register a command.

    Args:
        commands: The subparsers of the command line.
        name: The name of the command.
        run: A function of the parsed options; it returns the exit code and the facts for `--json`.
        help: One line, in lower case.
        more: A paragraph below the options.
        examples: Whole commands, shown below it.
        found: The meaning of exit code 1, if the command can end with it.
    """
    codes = ", ".join(
        ["exit codes: 0 done", *([f"1 {found}"] if found else []), "2 wrong input, 130 stopped"]
    )
    shown = "\n".join(["examples:", *(f"  fpatch {example}" for example in examples)])
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog="\n\n".join(filter(None, [more, shown if examples else "", codes])),
        formatter_class=Paragraphs,
    )
    parser.set_defaults(run=run, command=parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, and all else on standard error"
    )
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


def take_device(command: argparse.ArgumentParser) -> None:
    """Add the option that names another device than the recorded one."""
    command.add_argument(
        "--device", help="auto, cpu, cuda or one GPU such as cuda:1 (default: the recorded one)"
    )


def take_portable(command: argparse.ArgumentParser) -> None:
    """Add the option for the bits of every processor, which is short for `--evaluate.portable true`."""
    command.add_argument(
        "--portable",
        action="store_true",
        help="measure with kernels that give the same bits on every x86-64 processor: evaluate.portable",
    )


def take_mlflow(command: argparse.ArgumentParser) -> None:
    """Add the option that names an MLflow server for the records of a run folder."""
    command.add_argument(
        "--mlflow-uri",
        help="an MLflow server for the records (default: the recorded one, if you have named it yourself)",
    )


def read_number(field: str, text: str) -> float:
    """Read a sampled value: a number, or true or false for 1 and 0.

    Raises:
        ValueError: If the text is none of these.
    """
    return {"true": 1.0, "false": 0.0}[text] if text in ("true", "false") else text_number(field, text)


def whole(low: int | None = None, high: int = 10**9) -> Callable[[str], int]:
    """Return the reader of an option that is a whole number."""

    def read(text: str) -> int:
        with _as_argument():
            value = text_whole("it", text, low)
            if value > high:
                raise ValueError(f"it must be at most {high}, got {value}")
            return value

    return read


def check_texts(options: argparse.Namespace) -> None:
    """Check that no argument is empty, endless, `--`, or holds the character NUL.

    Raises:
        ValueError: If one does; the message names it as it is typed.
    """
    typed = {action.dest: action for action in options.command._actions}
    for name, value in vars(options).items():
        values = value if isinstance(value, list | tuple) else (value,)
        if [] in values or (value == [] and name != "set"):  # argparse drops the value of --NAME=--
            raise ValueError(f"{_option(typed[name])}: '--' is no value; leave it out, or correct it")
        for given in values:
            if isinstance(given, str) and (not given.strip() or "\0" in given or len(given) > _LONGEST):
                what = "the text is empty" if not given.strip() else f"no name or path is like {given!r:.60}"
                raise ValueError(f"{_option(typed[name])}: {what}; leave it out, or correct it")


def _option(action: argparse.Action) -> str:
    """Return an option or argument as it stands in the help."""
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


_LONGEST = 4096


def number(text: str) -> float:
    """Read an option that is a number."""
    with _as_argument():
        return text_number("it", text)


@contextmanager
def _as_argument() -> Iterator[None]:
    """Turn an error into one of the parser, which names the option."""
    try:
        yield
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def read_axis(text: str) -> tuple[str, list[float]]:
    """Read `path=-1,0,1` or `path=-1:1:5`."""
    path, _, values = text.partition("=")
    try:
        if ":" in values:
            low_text, high_text, count = values.split(":")
            low, high = (read_number("--over", end) for end in (low_text, high_text))
            steps = text_whole("COUNT", count, 1)
        else:
            return path, [read_number("--over", value) for value in values.split(",")]
    except ValueError:
        shown = text if len(text) < 120 else f"{text[:117]}..."
        raise ValueError(f"--over must be PATH=-1,0,1 or PATH=LOW:HIGH:COUNT, got {shown!r}") from None
    if steps > _MOST_VALUES:
        raise ValueError(f"--over: COUNT must be at most {_MOST_VALUES}, got {steps} in {text!r}")
    return path, [low + (high - low) * i / max(steps - 1, 1) for i in range(steps)]


_MOST_VALUES = 10_000
