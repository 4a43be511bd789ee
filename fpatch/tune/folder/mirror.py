"""A copy of a sweep's folder in an object store, from which it goes on after the disk is gone.

The folder stays where it is, on a disk that all machines of the sweep share. What is new in it is sent every
few seconds, in such an order that the copy can be resumed whenever it is cut off: as after a kill at that
moment, or at one before.
"""

import logging
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType

from fpatch.runs.locks import RunError
from fpatch.tune.folder.journal import Journal
from fpatch.tune.folder.stores import check_uri, open_storage, write_file

_logger = logging.getLogger(__name__)

PERIOD_S = 10.0
"""Between the end of a transfer and the next look at what is new."""

_PATIENCE_S = 30.0
"""When a sweep ends: how long a store may take for one file."""

_Stamp = tuple[int, int] | None
"""Size and time of change of a file; None: not there."""


def fetch_sweep(uri: str, runs: str | Path = "runs") -> Journal:
    """Bring a sweep back from its storage, for `resume_sweep` to go on with.

    The process that ran it must have ended. Photographs and weights must be where they were.

    Args:
        uri: Of the sweep: that in `sweep.storage`, with the name of the sweep's folder behind its path.
        runs: Folder that will hold the sweep.

    Raises:
        ValueError: As `open_storage`.
        RunError: If there is no sweep, or its folder is here already.
        OSError: If it cannot be read or written.
    """
    store, path = open_storage(uri)
    name = path.rpartition("/")[2]
    folder, draft = Path(runs).resolve() / name, Path(runs).resolve() / f".{name}.part"
    if folder.exists():
        raise RunError(f"{folder} is here already: fpatch sweep resume {folder}; or move it away")
    found = store.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    names = [i.path.removeprefix(f"{path}/") for i in found if i.type == FileType.File]
    names = [one for one in names if not one.endswith(".tmp")]
    if "sweep.json" not in names:
        raise RunError(f"{uri} holds no sweep; give the URI that ends in the name of a sweep, ...-sweep")
    if any(part in ("", ".", "..") for one in names for part in one.split("/")):
        raise RunError(f"{uri} holds names that lead out of its folder; it was not written by a sweep")
    with suppress(FileNotFoundError):
        shutil.rmtree(draft)
    for part in ("journal", "trials"):
        (draft / part).mkdir(parents=True, exist_ok=True)
    for one in names:
        target = draft / one
        target.parent.mkdir(parents=True, exist_ok=True)
        with store.open_input_stream(f"{path}/{one}") as file:
            target.write_bytes(file.read())
    draft.rename(folder)
    return Journal.open(folder)


