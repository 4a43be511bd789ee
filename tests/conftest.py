"""Before any import of fpatch: shapes and types of its annotations are checked while tests run."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from typecheck import install

torch.set_num_threads(1)
# Python does not notice when a limit on file sizes or a full disk cut the bytecode that it caches
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
_STATE = tempfile.TemporaryDirectory(prefix="fpatch-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name
install()
settings.register_profile("fpatch", deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile("fpatch")


FIRST, LAST = ("test_docs_site", "test_parallel"), ("test_laws",)
"""Files whose fixtures take longest, and one of many small tests, which workers can share at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (item.path.stem in LAST) - (item.path.stem in FIRST))


def pytest_collection_finish():
    """What is imported stays: the collector of garbage need not look at it after every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny study, trained and evaluated; not to be written to."""
    from study_fixture import make_study

    from fpatch.runs.evaluating import evaluate_run
    from fpatch.runs.training import train
    from fpatch.study.config import load_study

    run = train(load_study(make_study(tmp_path_factory.mktemp("trained"), tensorboard=True)))
    return evaluate_run(run.folder)[0]


@pytest.fixture
def run(trained, tmp_path: Path):
    """A copy of it, which a test may damage."""
    from study_fixture import copy_run

    return copy_run(trained, tmp_path)


@pytest.fixture
def saved_figures(monkeypatch):
    """The figures of matplotlib that are saved, in order."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def keep(self, *arguments, **options):
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A new MLflow database, made once: its making takes seconds."""
    from fpatch.log import mlflow_client

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with mlflow_client.quiet(), mlflow_client.contained():
        mlflow_client.make_database(path)
    return path


@pytest.fixture
def runs(tmp_path: Path, empty_store: Path) -> Path:
    """A folder for runs beside an MLflow database."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def start(tmp_path: Path):
    """Start commands; those that a test leaves behind are ended."""
    from study_fixture import command, environment

    begun = []

    def start(*words) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command(*words), cwd=tmp_path, env=environment(), **pipes))
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Ctrl-C as on a terminal: a shell starts background jobs with the signal ignored, which is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
