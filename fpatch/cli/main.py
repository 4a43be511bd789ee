"""The command line: its parser, the overrides of settings, and errors as sentences."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fpatch.cli import defenses, hardening, measurements, replays, studies, sweeps
from fpatch.cli.answers import to_document
from fpatch.cli.console import console, show_warnings
from fpatch.cli.options import check_texts
from fpatch.cli.portable import must_start_again, run_again
from fpatch.cli.process import Stop, lasting_output, stopped_by_signals
from fpatch.core.names import show
from fpatch.core.text import read_value
from fpatch.core.version import __version__
from fpatch.runs.imports import holds_a_run
from fpatch.runtime.memory import CUBLAS_WORKSPACE, keep_freed_memory

_EPILOG = """\
begin:
  fpatch demo --quick                      everything once, in about a minute
  fpatch describe study.toml               the stages of a study, in order
  fpatch doctor study.toml                 why its patch would not learn

train and measure:
  fpatch train study.toml --train.num_steps 1000 --pipeline.camera/exposure.stops.low -2
  fpatch resume runs/20260101-120000-study
  fpatch evaluate runs/20260101-120000-study

look closer:
  fpatch replay runs/20260101-120000-study --verify
  fpatch grid runs/20260101-120000-study --over camera/exposure/stops=-1:1:5
  fpatch transfer runs/20260101-120000-a runs/20260101-130000-b
  fpatch matrix runs/20260101-120000-study --defense defend.median
  fpatch analyze runs/20260101-120000-study
  fpatch score truth.json detections.json --iou 0.5 --score 0.4

search settings:
  fpatch sweep study.toml --sweep.num_trials 24
  fpatch sweep resume runs/20260101-120000-study-sweep

train the victim against patches:
  fpatch harden study.toml

fpatch COMMAND --help shows the options of a command. With --json a command prints one JSON document, and
all else on standard error.
A study is like a script: its ids may import modules from the working folder. A run folder runs no code.
Exit codes: 0 done, 1 a difference or an obstacle was found, 2 wrong input, 3 an error that nobody expected,
130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. A stop saves the finished steps; a second one ends the
process at once. Output that cannot be written ends no work; it is exit code 1 of a command that only prints.
"""

_TAKE_OVERRIDES = (
    *("train", "describe", "doctor", "sweep", "harden"),
    *("evaluate", "grid", "transfer", "matrix"),
)
_ON_RUNS = ("evaluate", "grid", "transfer", "matrix", "replay", "resume", "analyze")
"""Commands on run folders, in which `--data.root` names the folder of the data, and is no setting."""
_WITHOUT_STUDY = ("demo", "score")
_ONLY_PRINT = ("describe", "doctor", "score", "sweep status", "sweep best", "--help", "-h", "--version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: see `_EPILOG`."""
    show_warnings()
    if arguments is not None:
        return _run(arguments)
    keep_freed_memory()  # the process is ours
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    words = sys.argv[1:]
    with lasting_output() as output, stopped_by_signals() as stop:
        try:
            code = _run(words, stop)
        except SystemExit as leave:  # of the parser, after the help or a wrong argument
            code = leave.code if isinstance(leave.code, int) else 1
        output.flush()
    is_lost = output.error is not None and not output.is_broken_pipe
    return code or int(is_lost and bool({words[0], " ".join(words[:2])} & {*_ONLY_PRINT}))


def _run(given: Sequence[str], stop: Stop | None = None) -> int:
    words = list(given)
    try:
        overrides = _take_overrides(words) if words and words[0] in _TAKE_OVERRIDES else {}
        options, unknown = _make_parser().parse_known_args(words)
        if unknown:
            from fpatch.cli.unknown import refuse_unknown

            refuse_unknown(unknown, words[0], words[0] in _TAKE_OVERRIDES)
        asked = {"evaluate.portable": True} if getattr(options, "portable", False) else {}
        options.overrides = overrides | asked
        check_texts(options)
        if must_start_again(options):
            return run_again(given, own_process=stop is not None)
        here = _working_folder()  # without one, libraries end the process
        with _modules_of_a_study(here) if words[0] not in _WITHOUT_STUDY else nullcontext():
            console.stderr = options.json
            try:
                answer = options.run(options)
            except SystemExit as leave:
                return _say_exit(leave)
            finally:
                console.stderr = False  # of the caller's process, which may go on printing
            if options.json and answer.facts:
                print(to_document(answer.facts), end="")
            return answer.code
    except KeyboardInterrupt as interrupt:
        return _say_stop(stop or Stop(), interrupt)
    except (ValueError, ImportError, OSError) as error:
        return _refuse(_message(error), error)
    except Exception as error:
        if isinstance(error, SystemError) and isinstance(error.__cause__, KeyboardInterrupt):
            return _say_stop(stop or Stop(), error)  # as compiled libraries wrap it
        if (what := _memory_message(error)) is not None:
            return _refuse(what, error)
        print(show(traceback.format_exc()), file=sys.stderr, end="")
        print(_UNKNOWN, file=sys.stderr)
        return 3


