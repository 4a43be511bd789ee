"""Atomic writes, append-only files and digests."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
