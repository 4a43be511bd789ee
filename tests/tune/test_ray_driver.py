"""Sweeps on real Ray: on this machine, drivers and workers killed, and on three nodes of which one dies."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from log_stores import local_uri, mlflow_client, mlflow_server
from study_fixture import environment, parameters, read_records
from sweeps import LONG, assert_same, sweep_file, the_sweep, trained_here, wait_until

from fpatch import tune
from fpatch.cli.main import main
from fpatch.runs.folder import Run
from fpatch.runs.training import train
from fpatch.study.config import vary
from fpatch.tune.folder.journal import Journal
from fpatch.tune.plan import plan_from_config, trial_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


TRIALS = ("ray::FpatchTrial", "ray::ResourceTrainable")


def workers(process: subprocess.Popen, titles: tuple[str, ...] = TRIALS) -> list[psutil.Process]:
    """The actors that train."""

    def title(child: psutil.Process) -> str:
        try:
            return " ".join(child.cmdline())
        except psutil.Error:  # it ended meanwhile
            return ""

    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if title(child).startswith(titles)]


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def addresses(process: subprocess.Popen) -> set[str]:
    """Where it and its children listen."""
    found = set()
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            listening = [c for c in child.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            found |= {c.laddr.ip for c in listening}
    return found


def test_a_sweep_from_the_command_line(start, tmp_path):
    sweep = 'num_trials = 3\nsearch = "random"\nmax_concurrent = 2'
    path = sweep_file(tmp_path / "ray", sweep)
    process = start("sweep", path)
    wait_until(lambda: bool(workers(process)), process)
    listening = addresses(process)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert err == ""
    for words in ("trial 0002: finished at step 6, success/patch", "trials: 3 done best", "3 finished"):
        assert words in out
    assert not {"ray", "Ray", "Trainable"} & set(out.replace(str(tmp_path), "").split())
    journal = the_sweep(tmp_path / "ray")
    assert_same(journal, trained_here(tmp_path / "here", {}, sweep), 6)
    assert listening <= LOOPBACK, listening


HERE = """
import os
from fpatch import tune
from fpatch.tune.trials.ray_cluster import connected

if __name__ == "__main__":
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    plan = tune.load_plan("study.toml")
    with connected(plan) as ray:
        from ray._private import ray_constants

        print(os.environ[name], ray_constants.ENABLE_RAY_CLUSTER)
    print(os.environ.get(name))
