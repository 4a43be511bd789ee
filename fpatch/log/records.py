"""The write-ahead log of a run, from which every sink can be rebuilt."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from operator import index
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast

from fpatch.core.files import AppendFile, digest, open_own, set_aside, write_atomic, writing
from fpatch.core.inputs import parse_json
from fpatch.log.sealed import is_sealed, seal

Kind = Literal["scalars", "images", "histograms", "text", "artifacts", "params", "tags", "input", "files"]


class Record(TypedDict):
    """One line of the log: named values of one kind at one step.

    Attributes:
        step: The step.
        time: Milliseconds since 1970.
        kind: The kind of the values.
        values: By name. Scalars: a number, or "nan", "inf", "-inf". Images: the path of a PNG in the run
            folder. Histograms: range, counts and moments. Text: Markdown. Params and tags: a JSON value.
            Input: digest, source, context and profile. Artifacts: the size in bytes, by path in the run
            folder. Files: the SHA-256, by path in the run folder.

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


class Mark(NamedTuple):
    """A position in the log: the records before it are known by their digest.

    Attributes:
        size: The bytes before it.
        sha256: Their digest.
    """

    size: int
    sha256: str


class Records:
    """`records.jsonl` of a run folder, with one `Record` per line, and the images it names.

    One process writes at a time. An incomplete last line, left by a crash, is not a record; `resume` removes
    it. `records.json` holds the digest of all committed records.

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
        self._hash = self._hash_all()

    @property
    def mark(self) -> Mark:
        """The end of the log."""
        return Mark(self.size, self._hash.hexdigest())

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
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        self._file.write(line)
        self._hash.update(line)
        return record

    def write_file(self, path: str, data: bytes) -> str:
        """Write a file for the next record, which names it by `path`.

        Args:
            path: Relative to the run folder.
            data: The content.

        Returns:
            The digest of the content.

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
        return digest(data)

    def seal(self, step: int, mark: Mark | None = None) -> None:
        """Note in `records.json` that the records before a mark are final, as of a step; None: all."""
        size, sha256 = mark or self.mark
        write_atomic(self.folder / "records.json", seal({"step": step, "bytes": size, "sha256": sha256}))

    def sync(self) -> None:
        """Force every record and its images to the disk, where they survive a power failure."""
        for path in self._unsynced:
            with writing(path), open(path, "rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        self._file.sync()

    def resume(self, step: int) -> None:
        """Set aside records after `step`, an incomplete last line, and images that no record names.

        They are moved into a folder of `aside/`, with their places.

        Raises:
            ValueError: If a line before the last is no record.
            OSError: If the disk is full; the log keeps its old content.
        """
        kept, later = self._split(step)
        unnamed = self._find_unnamed(step)
        if later or unnamed:
            set_aside(self.folder, unnamed, {"records.jsonl": later} if later else {})
        if len(kept) != self.size:
            self._file.close()
            try:
                write_atomic(self.path, kept)
            finally:
                self._file = AppendFile(self.path)
                self._hash = self._hash_all()

    def mark_after(self, step: int) -> Mark:
        """The end that the log would have if it were resumed after `step`."""
        kept, _ = self._split(step)
        return Mark(len(kept), digest(kept))

    def _split(self, step: int) -> tuple[bytes, bytes]:
        """Return the records up to `step`, and those after it."""
        lines = list(_read_lines(self.path))
        kept, later = ([line for r, line in lines if (r["step"] > step) == after] for after in (False, True))
        return b"".join(kept), b"".join(later)

    def _find_unnamed(self, step: int) -> list[Path]:
        """Find images that no record up to `step` names."""
        images = (r for r in self if r["kind"] == "images" and r["step"] <= step)
        named = {path for record in images for path in record["values"].values()}
        there = (self.folder / "images").rglob("*.png")
        return [path for path in there if path.relative_to(self.folder).as_posix() not in named]

    def _hash_all(self) -> Any:
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256")

    def __iter__(self) -> Iterator[Record]:
        """Iterate over all records, in the order of writing."""
        return (record for record, _ in self.read())

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Record, int]]:
        """Read the records between two byte offsets, each with the offset of its end.

        Raises:
            ValueError: If a line before the last is no record.
        """
        for record, line in _read_lines(self.path, start, stop):
            start += len(line)
            yield record, start

    def close(self) -> None:
        """Close the file for writing; the log remains readable."""
        self._file.close()