def _say_exit(leave: SystemExit) -> int:
    """Print that code of a study ended the command, which is not done then; return an exit code but 0."""
    print(show(traceback.format_exc()), file=sys.stderr, end="")
    print(
        "fpatch: error: a module of yours ended the command by SystemExit, and it is not done; the lines "
        'above show where. Put what a module runs as a script below `if __name__ == "__main__":`',
        file=sys.stderr,
    )
    return leave.code if isinstance(leave.code, int) and leave.code else 1


def _say_stop(stop: Stop, interrupt: BaseException) -> int:
    """Print that a signal stopped the command, with the notes of the work; return the exit code."""
    notes = getattr(interrupt, "__notes__", ())
    print(show("; ".join([f"fpatch: {stop.sentence}", *notes])), file=sys.stderr)
    return stop.exit_code


def _refuse(sentence: str, error: Exception) -> int:
    """Print the sentence of an error and its notes; return the exit code of wrong input."""
    lines = "; ".join([sentence, *getattr(error, "__notes__", ())]).splitlines()
    cut = [line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} ... {line[-300:]}" for line in lines]
    print(show("fpatch: error: " + "\n".join(cut)), file=sys.stderr)
    return 2


_LONGEST = 1000
"""The longest line of an error; of a longer one the middle is left out."""


_UNKNOWN = """\
fpatch: error: nobody expected this error. If it comes from a module of yours, the lines above show where. \
Else it is a fault of fpatch: please report it as an issue of the repository, with these lines, the command \
and its input."""


def _memory_message(error: Exception) -> str | None:
    """Return a sentence if the memory of the machine, or of its GPU, is too small; else None."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, MemoryError) or re.search("not enough memory|out of memory|can't allocate", text):
        what = f"the memory does not suffice{f' ({text:.120})' if text else ''}"
        return f"{what}; lower train.batch_size, train.micro_batch, evaluate.block or data.size"
    return None


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise ValueError(f"the working folder cannot be used ({error.strerror}); go to another one") from None


@contextmanager
def _modules_of_a_study(here: str) -> Iterator[None]:
    """Search the working folder for the modules that a study names, after all installed ones.

    The folder of a run or a sweep is not searched: it may be somebody else's.
    """
    added = here not in sys.path and not holds_a_run(Path(here))
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _message(error: Exception) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename is not None:
        return f"{error.filename}: a file stands where a folder is needed; move it away"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r:.200} cannot be written as {error.encoding}; rename the file or folder"
    if isinstance(error, IsADirectoryError) and error.filename is not None:
        place = error.filename2 or error.filename
        return f"{place}: a folder stands where a file is needed; move it away"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fpatch",
        description="Train, measure and replay physical adversarial patches.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fpatch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for kind in (studies, replays, measurements, defenses, sweeps, hardening):
        kind.add(commands)
    return parser


def _take_overrides(words: list[str]) -> dict[str, Any]:
    """Remove every `--section.name value` from the words, and those of `--name`, `--seed` and `--device`.

    Values are TOML, or else strings.
    """
    overrides: dict[str, Any] = {}
    i = 0
    while i < len(words):
        name, equals, text = words[i].partition("=")
        is_setting = "." in name or name in ("--name", "--seed", "--device")
        if not name.startswith("--") or not is_setting or (name == "--data.root" and words[0] in _ON_RUNS):
            i += 1
            continue
        if not equals and i + 1 == len(words):
            raise ValueError(f"{name}: a value must follow, such as {name} 3")
        if not all(name.removeprefix("--").split(".")):
            raise ValueError(f"{name}: it is no name of a setting; give one such as --train.num_steps")
        if not equals:
            text = words.pop(i + 1)
        del words[i]
        if name == "--name":
            overrides["name"] = text
            continue
        overrides[name.removeprefix("--")] = read_value(text)
    return overrides


if __name__ == "__main__":
    sys.exit(main())