"""


def test_what_ray_is_told_is_taken_back(tmp_path):
    """Or it would hold for clusters that the program starts by itself later."""
    sweep_file(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", HERE], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "False", "None"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_driver(start, tmp_path, how):
    sweep = 'num_trials = 3\nsearch = "random"\nmax_concurrent = 2'
    path = sweep_file(tmp_path / "ray", sweep, **LONG)
    process = start("sweep", path)
    points = tmp_path / "ray/runs"
    wait_until(lambda: len(list(points.glob("*/journal/*.points.jsonl"))) == 2, process)
    process.send_signal(how)
    _, err = process.communicate()
    journal = the_sweep(tmp_path / "ray")
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"resume with: fpatch sweep resume {journal.folder}" in err
    began = {n: Run(journal.run_folder(n)).checkpoint_steps() for n in journal.names()}
    assert not all(e.outcome for e in journal.entries())
    again = start("sweep", "resume", journal.folder, "--config", path)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "trials: 3 done" in out
    assert any(began.values())
    assert_same(journal, trained_here(tmp_path / "here", LONG, sweep), 60)
    done = [e.outcome.time for e in journal.entries() if e.outcome]
    assert tune.resume_sweep(journal.folder).folder == journal.folder  # nothing is left to do
    assert [e.outcome.time for e in journal.entries() if e.outcome] == done


def test_a_killed_worker(start, tmp_path):
    sweep = 'num_trials = 2\nsearch = "random"\nmax_concurrent = 1'
    path = sweep_file(tmp_path / "ray", sweep, **LONG)
    process = start("sweep", path)
    folder = tmp_path / "ray/runs"
    wait_until(lambda: bool(list(folder.glob("*/journal/0000.points.jsonl"))), process)
    wait_until(lambda: len(workers(process)) == 1, process)
    workers(process)[0].kill()
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_same(the_sweep(tmp_path / "ray"), trained_here(tmp_path / "here", LONG, sweep), 60)


def test_a_pack_whose_worker_is_killed(start, tmp_path):
    """One process trains four trials: on one place, that is what is chosen."""
    sweep = 'num_trials = 4\nsearch = "random"\npack = "auto"\nmax_concurrent = 1'
    path = sweep_file(tmp_path / "ray", sweep, **LONG)
    process = start("sweep", path)
    folder = tmp_path / "ray/runs"
    wait_until(lambda: len(list(folder.glob("*/journal/*.points.jsonl"))) == 4, process)
    wait_until(lambda: len(workers(process)) == 1, process)
    workers(process)[0].kill()
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "4 finished" in out
    journal = the_sweep(tmp_path / "ray")
    assert [e.trial.pack for e in journal.entries()] == [["0000", "0001", "0002", "0003"]] * 4
    assert_same(journal, trained_here(tmp_path / "here", LONG, sweep, pack=4), 60)


TOGETHER = 'num_trials = 2\nsearch = "random"\nprocesses = 2\ncpus = 0.5\nmax_concurrent = 1'


def assert_trained_together(journal: Journal, num_steps: int) -> None:
    """Each patch has the bits of one process that takes rows in the same parts, and is near that of all."""
    plan = plan_from_config(journal.config)
    for entry in journal.entries():
        assert entry.outcome is not None
        assert entry.outcome.status == "finished", entry.outcome.traceback
        run = Run.open(journal.run_folder(entry.trial.name))
        assert run.processes == 2
        steps = [r["step"] for r in read_records(run.folder) if "train/loss" in r["values"]]
        assert steps == list(range(1, num_steps + 1))
        study = trial_study(plan, entry.trial, journal.folder / "alone")
        halves, whole = train(vary(study, {"train.micro_batch": 2})), train(study)
        assert parameters(run) == parameters(halves)
        for n, bits in parameters(run).items():
            found, expected = (np.frombuffer(b, np.float32) for b in (bits, parameters(whole)[n]))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_a_trial_that_two_processes_train_together(start, tmp_path):
    process = start("sweep", sweep_file(tmp_path, TOGETHER))
    wait_until(lambda: bool(list(tmp_path.glob("runs/*/journal/0000.points.jsonl"))), process)
    listening = addresses(process)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert err == ""
    assert listening <= LOOPBACK, listening
    journal = the_sweep(tmp_path)
    assert_trained_together(journal, 6)
    assert main(["replay", str(journal.run_folder("0001")), "--step", "5", "--verify"]) == 0


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_process_of_a_trial_is_killed(start, tmp_path, which):
    """The trial is taken up again, by as many."""
    process = start("sweep", sweep_file(tmp_path, TOGETHER.replace("= 2", "= 1", 1), **LONG))
    wait_until(lambda: bool(list(tmp_path.glob("runs/*/journal/0000.points.jsonl"))), process)
    (killed,) = workers(process, TRIALS if which == "first" else ("ray::Follower",))
    killed.kill()
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_trained_together(the_sweep(tmp_path), 60)


def test_what_one_process_of_a_trial_raises_stands_in_the_table(start, tmp_path):
    """And not that the first has lost it."""
    path = sweep_file(tmp_path, TOGETHER)
    stage = '[pipeline.weak]\nstage = "sweeps:weak"\nphases = ["train"]\n[pipeline.vanish]'
    path.write_text(path.read_text().replace("[pipeline.vanish]", stage))
    process = start("sweep", path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    for entry in the_sweep(tmp_path).entries():
        assert entry.outcome is not None
        assert entry.outcome.status == "failed"
        assert entry.outcome.error == "RuntimeError: the second is too weak"
        assert "in follow" in entry.outcome.traceback


def test_a_trial_that_raises(start, tmp_path):
    """Before its first evaluation; the command tells of it, and the others finish."""
    text = sweep_file(tmp_path, 'search = "grid"').read_text()
    stage = '[pipeline.touchy]\nstage = "sweeps:touchy"\n[pipeline.vanish]'
    space = "[space]\npipeline.touchy.brightness = {choices = [1.0, 0.25]}\n[sweep]"
    text = text.replace("[pipeline.vanish]", stage).replace("[sweep]", "")
    (tmp_path / "study.toml").write_text(text[: text.index("[space]")] + f'{space}\nsearch = "grid"\n')
    process = start("sweep", tmp_path / "study.toml")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "trial 0001: failed: RuntimeError: too dark to see" in out
    assert [e.outcome.status for e in the_sweep(tmp_path).entries() if e.outcome] == ["finished", "failed"]


def test_a_population(start, tmp_path):
    sweep = 'search = "population"\nnum_trials = 8\npopulation = {size = 4, every = 3}\ncpus = 0.5'
    process = start("sweep", sweep_file(tmp_path / "ray", sweep))
    _, err = process.communicate()
    assert process.returncode == 0, err
    journal, whole = the_sweep(tmp_path / "ray"), trained_here(tmp_path / "here", {}, sweep)
    for name in whole.names():
        assert journal.entry(name).trial == whole.entry(name).trial
        assert parameters(Run(journal.run_folder(name))) == parameters(Run(whole.run_folder(name)))


def test_a_worker_that_dies_again_and_again_is_given_up(start, tmp_path):
    path = sweep_file(tmp_path, 'num_trials = 2\nsearch = "random"\nretries = 1\nmax_concurrent = 1', **LONG)
    process = start("sweep", path)
    killed: set[int] = set()
    for _ in range(2):
        wait_until(lambda: bool({w.pid for w in workers(process)} - killed), process)
        (worker,) = [w for w in workers(process) if w.pid not in killed]
        killed.add(worker.pid)
        worker.kill()
    out, err = process.communicate()
    assert process.returncode == 0, err
    first, second = the_sweep(tmp_path).entries()
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, second.outcome.status) == ("failed", "finished")
    assert "the worker died 2 times" in out


CLUSTER = """
import sys, threading, time, warnings
from pathlib import Path
from fpatch import tune
from fpatch.core.progress import Progress
from fpatch.tune.trials.ray_cluster import import_ray

