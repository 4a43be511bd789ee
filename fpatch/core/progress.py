"""Who is told how far a long task is."""

from collections.abc import Callable

Report = Callable[[str, int, int, str], None]
"""Told of progress: the task, how much is done, of how much, and a note."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""
