"""Files that are replaced whole, grow by whole blocks, or are known by their digest."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write, such as one to a full disk, into an error that names the file and the way out.

    Raises:
        OSError: With the original `errno`.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror}; what stood there is kept: make room and resume the run",
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file by `data`; whoever reads it, after a crash too, sees the old or the new content.

    Raises:
        OSError: The file cannot be written; the old content stands.
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
    """A file that grows by whole blocks: a block that does not fit leaves no trace.

    Nothing is buffered in the process, so killing it loses nothing that was written.
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
            OSError: It could not be written; the file is as before.
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
        """Return once the content would survive a power failure."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def file_digest(path: str | Path) -> str:
    """sha256 of a file, as hex.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path, or make it again")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
