"""Atomic writes, append-only files and digests."""

import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the file and the way out to the error of a failed write, such as one to a full disk.

    Raises:
        OSError: If the body raises one; the original `errno` is kept.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror}; its old content is kept: free some space and resume the "
            "run",
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
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


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
            self._file = open(path, mode, buffering=0)  # noqa: SIM115
        self.size = self._file.tell()

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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path, or make it again")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
