"""Copies of sweeps: in a folder, cut off at every kind of moment, and on a server that speaks S3."""

import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pyarrow.fs import FileInfo, FileSelector, FileType, LocalFileSystem, S3FileSystem
from study_fixture import logged_steps, parameters
from sweeps import LONG, assert_same, begin, make_plan, sweep_file, the_sweep, trained_here, wait_until, work

from fpatch import tune
from fpatch.cli.main import main
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.tune.folder import mirror
from fpatch.tune.folder.journal import Journal
from fpatch.tune.folder.mirror import Mirror, mirrored
from fpatch.tune.folder.stores import check_storage, open_storage
from fpatch.tune.plan import Plan

GENERATIONS = {
    "search": "population",
    "num_trials": 8,
    "population": {"size": 4, "every": 3},
    "objective": "success/drop/patch",
    "study": {"checkpoint_every": 1},
}
"""Trials that go on from others."""


def make_sweep(folder: Path, **settings) -> tuple[Plan, Journal, str]:
    plan = make_plan(folder, **(GENERATIONS | settings))
    return plan, begin(plan), (folder / "storage").as_uri()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Journal:
    """Undisturbed."""
    plan, journal, _ = make_sweep(tmp_path_factory.mktemp("whole"))
    work(journal, plan)
    return journal


def files(folder: Path) -> dict[str, bytes]:
    found = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


class InTurns:
    """A sweep that is worked on in another thread, a piece of news at a time, until the machine is gone."""

    def __init__(self, journal: Journal, plan: Plan) -> None:
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = self._gone = False
        self._thread = threading.Thread(target=self._run, args=(journal, plan))
        self._thread.start()
        self._came.acquire()

    def _run(self, journal: Journal, plan: Plan) -> None:
        with suppress(CutError):
            work(journal, plan, self._pause)
        self._ended = True
        self._came.release()

    def _pause(self, name: str) -> None:
        self._came.release()
        self._go.acquire()
        if self._gone:
            raise CutError

    def advance(self) -> None:
        if not self._ended:
            self._go.release()
            self._came.acquire()

    def cut(self) -> None:
        self._gone = True
        self._go.release()
        self._thread.join()


class CutError(Exception):
    """The machine is gone."""


@pytest.mark.parametrize(
    "cut", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3, 9, 23, 40, 75, 110, 130, 150, 180)]
)
def test_a_copy_that_is_cut_off_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, cut):
    """After so many files were sent, while the sweep went on between any two of them."""
    plan, journal, uri = make_sweep(tmp_path)
    working, sent = InTurns(journal, plan), []

    def write(store, path, data):
        if len(sent) == cut:
            raise CutError
        write_really(store, path, data)
        sent.append(path)
        if len(sent) % 5 == 0:
            working.advance()

    write_really = mirror.write_file
    monkeypatch.setattr(mirror, "write_file", write)
    copy = Mirror(journal, uri)
    try:
        for _ in range(100):
            copy.send()
            working.advance()
    except CutError:
        pass
    finally:
        working.cut()
    assert len(sent) == cut
    restored = tune.fetch_sweep(f"{uri}/{journal.folder.name}", tmp_path / "elsewhere")
    assert restored.folder == tmp_path / "elsewhere" / journal.folder.name
    work(restored, plan)
    assert restored.names() == whole.names()
    for name in whole.names():
        entry, expected = restored.entry(name), whole.entry(name)
        assert entry.trial == expected.trial
        assert [p[:2] for p in entry.points] == [p[:2] for p in expected.points]
        assert entry.outcome is not None
        assert entry.outcome.status == "finished", entry.outcome.traceback
        run = Run(restored.run_folder(name))
        assert parameters(run) == parameters(Run(whole.run_folder(name)))
        assert logged_steps(run.folder) == logged_steps(whole.run_folder(name))


def test_a_copy_has_what_the_folder_has(whole, tmp_path):
    """But no secrets, and nothing of Ray's; what has gone here goes there."""
    journal = Journal(shutil.copytree(whole.folder, tmp_path / "runs" / whole.folder.name))
    for name in (".ray-token", "ray-12-0", "ray/tuner.pkl"):
        (journal.folder / name).parent.mkdir(exist_ok=True)
        (journal.folder / name).write_text("secret")
    uri, there = (tmp_path / "storage").as_uri(), tmp_path / "storage" / journal.folder.name
    stale = there / "trials/0000/tensorboard/events.of.another.process"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    with mirrored(journal, uri):
        pass
    ours = {n: data for n, data in files(journal.folder).items() if not n.startswith("ray")}
    assert files(there) == ours
    assert not list(there.rglob(".*"))
    copy = Mirror(journal, uri)
    copy.send()
    written = {p: p.stat().st_mtime_ns for p in there.rglob("*")}
    (journal.folder / "trials/0001/note.txt").write_text("seen once more")
    copy.send()
    assert {p: p.stat().st_mtime_ns for p in there.rglob("*")} == written
    copy.send(again=True)
    assert (there / "trials/0001/note.txt").read_text() == "seen once more"
    assert sum(p.is_file() for p in there.rglob("*")) == len(ours) + 1


