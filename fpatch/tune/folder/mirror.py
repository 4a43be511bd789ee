"""A copy of a sweep's folder in an object store, from which the sweep resumes if the disk is lost.

The folder stays on a disk that all machines of the sweep share. New files are sent every few seconds, in an
order that keeps the copy resumable: a transfer that is cut off leaves a state as after a kill.
"""

import logging
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from fpatch.core.names import typed
from fpatch.log.destinations import remember
from fpatch.runs.locks import RunError, check_links
from fpatch.tune.folder.journal import Journal
from fpatch.tune.folder.stores import check_uri, open_storage, write_file

_logger = logging.getLogger(__name__)

PERIOD_S = 10.0
"""Seconds between the end of a transfer and the next one."""

_PATIENCE_S = 30.0
"""Seconds that a store may take for one file when the sweep ends."""

_Stamp = tuple[int, int] | None
"""Size and modification time of a file; None: no such file."""


def fetch_sweep(uri: str, runs: str | Path = "runs") -> Journal:
    """Download a sweep from its storage, so that `resume_sweep` can resume it.

    The process that ran the sweep must have ended. Images and weights must have the recorded paths.

    Args:
        uri: URI in `sweep.storage`, followed by the name of the sweep's folder.
        runs: Folder that will hold the sweep.

    Returns:
        The folder of the sweep.

    Raises:
        ValueError: If the URI names no store, or may hold a secret.
        RunError: If the store holds no sweep at the URI, or one with a link out of it, or the folder exists
            already.
        OSError: If the store cannot be read, or the folder not written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.tune import Journal, fetch_sweep
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sweep = Journal.create(Path(folder, "store"), "tiny", dict(study={}, space={}, sweep={}))
        ...     copy = fetch_sweep(f"file://{sweep.folder}", Path(folder, "runs"))
        ...     print(copy.folder.name == sweep.folder.name, copy.names())
        True []
    """
    store, path = open_storage(uri)
    name = path.rpartition("/")[2]
    folder, draft = Path(runs).resolve() / name, Path(runs).resolve() / f".{name}.part"
    if folder.exists():
        raise RunError(
            f"{folder} exists already; resume it with: fpatch sweep resume {typed(folder)}; or move it away"
        )
    if isinstance(store, LocalFileSystem) and Path(path).is_dir():
        check_links(Path(path))  # a link of somebody else would bring a file of yours into the folder
    found = store.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    names = [i.path.removeprefix(f"{path}/") for i in found if i.type == FileType.File]
    names = [one for one in names if not one.endswith(".tmp")]
    if "sweep.json" not in names:
        raise RunError(
            f"{uri} holds no sweep; give the URI that ends in the name of the sweep's folder, ...-sweep"
        )
    if any(part in ("", ".", "..") for one in names for part in one.split("/")):
        raise RunError(f"{uri} holds file names that leave its folder, so no sweep wrote it; check the URI")
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
    place, mark, settings = uri.partition("?")
    remember(f"{place.rstrip('/').rpartition('/')[0]}{mark}{settings}")  # as sweep.storage names it
    return Journal.open(folder)


