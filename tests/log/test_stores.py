"""MLflow stores of every kind that do not answer, and paths with letters that URLs treat apart."""

import socket
import sqlite3
import time
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from log_stores import local_uri, mlflow_client

from fpatch.log import attempts, open_log
from fpatch.log import mlflow as mlflow_sink
from fpatch.log.mlflow_client import database_uri, local_database


def record(folder: Path, num_commits: int, uri: bool | str, resume_step: int | None = None) -> tuple:
    """Commit some steps; the log, and the seconds of the longest commit after the first."""
    log, longest = open_log(folder, tensorboard=False, mlflow=uri, resume_step=resume_step), 0.0
    for step in range(1, num_commits + 1):
        begun = time.perf_counter()
        log.scalars(step, {"a": float(step)})
        log.commit(step)
        longest = max(longest, time.perf_counter() - begun)
    return log, longest


@pytest.mark.parametrize("name", ["a?b", "a%41", "a#b", "a b", "a%3Fb=1&c", "ä"])
def test_a_database_below_any_path(tmp_path, empty_store, name):
    from sqlalchemy import __version__

    runs = tmp_path / name
    (runs / "first").mkdir(parents=True)
    path = runs / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    if __version__.startswith(("1.", "2.0.")) and "?" in name:
        with pytest.raises(ValueError, match="there is no tracking URI for"):
            database_uri(path)
        return
    assert local_database(database_uri(path)) == path
    log = open_log(runs / "first", tensorboard=False, mlflow=True)
    log.scalars(1, {"a": 0.5})
    log.text(1, {"note": "an artifact"})
    assert log.close() == []
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("select key, value from metrics").fetchall() == [("a", 0.5)]
        ((artifacts,),) = store.execute("select artifact_uri from runs").fetchall()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    assert sorted(p.name for p in runs.iterdir()) == ["first", "mlartifacts", "mlflow.db"]
    assert [p.read_text() for p in (runs / "mlartifacts").rglob("*.md")] == ["an artifact"], artifacts


def test_a_locked_database_stalls_no_commit(runs, caplog):
    with closing(sqlite3.connect(runs / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        log, longest = record(runs / "first", 5, True)
        assert longest < mlflow_sink._COMMIT_LIMIT_S + 5.0  # the import of MLflow is in the first
        (left,) = log.close()
    assert "lacks 5 records" in left
    assert "database is locked" in left
    assert caplog.text.count("records are sent later") == 1
    assert open_log(runs / "first", tensorboard=False, mlflow=True, resume_step=5).close() == []


def test_a_broken_database_is_named(tmp_path, caplog):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    log, longest = record(tmp_path / "first", 5, True)
    assert longest < mlflow_sink._COMMIT_LIMIT_S + 5.0
    (left,) = log.close()
    assert f"{tmp_path}/mlflow.db: file is not a database" in left
    assert caplog.text.count("records are sent later") == 1


def test_a_store_that_never_answers_has_one_deadline(tmp_path, monkeypatch, caplog):
    """Whatever its kind: here a server that takes connections, with a client that would wait for minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setattr(mlflow_sink, "_COMMIT_LIMIT_S", 0.5)
    for module in (mlflow_sink, attempts):
        monkeypatch.setattr(module, "PATIENCE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        log = open_log(tmp_path, tensorboard=False, mlflow=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        log.scalars(1, {"a": 1.0})
        log.commit(1)
        begun = time.perf_counter()
        for step in range(2, 6):
            log.scalars(step, {"a": 1.0})
            log.commit(step)
            time.sleep(0.5)
        (left,) = log.close()
        assert time.perf_counter() - begun < 10.0
    assert "lacks 5 records (no answer for 1 s)" in left
    assert caplog.text.count("records are sent later") == 1


# The user's own settings of MLflow


def runs_of(uri: str) -> list:
    with mlflow_client(uri) as client:
        found = client.search_experiments()
        return [(e.name, run) for e in found for run in client.search_runs([e.experiment_id])]


def test_the_environment_of_the_user_stands_below_the_setting_of_the_study(runs, tmp_path, monkeypatch):
    theirs = f"sqlite:///{tmp_path}/theirs.db"
    (tmp_path / "theirs.db").write_bytes((runs / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "brake lights")
    open_log(runs / "by-environment", tensorboard=False, mlflow=True).close()
    open_log(runs / "by-study", tensorboard=False, mlflow=local_uri(runs), experiment="own").close()
    assert [(name, run.info.run_name) for name, run in runs_of(theirs)] == [
        ("brake lights", "by-environment")
    ]
    assert [(name, run.info.run_name) for name, run in runs_of(local_uri(runs))] == [("own", "by-study")]


def test_a_run_is_nested_in_the_active_run_of_the_same_store_or_says_where_it_is(runs, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_uri(runs))  # as mlflow.set_tracking_uri does
    other = f"sqlite:///{runs}/other.db"
    (runs / "other.db").write_bytes((runs / "mlflow.db").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

        with mlflow.start_run(run_name="outer") as outer:
            open_log(runs / "inner", tensorboard=False, mlflow=True).close()
            assert not caplog.records
            open_log(runs / "elsewhere", tensorboard=False, mlflow=other).close()
    assert mlflow.active_run() is None
    found = {run.info.run_name: run for _, run in runs_of(local_uri(runs))}
    assert found["inner"].data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert found["inner"].info.experiment_id == outer.info.experiment_id
    assert set(found) == {"outer", "inner"}
    assert f"is active at {local_uri(runs)}, and this one is recorded at {other}" in caplog.text