def test_a_store_that_is_away_for_a_while_stops_nothing(whole, tmp_path, monkeypatch, caplog):
    journal = Journal(shutil.copytree(whole.folder, tmp_path / "runs" / whole.folder.name))
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    blocked, uri = tmp_path / "storage", (tmp_path / "storage").as_uri()
    blocked.write_text("a file where the folder should be")
    with mirrored(journal, uri):
        pass
    assert "lacks the last steps of the sweep" in caplog.text
    assert f"fpatch sweep resume {journal.folder}` sends them" in caplog.text
    caplog.clear()
    blocked.unlink()
    with mirrored(journal, uri):
        pass
    assert not caplog.text
    assert files(blocked / journal.folder.name) == files(journal.folder)


def test_a_store_that_cannot_be_opened_stops_no_resume(whole, tmp_path, caplog):
    """One that is away, as the server of a bucket whose address is not known."""
    journal = Journal(shutil.copytree(whole.folder, tmp_path / "runs" / whole.folder.name))
    with mirrored(journal, "ftp://host/sweeps"):
        pass
    assert "must name a store of pyarrow, got 'ftp://host/sweeps'" in caplog.text
    with pytest.raises(ValueError, match="option 'sig'"), mirrored(journal, "s3://bucket?sig=SECRET"):
        pass


def test_a_store_that_never_answers_is_not_waited_for(whole, tmp_path, monkeypatch, caplog):
    journal = Journal(shutil.copytree(whole.folder, tmp_path / "runs" / whole.folder.name))
    monkeypatch.setattr(mirror, "_PATIENCE_S", 0.2)
    answer, sent = threading.Event(), []

    def write(store, path, data):
        sent.append(path)
        answer.wait(0.1 if len(sent) < 10 else 60)

    monkeypatch.setattr(mirror, "write_file", write)
    began = time.monotonic()
    with mirrored(journal, (tmp_path / "storage").as_uri()):
        pass
    assert time.monotonic() - began < 30
    assert len(sent) == 10  # slow, and longer than its patience in all, but one file after another
    assert "lacks the last steps of the sweep (no answer within 0.2 s)" in caplog.text
    answer.set()


def test_files_of_the_sweep_are_read_once_and_those_gone_here_go_there(whole, tmp_path, monkeypatch):
    journal = Journal(shutil.copytree(whole.folder, tmp_path / "runs" / whole.folder.name))
    there = tmp_path / "storage" / journal.folder.name
    for name in ("figures/old.png", "journal/0099.json", "trials/0099/config.json"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("{}")
    (journal.folder / "trials.csv").write_text("trial")
    (journal.folder / "note.txt").write_text("first")
    copy = Mirror(journal, (tmp_path / "storage").as_uri())
    copy.send()
    assert files(there) == files(journal.folder)
    read, really = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or really(path))
    copy.send()
    assert not read
    (journal.folder / "note.txt").write_text("second")
    (journal.folder / "trials.csv").unlink()
    copy.send()
    assert read == ["note.txt"]
    monkeypatch.undo()
    assert files(there) == files(journal.folder)


def test_without_storage_there_is_no_copy(whole):
    with mirrored(whole, None):
        assert not [t for t in threading.enumerate() if t.name == "mirror"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("bucket/prefix", "must be like s3://BUCKET/PREFIX or file:///FOLDER, got 'bucket/prefix'"),
        ("s3://", "must be like s3://BUCKET/PREFIX"),
        ("ftp://host/folder", "must name a store of pyarrow, got 'ftp://host/folder'"),
        ("s3://bucket/prefix?color=red", "option 'color' must be one of allow_bucket_creation, "),
    ],
)
def test_what_names_no_store_is_refused_before_anything_is_made(tmp_path, uri, message):
    path = sweep_file(tmp_path, f'num_trials = 2\nsearch = "random"\nstorage = "{uri}"')
    with pytest.raises(ValueError, match=message):
        tune.run_plan(tune.load_plan(path), lambda *_: None)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://key:SECRET@bucket/prefix", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file"),
        ("s3://AKIA:SE/CRET@bucket", "a password \\(between ':' and '@'\\)"),
        ("s3://AKIA%3ASECRET%40bucket", "a password"),
        ("AKIA:SECRET@bucket/prefix", "a password"),
        ("s3://bucket?endpoint_override=http%3A%2F%2Fkey%3ASECRET%40host", "a password"),
        ("s3://bucket/prefix?secret_key=SECRET", "option 'secret_key' must be one of"),
        (
            "abfs://c@name.dfs.core.windows.net/p?client_id=1&client_secret=SECRET",
            "'client_secret' .* `az login`",
        ),
        ("abfs://c@name.dfs.core.windows.net/p?sv=2024&sig=SECRET", "'sv' .* AZURE_CLIENT_SECRET"),
        ("abfss://c@name.dfs.core.windows.net/p?tenant_id=1#sig=SECRET", "option 'sig'"),
        ("gs://bucket/p?access_token=SECRET", "'access_token' .* GOOGLE_APPLICATION_CREDENTIALS"),
        ("file:///folder?sig=SECRET", "option 'sig' .* the environment"),
    ],
)
def test_secrets_in_the_uri_are_refused_and_not_repeated(uri, message):
    """It would be recorded, and sent to the store itself."""
    with pytest.raises(ValueError, match=message) as caught:
        open_storage(uri)
    assert "SE" not in str(caught.value).replace("AWS_SECRET", "").replace("CLIENT_SECRET", "")


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    storage = f"{(tmp_path / 'file').as_uri()}/sweeps"
    path = sweep_file(tmp_path, f'num_trials = 2\nsearch = "random"\nstorage = "{storage}"')
    assert main(["sweep", str(path)]) == 2
    assert f"sweep.storage: {storage} cannot be written: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_store_is_left_as_it_was_by_the_check(tmp_path):
    check_storage(tmp_path.as_uri())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_fetched(whole, tmp_path, capsys):
    uri = whole.folder.parent.as_uri()
    with pytest.raises(
        RunError, match="holds no sweep; give the URI that ends in the name of the sweep's folder"
    ):
        tune.fetch_sweep(uri, tmp_path)
    with pytest.raises(RunError, match="exists already; resume it with: fpatch sweep resume"):
        tune.fetch_sweep(f"{uri}/{whole.folder.name}", whole.folder.parent)
    assert not list(tmp_path.iterdir())
    assert main(["sweep", "fetch", f"{uri}/{whole.folder.name}", "--runs", str(tmp_path)]) == 0
    assert f"fpatch sweep resume {tmp_path / whole.folder.name}" in capsys.readouterr().out
    assert files(tmp_path / whole.folder.name) == files(whole.folder)


