"""Progress bars and lines on the console; names in them are shown, never run as markup or control codes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from fpatch.core.names import show

if TYPE_CHECKING:
    from fpatch.core import progress


class _Console(Console):
    """A console that writes the control characters of any text as escapes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=show(segment.text))


class _Shown(logging.Formatter):
    """A format of warnings that writes their control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return show(super().format(record))


def show_warnings() -> None:
    """Write the control characters in warnings as escapes, where Python prints them itself."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Shown())


console = _Console(highlight=False, markup=False, emoji=False)
if not console.is_terminal:
    console.width = max(console.width, 110)  # a file or a pipe has no width


def say(line: str) -> None:
    """Print a line without wrapping or markup.

    Example:
        >>> from fpatch.cli.console import say
        >>> say("[bold] is no markup here")
        [bold] is no markup here
    """
    console.print(line, soft_wrap=True)


@contextmanager
def progress_bars(lines: str | None = None) -> "Iterator[progress.Progress]":
    """Show a bar per task on a terminal; elsewhere print a line when a task is done.

    Args:
        lines: A prefix of task names; these tasks end in a line on a terminal, too.

    Yields:
        The progress callback.

    Example:
        >>> from fpatch.cli.console import progress_bars
        >>> with progress_bars() as on_progress:
        ...     on_progress("training", 1, 2, "")
        ...     on_progress("training", 2, 2, "loss 0.1")
        training: 2 done loss 0.1
    """
    columns = [
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    ]
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    # Leaving even disabled bars prints an empty line elsewhere than on a terminal, before rich 14.1.
    with bars if console.is_terminal else nullcontext():

        def on_progress(task: str, done: int, total: int, note: str = "") -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note=note)
            elif bars.tasks[tasks[task]].finished and done < total:
                bars.reset(tasks[task], total=total)
            bars.update(tasks[task], completed=done, total=total, note=note)
            is_line = lines is not None and task.startswith(lines)
            if done == total and (is_line or not console.is_terminal):
                what = note if is_line else f"{total} done {note}"
                console.print(f"{task}: {what}".rstrip())
                bars.update(tasks[task], visible=not is_line)

        yield on_progress
