"""Locks of run folders, and names for new ones."""

import errno
import fcntl
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fpatch.core.files import find_large, find_links, open_own
from fpatch.core.inputs import machine_memory


class RunError(ValueError):
    """A run folder that cannot be used in its present state."""


class LockedError(RunError):
    """A folder that another process writes to."""


@contextmanager
def lock(folder: Path, error: type[RunError], what: str) -> Iterator[None]:
    """Lock a folder for writing; raise `error` if another process holds it, or if it holds a link.

    A write through a link would leave the folder. The search for links costs a microsecond per file.

    Raises:
        RunError: If the folder cannot be written at all, too.
    """
    try:
        handle = open_own(folder / ".lock", os.O_WRONLY | os.O_CREAT)
    except OSError as cause:
        if cause.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise RunError(
            f"{folder} cannot be written ({cause.strerror}); copy it to a folder of yours"
        ) from None
    with open(handle, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error(f"{folder} is being {what} by another process; wait for it, or end it") from None
        for link in find_links(folder):
            raise RunError(
                f"{folder} is not written to: {link} is a link, or no regular file, and a write could leave "
                "the folder; put a copy of its content in its place, or remove it"
            )
        yield


def is_held(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder; nothing is written."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # no process has ever written
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def check_links(folder: Path) -> None:
    """Check that no link in a folder leads out of it, and that each file fits into the memory.

    Raises:
        RunError: If a link leads out or nowhere, or a file is larger than the memory of this machine.
    """
    inside = folder.resolve()
    for link in find_links(folder):
        target = Path(os.path.realpath(link))  # `resolve` raises for a link to itself
        if not target.is_relative_to(inside) or not (target.is_file() or target.is_dir()):
            raise RunError(
                f"{folder} is not read: {link} is a link out of the folder, or no regular file; put a copy "
                "of its content in its place, or remove it"
            )
    if (large := find_large(folder, machine_memory())) is not None:
        raise RunError(
            f"{folder} is not read: {large} is larger than the memory of this machine, which no command "
            "writes; restore it, or remove it"
        )


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