def test_a_fetch_begins_anew_where_another_was_cut_off(whole, tmp_path):
    left = tmp_path / f".{whole.folder.name}.part/journal/0099.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    fetched = tune.fetch_sweep(whole.folder.as_uri(), tmp_path)
    assert files(fetched.folder) == files(whole.folder)
    assert not left.parent.exists()


def test_names_that_lead_elsewhere_are_not_fetched(tmp_path, monkeypatch):
    """In an object store a name may have any characters; folders cannot hold these."""
    found = [FileInfo(f"/a-sweep/{one}", FileType.File) for one in ("sweep.json", "journal/../../evil")]

    class Store(LocalFileSystem):
        def get_file_info(self, paths_or_selector):
            return found

    monkeypatch.setattr(mirror, "open_storage", lambda uri: (Store(), "/a-sweep"))
    with pytest.raises(RunError, match="file names that leave its folder"):
        tune.fetch_sweep("s3://bucket/a-sweep", tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_stand_behind_the_path():
    _, path = open_storage("s3://bucket/a/b/?region=eu-central-1&scheme=http", "name")
    assert path == "bucket/a/b/name"


# S3


@pytest.fixture
def s3(tmp_path, monkeypatch):
    """The URI of a bucket on a server of its own."""
    pytest.importorskip("moto.server", reason="needs moto[server]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "moto.log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        try:
            wait_until(lambda: "Running on" in (tmp_path / "moto.log").read_text(), server)
            address = f"127.0.0.1:{port}"
            store = S3FileSystem(
                endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
            )
            store.create_dir("bucket")
            options = f"scheme=http&endpoint_override={address}&region=us-east-1&allow_delayed_open=true"
            yield store, f"s3://bucket/sweeps{{}}?{options}"
        finally:
            server.terminate()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_goes_on_from_s3_after_its_disk_is_gone(s3, start, tmp_path):
    """The driver killed, all files removed; the bits are those of an undisturbed sweep."""
    store, uri = s3
    sweep = 'num_trials = 2\nsearch = "random"\nmax_concurrent = 1'
    path = sweep_file(tmp_path / "ray", f'{sweep}\nstorage = "{uri.format("")}"', **LONG)
    process = start("sweep", path)

    def kept(ending: str) -> list[str]:
        found = store.get_file_info(FileSelector("bucket/sweeps", recursive=True, allow_not_found=True))
        return [i.path for i in found if i.type == FileType.File and i.path.endswith(ending)]

    wait_until(lambda: any("step-00000010" in name for name in kept(".safetensors")), process)
    process.kill()
    process.communicate()
    folder = the_sweep(tmp_path / "ray").folder
    shutil.rmtree(tmp_path / "ray/runs")
    words = ["sweep", "fetch", uri.format(f"/{folder.name}"), "--runs", folder.parent]
    fetched = start(*words)
    out, err = fetched.communicate()
    assert fetched.returncode == 0, err
    assert f"fpatch sweep resume {folder}" in out
    assert any(Run(folder / "trials" / n).checkpoint_steps()[-1] >= 10 for n in ("0000",))
    again = start("sweep", "resume", folder)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert_same(Journal(folder), trained_here(tmp_path / "here", LONG, sweep), 60)
    assert len(kept(".outcome.json")) == 2
    assert sorted(kept("trials.csv")) == [f"bucket/sweeps/{folder.name}/trials.csv"]
