"""Atomic writes, append-only files and digests; no write follows a link."""

import errno
import hashlib
import itertools
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from fpatch.core.inputs import check_encodable, check_file

_WAYS_OUT = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ": free some space and resume the run"
) | {errno.EISDIR: ": a folder stands where a file is needed; move it away"}
"""The way out of an error of a write, by its number."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the file and the way out to the error of a failed write, such as one to a full disk.

    Raises:
        OSError: If the body raises one; the original `errno` is kept.
    """
    try:
        yield
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "")
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; its old content is kept{way_out}"
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of a file; a reader sees the old or the new content, even after a crash.

    Raises:
        OSError: If the file cannot be written; it keeps its old content.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.core.files import write_atomic
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder, "a.json"), b"{}")
        ...     Path(folder, "a.json").read_text()
        '{}'
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            with open(open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def open_own(path: Path, flags: int) -> int:
    """Open a file for writing, if it is a regular file with one name; return its descriptor.

    A link may lead to any file of the user, a second name may be one of them, and a named pipe blocks.

    Raises:
        OSError: If it is none of these, or cannot be opened.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, _NO_LINK, str(path)) from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise OSError(errno.ELOOP, _NO_LINK, str(path))
    return handle


_NO_LINK = "it must be a regular file with one name, and no link; copy its content, and remove it"


def find_links(folder: Path) -> list[Path]:
    """Find all links, pipes, sockets and devices below a folder, without following any.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.core.files import find_links
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "images").mkdir()
        ...     Path(folder, "images", "notes").symlink_to("/etc")
        ...     [path.name for path in find_links(Path(folder))]
        ['notes']
    """
    return [Path(entry.path) for entry in _entries(folder) if not entry.is_file(follow_symlinks=False)]


def find_large(folder: Path, most: int) -> Path | None:
    """Find a file of more than `most` bytes below a folder; a file with holes may be larger than the disk.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.core.files import find_large
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.json").write_text("[1, 2]")
        ...     find_large(Path(folder), 5).name, find_large(Path(folder), 6)
        ('a.json', None)
    """
    for entry in _entries(folder):
        with suppress(FileNotFoundError):
            if entry.stat(follow_symlinks=False).st_size > most:
                return Path(entry.path)
    return None


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all entries below a folder but the folders, without following any."""
    left = [str(folder)]
    while left:
        with suppress(FileNotFoundError), os.scandir(left.pop()) as entries:  # another process may remove one
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    yield entry


def check_writable(field: str, folder: str | Path) -> Path:
    """Check that a folder can be written, or made if it is absent; nothing of the check stays.

    Args:
        field: The name of the setting, for errors.
        folder: The folder.

    Returns:
        The folder.

    Raises:
        OSError: If it cannot; the message names the setting and the folder.
        ValueError: If its path is not text in UTF-8.

    Example:
        >>> from fpatch.core.files import check_writable
        >>> check_writable("log.runs", "/dev/null/runs")
        Traceback (most recent call last):
        NotADirectoryError: log.runs: /dev/null/runs cannot be written: /dev/null is no folder; choose another
    """
    try:
        place = Path(os.path.abspath(folder))
        there = next(p for p in (place, *place.parents) if p.exists())
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "it holds the character NUL"
        raise OSError(f"{field}: {str(folder)!r:.120} cannot be a folder: {what}; choose another") from None
    check_encodable(folder)
    if not there.is_dir():
        raise NotADirectoryError(f"{field}: {folder} cannot be written: {there} is no folder; choose another")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        why = f"{there}: {error.strerror}"
        raise type(error)(f"{field}: {folder} cannot be written ({why}); choose another folder") from None
    return Path(folder)


def beneath(root: Path, path: str) -> Iterator[Path]:
    """Yield the files and folders in a folder that have the last parts of a path, the longest first.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.core.files import beneath
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "tables").mkdir()
        ...     Path(folder, "tables/objects.csv").touch()
        ...     found = next(beneath(Path(folder), "/project/tables/objects.csv"))
        ...     found.relative_to(folder).as_posix()
        'tables/objects.csv'
    """
    parts = [part for part in Path(path).parts if part not in ("/", "..", ".")]
    for i in range(len(parts)):
        if (place := root.joinpath(*parts[i:])).exists():
            yield place


def set_aside(folder: Path, paths: Iterable[Path], contents: Mapping[str, bytes] | None = None) -> Path:
    """Move files of a folder into `aside/<time>/`, where they keep their places.

    Args:
        folder: The folder.
        paths: Files in it.
        contents: Further files to write there, by relative path.

    Returns:
        The new folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.core.files import set_aside
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.png").write_bytes(b"")
        ...     new = set_aside(Path(folder), [Path(folder, "a.png")])
        ...     [path.name for path in new.iterdir()], Path(folder, "a.png").exists()
        (['a.png'], False)
    """
    stamp, target = time.strftime("%Y%m%d-%H%M%S"), folder
    for i in itertools.count():
        target = folder / "aside" / f"{stamp}{f'-{i}' if i else ''}"
        with writing(target):
            try:
                target.mkdir(parents=True)
            except FileExistsError:
                continue
        break
    try:
        for name, data in (contents or {}).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target / name, data)
        for path in paths:
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    except OSError:
        for empty in (target, target.parent):
            with suppress(OSError):
                empty.rmdir()
        raise
    return target


class AppendFile:
    """A file that grows by whole blocks; a failed write leaves it unchanged.

    The process buffers nothing, so that a kill loses no written block.

    Attributes:
        path: The file.
        size: Its length in bytes.
    """

    def __init__(self, path: Path, mode: Literal["ab", "wb"] = "ab") -> None:
        """Open `path` at its end ("ab") or empty ("wb")."""
        self.path = path
        with writing(path):
            self._file = open(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "wb", buffering=0)  # noqa: SIM115
            if mode == "wb":
                self._file.truncate(0)
        self.size = self._file.seek(0, os.SEEK_END)

    def write(self, block: bytes) -> None:
        """Append a block.

        Raises:
            OSError: If the write fails; the file keeps its old length.
        """
        rest = memoryview(block)
        with writing(self.path):
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except BaseException:
                self._file.truncate(self.size)
                raise
        self.size += len(block)

    def sync(self) -> None:
        """Force the content to the disk, where it survives a power failure."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal.

    Example:
        >>> from fpatch.core.files import digest
        >>> digest(b"")[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(data).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        FileNotFoundError: If the file does not exist.

    Example:
        >>> import tempfile
        >>> from fpatch.core.files import file_digest
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     file_digest(file.name)[:16]
        'e3b0c44298fc1c14'
    """
    with check_file(path, "no such file; check the path, or make it again").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
