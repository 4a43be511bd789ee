"""Progress callbacks."""

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""A callback, called with the task, the amount done, the total and a note."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Ignore all progress; the default callback.

    Example:
        >>> from fpatch.core.progress import silent
        >>> silent("rendering scenes", 3, 100, "")  # prints nothing
    """
