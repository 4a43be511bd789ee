"""The process of a command: its output never ends its work, and a signal ends it in order."""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO

from fpatch.core.display import write_known

_SAME_STOP_S = 1.0
"""Signals within this time are one: a terminal, `timeout` or a launcher may send a stop twice."""


@dataclass
class Stop:
    """The signal that ended a command.

    Attributes:
        number: Its number; that of Ctrl-C until one arrives.
        time: The time of its arrival, 0 before it.
    """

    number: int = signal.SIGINT
    time: float = 0.0

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as in shells."""
        return 128 + self.number

    @property
    def sentence(self) -> str:
        """The sentence for the user."""
        by = "" if self.number == signal.SIGINT else f" by {signal.Signals(self.number).name}"
        return f"stopped{by}"


class Lasting:
    """A stream whose reader may go away, or whose disk may be full: later writes are dropped.

    Attributes:
        error: The error of the first write that failed; None if none did.

    Example:
        >>> import os
        >>> from fpatch.cli.process import Lasting
        >>> reader, writer = os.pipe()
        >>> os.close(reader)
        >>> stream = Lasting(os.fdopen(writer, "w"))
        >>> print("nobody reads this", file=stream, flush=True)
        >>> stream.is_broken_pipe
        True
    """

    def __init__(self, stream: TextIO) -> None:
        """Wrap a stream."""
        self._stream = stream
        self.error: OSError | None = None

    @property
    def is_broken_pipe(self) -> bool:
        """Whether the reader went away."""
        return self.error is not None and self.error.errno == errno.EPIPE

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        if self.error is None:
            try:
                write_known(self._stream, text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Keep the error; Python and C libraries then write to nowhere."""
        self.error = error
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[Lasting]:
    """Let no failed write to standard output or standard error end the command.

    Yields:
        Standard output. When the block ends, an error other than a broken pipe is said on standard error.
    """
    _fill_standard_files()
    before = sys.stdout, sys.stderr
    output, errors = (Lasting(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        output.flush()
        if output.error is not None and not output.is_broken_pipe:
            why = output.error.strerror or output.error
            print(f"fpatch: the output could not be written ({why})", file=errors)
        errors.flush()
        sys.stdout, sys.stderr = before


def _fill_standard_files() -> None:
    """Open closed standard files on nowhere: a file of the run would get their numbers and their text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """Raise `KeyboardInterrupt` on Ctrl-C, SIGTERM and SIGHUP; a second signal ends the process at once.

    A signal that the process was started to ignore, as by nohup, stays ignored.

    Yields:
        The signal, which is known once one has arrived.
    """
    found = Stop()

    def stop(number: int, frame: FrameType | None) -> None:
        if not found.time:
            found.number, found.time = number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - found.time > _SAME_STOP_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, stop)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
