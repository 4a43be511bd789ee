"""Progress callbacks."""

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""A callback, called with the task, the amount done, the total and a note.

A task of one step that is done is a fact to show, such as the run folder: its name and its note."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Ignore all progress.

    Example:
        >>> from fpatch.core.progress import silent
        >>> silent("rendering scenes", 3, 100, "")  # prints nothing
    """
