"""Run a command on a damaged copy of a project, in this process, and judge what it answers."""
# ruff: noqa: E501, the tables of cases have a line for each

import contextlib
import faulthandler
import io
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from malformed.project import make_project

LIMIT_S = 10
"""The longest processor time of a case; a case that waits ends after ten times as long."""

LONGEST = 1500
"""The longest answer, in characters; that of a table lists 20 problems."""

_INTERNAL = re.compile(
    r"Traceback|NoneType|<class|<function|object is not|object has no|KeyError|TypeError|AttributeError"
    r"|\b(dict|str|int|float|ndarray|tuple)'|unsupported operand|not subscriptable|list index|unhashable"
    r"|0x[0-9a-f]{6}|positional argument|keyword argument|_io\.|PosixPath|\bnp\.|tensor\(|jaxtyping|beartype"
    r"|zip\(\)|datetime\.|cannot unpack|not enough values|too many values"
)
"""Words of Python's own that a person cannot act on."""


class Case(NamedTuple):
    """One malformed input.

    Attributes:
        name: Its group and what is wrong.
        words: The command; `{run}` and the like stand for the folders of the project.
        damage: Damages a fresh copy of the project, which is the working folder.
        codes: The allowed exit codes. With 0 among them the input is odd, but can be used.
        says: A pattern that the answer holds.
    """

    name: str
    words: tuple[str, ...]
    damage: Callable[[], object] = lambda: None
    codes: tuple[int, ...] = (2,)
    says: str = ""


class Answer(NamedTuple):
    """What a command did.

    Attributes:
        case: The input.
        fault: What is wrong with the answer; empty if nothing is.
        said: What it printed on stderr, or all if that is nothing.
        seconds: Its processor time.
    """

    case: Case
    fault: str
    said: str
    seconds: float


class _Hang(BaseException):
    """A case that took too long."""


@contextlib.contextmanager
def projects() -> Iterator[Callable[[], dict[str, str]]]:
    """Yield a function that makes the project anew, at one place, and returns the names of its folders."""
    before = Path.cwd()
    memory = Path("/dev/shm")  # a case copies a hundred files, which is slow on a busy disk
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fpatch-malformed-", dir=place) as folder:
        work, whole = Path(folder, "work"), Path(folder, "whole")
        names = make_project(work)
        shutil.copytree(work, whole)

        def renew() -> dict[str, str]:
            os.chdir(folder)
            shutil.rmtree(work)
            shutil.copytree(whole, work)
            os.chdir(work)
            return names

        try:
            yield renew
        finally:
            os.chdir(before)


def run_case(case: Case, renew: Callable[[], dict[str, str]]) -> Answer:
    """Damage a fresh project, run the command, and judge its answer."""
    from fpatch.cli.main import main

    names = renew()
    case.damage()
    words = [word.format(**names) if "{" in word else word for word in case.words]
    out, err, code, start = io.StringIO(), _Pipe(), None, time.process_time()
    logging.lastResort = logging.StreamHandler(err)
    logging.lastResort.setLevel(logging.WARNING)
    fault = ""
    for kind, number in ((signal.ITIMER_REAL, signal.SIGALRM), (signal.ITIMER_PROF, signal.SIGPROF)):
        signal.signal(number, _stop)
        signal.setitimer(kind, LIMIT_S if number == signal.SIGPROF else 10 * LIMIT_S)
    faulthandler.dump_traceback_later(11 * LIMIT_S, exit=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as stop:
        code = stop.code
    except _Hang:
        fault = f"it ran longer than {LIMIT_S} s\n{traceback.format_exc(limit=-6)}"
    except BaseException:
        fault = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    said = err.getvalue() or out.getvalue()
    return Answer(case, fault or _judge(case, code, said), said, time.process_time() - start)


class _Pipe(io.StringIO):
    """A stderr that is no terminal."""


def _stop(*_: object) -> None:
    raise _Hang


def _judge(case: Case, code: object, said: str) -> str:
    """Return what is wrong with an answer."""
    if code not in case.codes:
        return f"exit code {code}, where {' or '.join(map(str, case.codes))} is right"
    if found := _INTERNAL.search(said):
        return f"the answer shows Python: {found.group()!r}"
    if case.says and not re.search(case.says, said):
        return f"the answer does not say {case.says!r}"
    if code != 2:
        return ""
    sentences = re.findall(r"(?m)^fpatch( \w+)?: error: (.*)", said)
    if len(sentences) != 1:
        return f"{len(sentences)} errors, where 1 is right"
    if len(said) > LONGEST:
        return f"the answer has {len(said)} characters"
    if "please report" in said.lower():
        return "the answer takes it for an unknown error"
    return "" if len(said) > 50 else "the answer is too short to say what, where and how"


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run_cases(
    make: Callable[[], Iterable[Case]], show: Callable[[Answer], object] = lambda answer: None
) -> list[Answer]:
    """Make cases in a project, whose files they read to see what can be damaged; run them; return all answers."""
    os.environ["COLUMNS"] = "200"
    most = _mapped_bytes() + 6 * 2**30  # a case that fills the memory fails, and nothing else does
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    sys.dont_write_bytecode = True
    answers = []
    with projects() as renew:
        renew()
        for case in list(make()):
            answers.append(run_case(case, renew))
            show(answers[-1])
    return answers
