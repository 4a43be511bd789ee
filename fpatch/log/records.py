"""The write-ahead log of a run, from which every sink can be rebuilt."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

from fpatch.core.files import AppendFile, open_own, write_atomic, writing

Kind = Literal["scalars", "images", "histograms", "text", "artifacts", "params", "tags", "input"]


class Record(TypedDict):
    """One line of the log: named values of one kind at one step.

    Attributes:
        step: The step.
        time: Milliseconds since 1970.
        kind: The kind of the values.
        values: By name. Scalars: a number, or "nan", "inf", "-inf". Images: the path of a PNG in the run
            folder. Histograms: range, counts and moments. Text: Markdown. Params and tags: a JSON value.
            Input: digest, source, context and profile. Artifacts: the size in bytes, by path in the run
            folder.

    Example:
        >>> from fpatch.log import Record
        >>> record = Record(step=20, time=0, kind="scalars", values={"loss/total": 0.5})
        >>> record["values"]
        {'loss/total': 0.5}
    """

    step: int
    time: int
    kind: Kind
    values: dict[str, Any]


class Records:
    """`records.jsonl` of a run folder, with one `Record` per line, and the images it names.

    One process writes at a time. An incomplete last line, left by a crash, is not a record; `resume` removes
    it.

    Attributes:
        folder: The run folder.
        path: The log.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.log import Records
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records = Records(Path(folder))
        ...     _ = records.write(1, "scalars", {"loss/total": 0.5})
        ...     [(record["step"], record["values"]) for record in records]
        ...     records.close()
        [(1, {'loss/total': 0.5})]
    """

    def __init__(self, folder: Path) -> None:
        """Open the log of a run folder; a new log is empty."""
        self.folder = folder
        self.path = folder / "records.jsonl"
        self._file = AppendFile(self.path)
        self._unsynced: list[Path] = []

    @property
    def size(self) -> int:
        """The length of the log in bytes."""
        return self._file.size

    def write(self, step: int, kind: Kind, values: dict[str, Any]) -> Record:
        """Append a record of JSON values, stamped with the time.

        Raises:
            OSError: If the write fails; the log keeps its old length.
        """
        record = Record(step=step, time=time.time_ns() // 1_000_000, kind=kind, values=values)
        self._file.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return record

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file for the next record, which names it by `path`.

        Args:
            path: Relative to the run folder.
            data: The content.

        Raises:
            OSError: If the write fails.
        """
        target = self.folder / path
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                with open(open_own(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                    file.write(data)
            except OSError:
                target.unlink(missing_ok=True)
                raise
        self._unsynced.append(target)

    def sync(self) -> None:
        """Force every record and its images to the disk, where they survive a power failure."""
        for path in self._unsynced:
            with writing(path), open(path, "rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        self._file.sync()

    def resume(self, step: int) -> None:
        """Drop records after `step`, an incomplete last line, and images that no record names.

        Raises:
            ValueError: If a line before the last is no record.
            OSError: If the disk is full; the log keeps its old content.
        """
        kept = [line for record, line in self._lines(0, None) if record["step"] <= step]
        content = b"".join(kept)
        if len(content) != self.size:
            self._file.close()
            try:
                write_atomic(self.path, content)
            finally:
                self._file = AppendFile(self.path)
        named = {path for record in self if record["kind"] == "images" for path in record["values"].values()}
        for path in (self.folder / "images").rglob("*.png"):
            if path.relative_to(self.folder).as_posix() not in named:
                path.unlink()

    def __iter__(self) -> Iterator[Record]:
        """Iterate over all records, in the order of writing."""
        return (record for record, _ in self.read())

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Record, int]]:
        """Read the records between two byte offsets, each with the offset of its end.

        Raises:
            ValueError: If a line before the last is no record.
        """
        for record, line in self._lines(start, stop):
            start += len(line)
            yield record, start

    def _lines(self, start: int, stop: int | None) -> Iterator[tuple[Record, bytes]]:
        with open(self.path, "rb") as file:
            file.seek(start)
            while (stop is None or file.tell() < stop) and (line := file.readline()).endswith(b"\n"):
                try:
                    yield json.loads(line), line
                except ValueError as error:
                    raise ValueError(
                        f"{self.path}: the line that ends at byte {file.tell()} must be a JSON object, "
                        f"got {line[:80]!r} ({error}); remove it, or start a new run"
                    ) from error

    def close(self) -> None:
        """Close the file for writing; the log remains readable."""
        self._file.close()