if __name__ == "__main__":
    ray = import_ray()
    from ray.cluster_utils import Cluster

    here = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=here)
    nodes = [cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1") for _ in range(2)]
    runs = Path(sys.argv[2])

    def kill_one():
        while len(list(runs.glob("*/journal/*.points.jsonl"))) < 3:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        print("killed", flush=True)

    threading.Thread(target=kill_one, daemon=True).start()
    plan = tune.load_plan(sys.argv[1], {"sweep.address": cluster.address})
    tune.run_plan(plan, lambda *words: print(*words, flush=True))
    cluster.shutdown()
"""


def test_three_nodes_of_which_one_dies(tmp_path):
    """Every trial finishes with the bits of an undisturbed sweep."""
    sweep = 'num_trials = 4\nsearch = "random"'
    path = sweep_file(tmp_path / "ray", sweep, num_steps=90, every=10)
    (tmp_path / "cluster.py").write_text(CLUSTER)
    words = [sys.executable, tmp_path / "cluster.py", path, tmp_path / "ray/runs"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = environment(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    with subprocess.Popen(words, cwd=tmp_path, env=env, **pipes) as process:
        points = tmp_path / "ray/runs"
        wait_until(lambda: bool(list(points.glob("*/journal/*.points.jsonl"))), process)
        listening = addresses(process)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "killed" in out
    assert listening <= LOOPBACK, listening
    whole = trained_here(tmp_path / "here", {"num_steps": 90, "every": 10}, sweep)
    assert_same(the_sweep(tmp_path / "ray"), whole, 90)


# MLflow


def assert_nested(journal: Journal, uri: str, num_steps: int) -> None:
    """A parent with a child per trial, each metric of each step once."""
    with mlflow_client(uri) as client:
        experiment = client.get_experiment_by_name("fpatch")
        runs = client.search_runs([experiment.experiment_id])
        assert len(runs) == 1 + len(journal.names())
        by_id = {r.info.run_id: r for r in runs}
        parent = by_id.pop(json.loads((journal.folder / "mlflow.json").read_text())["run_id"])
        assert parent.info.status == "FINISHED"
        assert parent.data.params["sweep.search"] == "random"
        assert parent.data.params["space.optimizer.learning_rate.high"] == "0.3"
        assert {"trials.csv", "trials.parquet", "figures"} <= {
            f.path for f in client.list_artifacts(parent.info.run_id)
        }
        history = client.get_metric_history(parent.info.run_id, "sweep/objective")
        assert sorted(p.value for p in history) == sorted(e.value for e in journal.entries())
        for name in journal.names():
            folder = journal.run_folder(name)
            child = by_id.pop(json.loads((folder / "mlflow.json").read_text())["run_id"])
            assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert child.info.status == "FINISHED"
            rate = journal.entry(name).trial.settings["optimizer.learning_rate"]
            assert float(child.data.params["optimizer.learning_rate"]) == rate
            assert child.inputs.dataset_inputs[0].dataset.name == "placements"
            steps = [p.step for p in client.get_metric_history(child.info.run_id, "train/loss")]
            assert sorted(steps) == list(range(1, num_steps + 1))
            assert any(f.path == "images" for f in client.list_artifacts(child.info.run_id))
        assert not by_id


def test_mlflow_shows_the_trials_below_the_sweep(start, tmp_path, empty_store):
    path = sweep_file(tmp_path, 'num_trials = 2\nsearch = "random"', mlflow=True)
    (tmp_path / "runs").mkdir()
    shutil.copyfile(empty_store, tmp_path / "runs/mlflow.db")
    process = start("sweep", path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_nested(the_sweep(tmp_path), local_uri(tmp_path / "runs"), 6)


def test_an_mlflow_server_that_is_down_for_a_minute(start, tmp_path, empty_store):
    """Trials end while it is away; when it is back everything stands in it once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    path = sweep_file(tmp_path, 'num_trials = 3\nsearch = "random"\nmax_concurrent = 1', mlflow=uri)
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    with mlflow_server(tmp_path, port):
        process = start("sweep", path)
        runs = tmp_path / "runs"
        wait_until(lambda: bool(list(runs.glob("*/journal/0000.outcome.json"))), process)
    down = time.monotonic()
    _, err = process.communicate()
    assert process.returncode == 0, err
    journal = the_sweep(tmp_path)
    assert "lacks" in err
    assert f"fpatch sweep resume {journal.folder}" in err
    time.sleep(max(0.0, 60 - (time.monotonic() - down)))
    with mlflow_server(tmp_path, port):
        again = start("sweep", "resume", journal.folder)
        _, err = again.communicate()
        assert again.returncode == 0, err
        assert_nested(journal, uri, 6)
