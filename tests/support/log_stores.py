"""Readers of TensorBoard and MLflow, real stores and servers, and ways to die while writing."""

import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from fpatch.core.files import AppendFile
from fpatch.log import Records
from fpatch.log import mlflow as mlflow_sink


def read_events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=sizes).Reload()


@contextmanager
def mlflow_client(uri: str):
    """A plain client, as a user reads with; MLflow's own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        yield MlflowClient(uri)


def read_mlflow(folder: Path, uri: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of the one living run of a run folder, as stored: duplicates would show."""
    with mlflow_client(uri) as client:
        experiment = client.get_experiment_by_name("fpatch")
        runs = client.search_runs([experiment.experiment_id], f"run_name = '{folder.name}'")
        assert len(runs) == 1
        run_id = runs[0].info.run_id
        assert run_id == json.loads((folder / "mlflow.json").read_text())["run_id"]
        return {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
            for name in runs[0].data.metrics
        }


def local_uri(runs: Path) -> str:
    return f"sqlite:///{runs / 'mlflow.db'}"


@contextmanager
def file_size_limit(limit: int):
    """A disk on which no file grows beyond `limit` bytes (Python ignores SIGXFSZ: writes fail with EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mlflow_server(runs: Path, port: int):
    """A real server on loopback; its workers share its process group, so that all can be killed at once."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", local_uri(runs)]
    command += ["--artifacts-destination", str(runs / "served")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(runs / "server.log", "ab") as output:
        server = subprocess.Popen(
            command, env=os.environ | quiet, cwd=runs, stdout=output, stderr=output, start_new_session=True
        )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (runs / "server.log").read_text()
            time.sleep(0.1)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def killed_in_fork(work: Callable[[], object], moment: int | float) -> bool:
    """Do `work` in a process that is killed; whether that came before its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jax, if another test has used it, which the child does not
        pid = os.fork()
    if pid == 0:
        try:
            if isinstance(moment, int):
                die_at(moment)
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if isinstance(moment, float):
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def _write_half(log: Records, path: str, data: bytes) -> None:
    (log.folder / path).parent.mkdir(parents=True, exist_ok=True)
    (log.folder / path).write_bytes(data[: len(data) // 2])


def die_at(moment: int) -> None:
    """Kill this process at its n-th act of writing: before, after or, for a block of bytes, in its middle."""
    calls = itertools.count()

    def deadly(owner, name, half=None):
        act = getattr(owner, name)

        def wrapper(*args, **kwargs):
            for stage in ("before", "half", "after"):
                if stage == "half" and half is not None and next(calls) == moment:
                    half(*args)
                    os.kill(os.getpid(), signal.SIGKILL)
                if stage == "after":
                    result = act(*args, **kwargs)
                if stage != "half" and next(calls) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, wrapper)

    deadly(AppendFile, "write", lambda file, block: file._file.write(block[: len(block) // 2]))
    deadly(Records, "write_file", _write_half)
    for owner, name in ((os, "replace"), (os, "truncate"), (Path, "unlink"), (Path, "rename")):
        deadly(owner, name)
    for name in ("_find_or_create_run", "_send", "_save"):
        deadly(mlflow_sink.Mlflow, name)