@contextmanager
def mirrored(journal: Journal, uri: str | None) -> Iterator[None]:
    """Keep a copy of a sweep up to date while it runs; an unreachable store never stops the sweep.

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
        _join_while_sending(thread, mirror)
        error = last[0] if last else TimeoutError(f"no answer within {_PATIENCE_S:g} s")
        if error is not None:
            _logger.warning(
                "%s lacks the last steps of the sweep (%s); `fpatch sweep resume %s` sends them",
                uri, error, journal.folder,
            )  # fmt: skip


def _join_while_sending(thread: threading.Thread, mirror: "Mirror") -> None:
    """Wait for the last transfer as long as it makes progress."""
    before = None
    while thread.is_alive() and mirror.num_changed != before:
        before = mirror.num_changed
        thread.join(_PATIENCE_S)


class Mirror:
    """A copy of a sweep's folder, and the files that it holds.

    Attributes:
        num_changed: Files written or deleted in the store so far.
    """

    def __init__(self, journal: Journal, uri: str) -> None:
        """Prepare a copy below a URI; the store is opened at the first transfer."""
        self._journal, self._folder = journal, journal.folder
        self._uri = uri
        self._place: tuple[FileSystem, str] | None = None
        self._sent: dict[str, _Stamp] = {}
        self.num_changed = 0
        self._marks: dict[str, list[_Stamp]] = {}

    @property
    def _store(self) -> tuple[FileSystem, str]:
        """The store and the path in it, opened at first use."""
        if self._place is None:
            self._place = open_storage(self._uri, self._folder.name)
        return self._place

    def try_to_send(self, again: bool = False) -> Exception | None:
        """Send new files; return the error that stopped the transfer, if any."""
        try:
            self.send(again)
        except (OSError, ValueError, pa.ArrowException) as error:
            return error
        return None

    def send(self, again: bool = False) -> None:
        """Send new files.

        A file that refers to others is read before them and sent after them. The sweep's log encloses its
        trials, an outcome its run, a last checkpoint its records, and a config the other files of a run.
        Trials are sent in order, so a trial follows those that its settings depend on.

        Args:
            again: Also look into the runs of trials without a new checkpoint.
        """
        if not self._sent:
            self._list_store()
        if again:
            self._marks.clear()
        of_sweep = self._of_sweep()
        enclosing = [self._read(one) for one in of_sweep if self._is_new(one)]
        if self._is_new("sweep.json"):
            self._put(self._read("sweep.json"))
        names = self._journal.names()
        for name in names:
            self._send_trial(name)
        for file in enclosing:
            self._put(file)
        present = {"sweep.json", *of_sweep}
        for one in sorted(self._sent):  # a trial's place in the journal before its run
            if one not in present and _trial_of(one) not in names:
                self._delete(one)

    def _send_trial(self, name: str) -> None:
        """Send a trial that has a new checkpoint or an outcome."""
        first, outcome = f"journal/{name}.json", f"journal/{name}.outcome.json"
        config, last = (f"trials/{name}/{one}" for one in ("config.json", "checkpoints/last.safetensors"))
        marks = [self._stamp(one) for one in (first, last, outcome)]
        if self._marks.get(name) == marks:
            return
        ended, state = self._read(outcome), self._read(last)
        self._put(self._read(first))
        present = {one for one in self._below(f"trials/{name}") if one not in (config, last)}
        present |= {f"journal/{name}.points.jsonl", f"journal/{name}.stop"}
        for one in (*sorted(present), config):
            if self._is_new(one):
                self._put(self._read(one))
        for one in [
            n for n in self._sent if n.startswith(f"trials/{name}/") and n not in {*present, config, last}
        ]:
            self._delete(one)
        self._put(state)
        self._put(ended)
        self._marks[name] = marks

    def _of_sweep(self) -> list[str]:
        """Files of the sweep as a whole: log, table and figures; no secrets and no files of Ray."""
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
        """Read a file, with its stamp from before: a file that changes meanwhile is sent again."""
        stamp = self._stamp(name)
        return name, stamp, b"" if stamp is None else (self._folder / name).read_bytes()

    def _put(self, file: tuple[str, _Stamp, bytes]) -> None:
        name, stamp, data = file
        if stamp is None or stamp == self._sent.get(name):
            return
        store, root = self._store
        write_file(store, f"{root}/{name}", data)
        self._sent[name] = stamp
        self.num_changed += 1

    def _delete(self, name: str) -> None:
        store, root = self._store
        with suppress(FileNotFoundError):
            store.delete_file(f"{root}/{name}")
        del self._sent[name]
        self.num_changed += 1

    def _list_store(self) -> None:
        """List the files of earlier processes in the store, so that deleted ones are deleted there, too."""
        store, root = self._store
        found = store.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        files = [info.path.removeprefix(f"{root}/") for info in found if info.type == FileType.File]
        self._sent = dict.fromkeys(files)


def _trial_of(name: str) -> str | None:
    """Return the name of the trial that a file belongs to; None: the whole sweep."""
    top, _, rest = name.partition("/")
    return re.split("[/.]", rest)[0] if top in ("journal", "trials") else None
