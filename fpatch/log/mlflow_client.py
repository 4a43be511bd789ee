"""MLflow's client: without telemetry, noise and long waits, and with a local database that is in order."""

import logging
import os
import sqlite3
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from fpatch.log.destinations import TRACKING_URI

UID_TAG = "fpatch.uid"
"""The tag of an MLflow run with the identity of its run folder."""
_SQLITE = "sqlite:///"
_LOCK_LIMIT_S = 2.0
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~/")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
_LOGGERS = ("mlflow", "alembic")
_logger = logging.getLogger(__name__)


class _Containment:
    """MLflow's settings in this process, as long as anything uses it: several threads may."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._added: dict[str, str] = {}
        self._levels: dict[str, int] = {}

    def begin(self) -> None:
        """Set them, if nothing uses MLflow yet."""
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._added = {key: value for key, value in _ENVIRONMENT.items() if key not in os.environ}
            os.environ.update(self._added)
            import mlflow  # noqa: F401  # its import sets the levels of its loggers

            self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)

    def end(self) -> None:
        """Restore what was there, if nothing else uses MLflow."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            for key in self._added:
                os.environ.pop(key, None)
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)


_CONTAINMENT = _Containment()


@contextmanager
def contained() -> Iterator[None]:
    """Set short timeouts for MLflow, and silence its telemetry and its logs."""
    _CONTAINMENT.begin()
    try:
        yield
    finally:
        _CONTAINMENT.end()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings; they belong to the process, so only its main thread may do so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def prepare(uri: str) -> None:
    """Import MLflow, and make a local database that does not exist: work of seconds, which cannot hang."""
    with quiet(), contained():
        import mlflow.tracking  # noqa: F401

        if (path := local_database(uri)) is not None:
            make_database(path)


def open_client(uri: str) -> Any:
    """Open a client.

    Raises:
        ConnectionError: If a local database is locked or broken. MLflow would retry for minutes.
    """
    if (path := local_database(uri)) is not None:
        _check_database(path)
    return _make_client(uri)


def check_beside(uri: str, folder: Path, files: str | None = None) -> None:
    """Check that a database beside a run, which may have come with a project, leads to no other place.

    Args:
        uri: The tracking URI; a database that `MLFLOW_TRACKING_URI` names is the user's.
        folder: The run folder.
        files: The URI at which MLflow keeps the files of the run; None: it is not known yet.

    Raises:
        ConnectionError: If the database is a link, or its files are kept on a server.
    """
    path = local_database(uri)
    if path is None or uri == os.environ.get(TRACKING_URI):
        return
    place = Path(os.path.abspath(path.parent))
    if not folder.resolve().is_relative_to(place.resolve()):
        return  # the study names a database elsewhere
    way_out = f"if that is yours, set {TRACKING_URI} to {uri}"
    if path.is_symlink():
        raise ConnectionError(f"{path} is a link, which is not followed; {way_out}")
    if files is None:
        return
    scheme, kept = urlsplit(files).scheme, local_path(files)
    if scheme not in ("", "file"):
        raise ConnectionError(f"{path} keeps files at {files}, which you have not named; {way_out}")
    if not kept.resolve().is_relative_to(place.resolve()):
        _logger.warning("%s keeps the files of this run at %s, as it was made elsewhere", path, kept)


def local_path(uri: str) -> Path:
    """Return the path of a local URI.

    Example:
        >>> from fpatch.log.mlflow_client import local_path
        >>> local_path("file:///data/my%20runs").as_posix(), local_path("/data").as_posix()
        ('/data/my runs', '/data')
    """
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def is_own(client: Any, run_id: Any, uid: Any) -> bool:
    """Return whether a run is not in the trash, and has the tag that was given to it with this id."""
    from mlflow.exceptions import MlflowException

    if not isinstance(run_id, str) or not isinstance(uid, str):
        return False
    try:
        run = client.get_run(run_id)
        return run.info.lifecycle_stage == "active" and run.data.tags.get(UID_TAG) == uid
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


class ActiveRun(NamedTuple):
    """The run of MLflow that the user's code has started in this process.

    Attributes:
        run_id: Its id.
        experiment_id: The id of its experiment.
    """

    run_id: str
    experiment_id: str


def find_active_run(uri: str) -> ActiveRun | None:
    """Return the user's active run in the store at a URI; say it if the run is in another store."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not hasattr(mlflow, "active_run") or (active := mlflow.active_run()) is None:
        return None
    if (theirs := mlflow.get_tracking_uri()) == uri:
        return ActiveRun(active.info.run_id, active.info.experiment_id)
    _logger.warning(
        "an MLflow run is active at %s, and this one is recorded at %s; set log.mlflow to %s to nest it",
        theirs, uri, theirs,
    )  # fmt: skip
    return None


def database_uri(path: Path) -> str:
    """Return the tracking URI of a local database.

    SQLAlchemy reads `?` and `%` as parts of a URL; from version 2.1 on it reads `%3F` and `%25` as them.

    Raises:
        ValueError: If this version of SQLAlchemy has no URI for the path.

    Example:
        >>> from pathlib import Path
        >>> from fpatch.log.mlflow_client import database_uri
        >>> database_uri(Path("/data/runs/mlflow.db"))
        'sqlite:////data/runs/mlflow.db'
    """
    plain = f"{_SQLITE}{path}"
    if set(str(path)) <= _PLAIN:
        return plain
    from urllib.parse import quote

    from sqlalchemy.engine import make_url

    for uri in (plain, f"{_SQLITE}{quote(str(path))}"):
        url = make_url(uri)
        if url.database == str(path) and not url.query:
            return uri
    raise ValueError(
        f"log.mlflow: there is no tracking URI for {path}; rename the folder, without '?' and '%', or set "
        "log.mlflow to sqlite:///FILE elsewhere"
    )


def local_database(uri: str) -> Path | None:
    """Return the file of a local database; None for every other store."""
    if not uri.startswith(_SQLITE):
        return None
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")


def make_database(path: Path) -> None:
    """Make a local database atomically, because MLflow cannot open one that a kill left incomplete."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        new = Path(folder, path.name)
        _make_client(database_uri(new))
        with suppress(FileExistsError):  # another run was faster
            os.link(new, path)


def _make_client(uri: str) -> Any:
    """Make a client, and remove the folders that MLflow makes where it reads a quoted path as it is."""
    from mlflow import MlflowClient

    path = local_database(uri)
    as_written = Path(uri.removeprefix(_SQLITE)).parent
    stray = [] if path is None or path.parent == as_written else [as_written, *as_written.parents]
    stray = [folder for folder in stray if not folder.exists()]
    try:
        return MlflowClient(uri)
    finally:
        for folder in stray:
            with suppress(OSError):
                folder.rmdir()


def _check_database(path: Path) -> None:
    """Check that a local database can be written to now."""
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_LIMIT_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise ConnectionError(f"{path}: {error}") from error