def parse_record(line: bytes | str) -> Record:
    """Parse a line of the log.

    Raises:
        ValueError: If it is no record.

    Example:
        >>> from fpatch.log.records import parse_record
        >>> parse_record('{"step": 1, "time": 0, "kind": "scalars", "values": {"loss": [1]}}')
        Traceback (most recent call last):
        ValueError: the scalar 'loss' must be a number
    """
    record = parse_json(line)
    kinds = {"step": int, "time": int, "kind": str, "values": dict}
    if not isinstance(record, dict):
        raise ValueError("it must be an object")
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind) or isinstance(record[name], bool):
            raise ValueError(f"{name!r} must be {_WORDS[kind]}")
    for name, value in record["values"].items() if record["kind"] == "scalars" else ():
        if not isinstance(value, int | float | str):
            raise ValueError(f"the scalar {name!r} must be a number")
    return cast(Record, record)


_WORDS = {int: "a whole number", str: "a text", dict: "an object"}


def mark_at(folder: Path, size: int) -> Mark | None:
    """Return the mark of the first `size` bytes of a log; None if the log is missing or shorter.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.log.records import mark_at
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mark_at(Path(folder), 0) is None
        True
    """
    try:
        with open(folder / "records.jsonl", "rb") as file:
            data = file.read(min(size, os.fstat(file.fileno()).st_size))
    except FileNotFoundError:
        return None
    return Mark(size, digest(data)) if len(data) == size else None


def read_seal(folder: Path) -> tuple[int, Mark] | None:
    """Return the step and the mark of the committed records; None if the log was never sealed.

    Raises:
        ValueError: If `records.json` is broken.
    """
    path = folder / "records.json"
    if not path.is_file():
        return None
    try:
        whole, value = is_sealed(data := path.read_bytes()), parse_json(data)
        found = index(value["step"]), Mark(index(value["bytes"]), value["sha256"])
    except (ValueError, KeyError, TypeError):
        whole, found = False, None
    if not whole or found is None:
        raise ValueError(f"{path} is not as it was written; restore it")
    return found


def _read_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[Record, bytes]]:
    with open(path, "rb") as file:
        file.seek(start)
        while (stop is None or file.tell() < stop) and (line := file.readline()).endswith(b"\n"):
            try:
                yield parse_record(line), line
            except ValueError as error:
                raise ValueError(
                    f"{path}: the line that ends at byte {file.tell()} must be a JSON object, "
                    f"got {line[:80]!r} ({error}); remove it, or start a new run"
                ) from error


def read_records(folder: Path) -> Iterator[Record]:
    """Iterate over the records of a run folder, which may be somebody else's: nothing is written or made.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.log.records import read_records
        >>> list(read_records(Path(tempfile.mkdtemp())))
        []

    Raises:
        ValueError: If a line before the last is no record.
    """
    path = folder / "records.jsonl"
    return (record for record, _ in _read_lines(path)) if path.is_file() else iter(())


def read_scalars(folder: Path, prefix: str, step: int | None = None) -> dict[str, float | str]:
    """Return the last recorded value of each scalar whose name has a prefix, at one step or at any.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.log import open_log
        >>> from fpatch.log.records import read_scalars
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = open_log(folder, tensorboard=False)
        ...     log.scalars(1, {"test/success": 0.5})
        ...     _ = log.close()
        ...     read_scalars(Path(folder), "test/")
        {'test/success': 0.5}
    """
    found: dict[str, float | str] = {}
    for record in read_records(folder):
        if record["kind"] == "scalars" and step in (None, record["step"]):
            found |= {n: v for n, v in record["values"].items() if n.startswith(prefix)}
    return found


def find_scalar(folder: Path, name: str, step: int) -> float | None:
    """Return the last recorded value of a scalar at a step; None if there is none. NaN is a value.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.log import open_log
        >>> from fpatch.log.records import find_scalar
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = open_log(folder, tensorboard=False)
        ...     log.scalars(1, {"test/success": 0.5})
        ...     _ = log.close()
        ...     find_scalar(Path(folder), "test/success", 1), find_scalar(Path(folder), "test/success", 2)
        (0.5, None)
    """
    found = None
    with open(folder / "records.jsonl", "rb") as file:
        for line in file:  # the others are not parsed
            if name.encode() not in line or not line.endswith(b"\n"):
                continue
            record = parse_record(line)
            if record["kind"] == "scalars" and record["step"] == step and name in record["values"]:
                found = float(record["values"][name])
    return found
