"""Progress bars and lines; names in them are shown, never run as markup or control codes."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from fpatch.core import progress
from fpatch.core.names import show

_PAUSE_S = 30.0
"""Seconds between two lines of a task."""


def write_known(stream: Any, text: str) -> None:
    r"""Write a text to a stream; characters that its encoding lacks become escapes.

    Example:
        >>> import io
        >>> from fpatch.core.display import write_known
        >>> stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        >>> write_known(stream, "Motorhaube \u00e4")
        >>> stream.flush()
        >>> stream.buffer.getvalue()
        b'Motorhaube \\xe4'
    """
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


class _Standard:
    """Standard output or standard error of the moment; a failed write drops the text and ends no work."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    @property
    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    def write(self, text: str) -> int:
        with suppress(OSError, AttributeError):  # a closed one is None
            write_known(self._stream, text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, AttributeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Console(Console):
    """A console that writes the control characters of any text as escapes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=show(segment.text))

    @property
    def file(self) -> Any:
        """Standard output, or standard error, of the moment."""
        return _Standard("stderr" if self.stderr else "stdout")

    @file.setter
    def file(self, new_file: Any) -> None:
        raise AttributeError("a console of fpatch writes to the standard files")


def _make_console(stderr: bool = False) -> Console:
    made = _Console(highlight=False, markup=False, emoji=False, stderr=stderr)
    if not made.is_terminal:
        made.width = max(made.width, 110)  # a file or a pipe has no width
    return made


console = _make_console()
"""Standard output."""


class Lines:
    """Progress as lines, where no bars can be: one when a task is done, and one every 30 seconds.

    Example:
        >>> from fpatch.core.display import Lines
        >>> seconds = iter([0.0, 20.0, 40.0])
        >>> on_progress = Lines(print, clock=lambda: next(seconds))
        >>> on_progress("run folder", 1, 1, "runs/20260101-120000-study")
        run folder: runs/20260101-120000-study
        >>> on_progress("training", 1, 500, "loss 0.9312")
        >>> on_progress("training", 100, 500, "loss 0.5120")
        >>> on_progress("training", 200, 500, "loss 0.3120")
        training: 200 of 500, loss 0.3120, about 1 min left
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Print lines by a function.

        Args:
            say: Prints a line.
            clock: The time in seconds.
        """
        self._say, self._clock = say, clock
        self._tasks: dict[str, tuple[float, int, float]] = {}

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Receive the progress of a task."""
        if done >= total:
            self._tasks.pop(task, None)
            self._say(f"{task}: {note}" if total == 1 and note else f"{task}: {total} done {note}".rstrip())
            return
        now = self._clock()
        begun, first, said = self._tasks.get(task, (now, done, now))
        if done < first:
            begun, first = now, done
        if now - said >= _PAUSE_S:
            left = (now - begun) / (done - first) * (total - done) if done > first else float("nan")
            parts = [f"{done} of {total}", note, _duration(left)]
            self._say(f"{task}: {', '.join(filter(None, parts))}")
            said = now
        self._tasks[task] = (begun, first, said)


def _duration(seconds: float) -> str:
    """Say how much time is left; "" if it is not known."""
    if seconds != seconds:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left"
    if minutes < 60:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60} min left"


@contextmanager
def progress_bars(lines: str | None = None, on: Console = console) -> "Iterator[progress.Progress]":
    """Show a bar per task on a terminal and in a notebook; elsewhere print lines.

    Args:
        lines: A prefix of task names; these tasks end in a line on a terminal, too.
        on: The console.

    Yields:
        The progress callback. A task of one step is a line: its name and its note.

    Example:
        >>> from fpatch.core.display import progress_bars
        >>> with progress_bars() as on_progress:
        ...     on_progress("training", 1, 2, "")
        ...     on_progress("training", 2, 2, "loss 0.1")
        training: 2 done loss 0.1
    """

    def say(line: str) -> None:
        on.print(line, soft_wrap=True)

    if not _can_show_bars(on):
        yield Lines(say) if lines is None else _notes(lines, Lines(say))
        return
    columns = [
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    ]
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=on) as bars:

        def on_progress(task: str, done: int, total: int, note: str = "") -> None:
            if total == 1 and note and task not in tasks:
                say(f"{task}: {note}")
                return
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note=note)
            elif bars.tasks[tasks[task]].finished and done < total:
                bars.reset(tasks[task], total=total)
            bars.update(tasks[task], completed=done, total=total, note=note)
            if done == total and lines is not None and task.startswith(lines):
                say(f"{task}: {note}".rstrip())
                bars.update(tasks[task], visible=False)

        yield on_progress


def _notes(prefix: str, show_line: Lines) -> progress.Progress:
    """End the tasks with a prefix by their note alone."""

    def on_progress(task: str, done: int, total: int, note: str = "") -> None:
        is_note = done == total and task.startswith(prefix)
        show_line(task, 1 if is_note else done, 1 if is_note else total, note)

    return on_progress


def _can_show_bars(on: Console) -> bool:
    """Return whether a console is a terminal, or a notebook with the package that bars need there."""
    return on.is_terminal or (on.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


@contextmanager
def shown(on_progress: progress.Progress | None, lines: str | None = None) -> "Iterator[progress.Progress]":
    """Return a progress callback; None: bars or lines on standard error, as Python's users expect.

    Example:
        >>> from fpatch.core.display import shown
        >>> from fpatch.core.progress import silent
        >>> with shown(silent) as on_progress:
        ...     on_progress is silent
        True
    """
    if on_progress is not None:
        yield on_progress
        return
    with progress_bars(lines, _make_console(stderr=True)) as made:
        yield made