@contextmanager
def mirrored(journal: Journal, uri: str | None) -> Iterator[None]:
    """Keep a copy of a sweep up to date while it runs; a store that is away stops nothing, at no time.

    Raises:
        ValueError: If the URI names no store, or may hold a secret.
    """
    if uri is None:
        yield
        return
    check_uri(uri)
    mirror, ended, last = Mirror(journal, uri), threading.Event(), []

    def watch() -> None:
        while not ended.wait(PERIOD_S):
            mirror.try_to_send()
        last.append(mirror.try_to_send(again=True))

    thread = threading.Thread(target=watch, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        _join_while_it_sends(thread, mirror)
        error = last[0] if last else TimeoutError(f"no answer within {_PATIENCE_S:g} s")
        if error is not None:
            _logger.warning(
                "%s lacks what the sweep did last (%s); it is kept: `fpatch sweep resume %s` sends it",
                uri, error, journal.folder,
            )  # fmt: skip


def _join_while_it_sends(thread: threading.Thread, mirror: "Mirror") -> None:
    """Wait for the last transfer, for as long as one file after another gets there."""
    before = None
    while thread.is_alive() and mirror.num_changed != before:
        before = mirror.num_changed
        thread.join(_PATIENCE_S)


class Mirror:
    """What of a sweep's folder has been sent.

    Attributes:
        num_changed: Files that were written or deleted there.
    """

    def __init__(self, journal: Journal, uri: str) -> None:
        """Of a sweep, below a URI."""
        self._journal, self._folder = journal, journal.folder
        self._uri = uri
        self._place: tuple[FileSystem, str] | None = None
        self._sent: dict[str, _Stamp] = {}
        self.num_changed = 0
        self._marks: dict[str, list[_Stamp]] = {}

    @property
    def _there(self) -> tuple[FileSystem, str]:
        """The store, which is opened when it is there, and the path in it."""
        if self._place is None:
            self._place = open_storage(self._uri, self._folder.name)
        return self._place

    def try_to_send(self, again: bool = False) -> Exception | None:
        """Send what is new; the error, if that was cut off."""
        try:
            self.send(again)
        except (OSError, ValueError, pa.ArrowException) as error:
            return error
        return None

    def send(self, again: bool = False) -> None:
        """Send what is new.

        What tells of something else is read before it, and sent after it: the log of the sweep around its
        trials, a trial's outcome around its run, a run's last checkpoint around its records, its config
        around what else makes a run of it. A trial whose settings follow from others comes after them.

        Args:
            again: Look into the runs of trials that have no new checkpoint, too.
        """
        if not self._sent:
            self._list_strangers()
        if again:
            self._marks.clear()
        of_sweep = self._of_sweep()
        told = [self._read(one) for one in of_sweep if self._is_new(one)]
        if self._is_new("sweep.json"):
            self._put(self._read("sweep.json"))
        names = self._journal.names()
        for name in names:
            self._send_trial(name)
        for file in told:
            self._put(file)
        there = {"sweep.json", *of_sweep}
        for one in sorted(self._sent):  # a trial's place in the journal before its run
            if one not in there and _trial_of(one) not in names:
                self._delete(one)

    def _send_trial(self, name: str) -> None:
        """Send a trial that has a new checkpoint, or has ended."""
        first, outcome = f"journal/{name}.json", f"journal/{name}.outcome.json"
        config, last = (f"trials/{name}/{one}" for one in ("config.json", "checkpoints/last.safetensors"))
        marks = [self._stamp(one) for one in (first, last, outcome)]
        if self._marks.get(name) == marks:
            return
        ended, state = self._read(outcome), self._read(last)
        self._put(self._read(first))
        there = {one for one in self._below(f"trials/{name}") if one not in (config, last)}
        there |= {f"journal/{name}.points.jsonl", f"journal/{name}.stop"}
        for one in (*sorted(there), config):
            if self._is_new(one):
                self._put(self._read(one))
        for one in [
            n for n in self._sent if n.startswith(f"trials/{name}/") and n not in {*there, config, last}
        ]:
            self._delete(one)
        self._put(state)
        self._put(ended)
        self._marks[name] = marks

    def _of_sweep(self) -> list[str]:
        """Files beside the journal and the trials: log, table, figures; no secrets, and nothing of Ray's."""
        ours = [p.name for p in self._folder.iterdir() if not p.name.startswith((".", "ray"))]
        tops = [name for name in ours if name not in ("journal", "trials", "sweep.json")]
        return [one for top in sorted(tops) for one in self._below(top)]

    def _below(self, name: str) -> list[str]:
        """Files in a folder, or the file itself."""
        path = self._folder / name
        found = path.rglob("*") if path.is_dir() else [path]
        files = [p for p in found if p.is_file() and p.suffix != ".tmp" and not p.name.startswith(".")]
        return sorted(str(p.relative_to(self._folder)) for p in files)

    def _stamp(self, name: str) -> _Stamp:
        try:
            status = (self._folder / name).stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def _is_new(self, name: str) -> bool:
        return self._stamp(name) != self._sent.get(name)

    def _read(self, name: str) -> tuple[str, _Stamp, bytes]:
        """A file, with what it was before it was read: one that changes meanwhile is sent again."""
        stamp = self._stamp(name)
        return name, stamp, b"" if stamp is None else (self._folder / name).read_bytes()

    def _put(self, file: tuple[str, _Stamp, bytes]) -> None:
        name, stamp, data = file
        if stamp is None or stamp == self._sent.get(name):
            return
        store, root = self._there
        write_file(store, f"{root}/{name}", data)
        self._sent[name] = stamp
        self.num_changed += 1

    def _delete(self, name: str) -> None:
        store, root = self._there
        with suppress(FileNotFoundError):
            store.delete_file(f"{root}/{name}")
        del self._sent[name]
        self.num_changed += 1

    def _list_strangers(self) -> None:
        """Know of files that are there from before, so that those that have gone here go there, too."""
        store, root = self._there
        found = store.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        files = [info.path.removeprefix(f"{root}/") for info in found if info.type == FileType.File]
        self._sent = dict.fromkeys(files)


def _trial_of(name: str) -> str | None:
    """The trial that a file tells of, by its name; None: the whole sweep."""
    top, _, rest = name.partition("/")
    return re.split("[/.]", rest)[0] if top in ("journal", "trials") else None
