"""Locks of run folders, and names for new ones."""

import fcntl
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunError(ValueError):
    """A run folder that cannot be used in its present state."""


class LockedError(RunError):
    """A folder that another process writes to."""


@contextmanager
def lock(folder: Path, error: type[RunError], what: str) -> Iterator[None]:
    """Lock a folder; raise `error` if another process holds it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error(f"{folder} is being {what} by another process; wait for it, or end it") from None
        yield


def new_folder(root: Path, name: str) -> Path:
    """Make `root/<time>-<name>/`, with a number after it if the name is taken.

    Raises:
        OSError: If the folder cannot be made.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for i in itertools.count():
        folder = root / f"{stamp}-{name}{f'-{i}' if i else ''}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if root.is_dir():
                continue
            raise
        except OSError as error:
            raise type(error)(f"log.runs: {root} cannot be written: {error.strerror}") from error
        return folder
    raise AssertionError
