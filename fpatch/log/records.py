"""The write-ahead log of a run: every other sink can be made again from it."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

from fpatch.core.files import AppendFile, write_atomic, writing

Kind = Literal["scalars", "images", "histograms", "text", "artifacts", "params", "tags", "input"]


class Record(TypedDict):
    """One line of the log: when, and names with their values.

    A value is a number, or "nan", "inf", "-inf" (scalars); the path of a PNG in the run folder (images);
    range, counts and moments (histograms); Markdown (text); a JSON value (params, tags); digest, source,
    context and profile (input). Artifacts are named by their path in the run folder, with their size in
    bytes.
    """

    step: int
    time: int
    kind: Kind
    values: dict[str, Any]


class Records:
    """`records.jsonl` of a run folder, one `Record` a line in the order of writing, and the images it names.

    One process writes at a time. A line that a crash tore is not a record, and `resume` removes it.
    """

    def __init__(self, folder: Path) -> None:
        """Open the log of a run folder, new or old."""
        self.folder = folder
        self.path = folder / "records.jsonl"
        self._file = AppendFile(self.path)
        self._unsynced: list[Path] = []

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._file.size

    def write(self, step: int, kind: Kind, values: dict[str, Any]) -> Record:
        """Append a record of JSON values, stamped with the time.

        Raises:
            OSError: It could not be written; the log ends with the record before it.
        """
        record = Record(step=step, time=time.time_ns() // 1_000_000, kind=kind, values=values)
        self._file.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return record

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file that the next record will name by `path`, relative to the run folder.

        Raises:
            OSError: It could not be written.
        """
        target = self.folder / path
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(data)
            except OSError:
                target.unlink(missing_ok=True)
                raise
        self._unsynced.append(target)

    def sync(self) -> None:
        """Return once every record, and every image it names, would survive a power failure."""
        for path in self._unsynced:
            with writing(path), open(path, "rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        self._file.sync()

    def resume(self, step: int) -> None:
        """Drop what a killed run wrote after `step`: later records, a torn last line, images nothing names.

        Raises:
            ValueError: A line that is not the last is no record.
            OSError: The disk is full; the log is as before.
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
        """Every record, in the order of writing."""
        return (record for record, _ in self.read())

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Record, int]]:
        """Records between two byte offsets, each with the offset at which it ends.

        Raises:
            ValueError: A line that is not the last is no record.
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
        """Close the file; the log can still be read."""
        self._file.close()
