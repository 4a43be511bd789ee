"""The folder `cluster`: jobs by submitit's debug and local executors; files as far as can be checked."""

import importlib.util
import re
import secrets
import shlex
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from study_fixture import environment, logged_steps, make_study, parameters
from sweeps import LONG, assert_same, sweep_file, the_sweep, trained_here, wait_until

from fpatch.runs.folder import Run
from fpatch.runs.training import resume, train
from fpatch.study.config import load_study
from fpatch.tune import Journal

FOLDER = Path(__file__).parents[1] / "cluster"
SLURM = FOLDER / "slurm.py"
ADDRESS = "ip link set lo up; ip addr add 192.0.2.1/24 dev lo; ip route add default dev lo src 192.0.2.1"
NETWORK = ["unshare", "--map-root-user", "--net", "sh", "-ec", f'{ADDRESS}; exec "$@"', "sh"]
"""Runs a command in a network of its own, in which it has an address, and which nobody else reaches."""
RANDOM = 'num_trials = 4\nsearch = "random"\npack = "auto"'


@pytest.fixture(scope="module")
def slurm():
    spec = importlib.util.spec_from_file_location("fpatch_cluster_slurm", SLURM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def submit(tmp_path):
    """Starts `slurm.py`; what a test leaves behind is ended."""
    begun = []

    def submit(*words, network=()) -> subprocess.Popen:
        command = [*network, sys.executable, str(SLURM), *map(str, words), "--executor", "local"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes))
        return begun[-1]

    yield submit
    for process in begun:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.communicate()


def tasks(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes of its jobs, in the order of their ranks."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "submitit.core._submit" in child.cmdline()]


# What sbatch would be given


def test_the_script_of_an_array_of_runs(slurm, capsys, tmp_path):
    words = ["--partition", "gpu", "--gpus", "2", "--cpus", "8", "--mem-gb", "32", "--minutes", "90"]
    words += [
        "--account",
        "lab",
        "--at-once",
        "2",
        "--setup",
        "module load cuda",
        "--logs",
        str(tmp_path / "logs"),
    ]
    study = str(make_study(tmp_path / "study"))
    slurm.main(["train", study, study, study, "--dry-run", *words])
    script = capsys.readouterr().out
    flags = set(re.findall(r"^#SBATCH (--.*)$", script, re.MULTILINE))
    assert flags >= {
        *("--array=0-2%2", "--partition=gpu", "--gpus-per-node=2", "--cpus-per-task=8", "--mem=32GB"),
        *("--time=90", "--account=lab", "--nodes=1", "--ntasks-per-node=1", "--requeue", "--signal=USR2@120"),
        *("--open-mode=append", "--job-name=fpatch-train"),
    }
    lines = script.splitlines()
    command = next(i for i, line in enumerate(lines) if line.startswith("srun"))
    assert lines.index("module load cuda") < command
    assert shlex.split(lines[command])[-4:] == ["-u", "-m", "submitit.core._submit", str(tmp_path / "logs")]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert not (tmp_path / "logs").exists()
    assert not (tmp_path / "study/runs").exists()


def test_the_script_of_a_sweep_on_several_nodes(slurm, capsys, tmp_path):
    slurm.main(["sweep", str(sweep_file(tmp_path, RANDOM)), "--dry-run", "--nodes", "4"])
    script = capsys.readouterr().out
    assert "#SBATCH --nodes=4\n" in script
    assert "#SBATCH --ntasks-per-node=1\n" in script
    assert "--array" not in script
    assert "--gpus" not in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_dry_run_reads_what_it_would_submit(slurm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        slurm.main(["train", str(tmp_path / "absent.toml"), "--dry-run"])
    path = sweep_file(tmp_path, RANDOM)
    path.write_text(path.read_text().replace("low = 0.01", "low = 0.9"))
    with pytest.raises(ValueError, match=r"space\.optimizer\.learning_rate.*0\.9"):
        slurm.main(["sweep", str(path), "--dry-run"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "a.toml", "b.toml"], "a sweep is one file"),
        (["train", "a.toml", "--nodes", "2"], "a run is trained on one node"),
        (["sweep", "a.toml", "--nodes", "2", "--executor", "debug"], "debug has one node"),
    ],
)
def test_what_makes_no_job_is_refused(slurm, capsys, words, message):
    with pytest.raises(SystemExit):
        slurm.main(words)
    assert message in capsys.readouterr().err


def test_a_machine_without_slurm_is_told_so(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r'Could not detect "srun".*or take --dry-run, or --executor local'):
        slurm.main(["train", str(make_study(tmp_path)), "--logs", str(tmp_path / "slurm")])
    assert not (tmp_path / "runs").exists()


# Jobs


def test_a_port_is_kept_until_ray_listens_there(slurm):
    with slurm._kept_port("127.0.0.1") as port:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        with socket.socket() as ray:
            ray.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
            ray.bind(("127.0.0.1", port))
            ray.listen()
            assert slurm._listens("127.0.0.1", port)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its log open
def test_runs_in_this_process(slurm, tmp_path, capsys):
    """The debug executor, which needs no second process; the patch is that of `fpatch train`."""
    threads = torch.get_num_threads()
    path = make_study(tmp_path / "study")
    slurm.main(["train", str(path), str(path), "--executor", "debug", "--logs", str(tmp_path / "slurm")])
    folders = sorted((tmp_path / "study/runs").iterdir())
    assert len(folders) == 2
    said = capsys.readouterr().out
    whole = train(load_study(path))
    for folder in folders:
        assert f"{folder}: trained; fpatch evaluate {folder}" in said
        assert parameters(Run.open(folder)) == parameters(whole)
    assert torch.get_num_threads() == threads


def test_a_broken_study_is_refused_before_any_folder_is_made(slurm, tmp_path):
    good, bad = make_study(tmp_path / "good"), make_study(tmp_path / "bad")
    bad.write_text(bad.read_text().replace("[evaluate]", '[evaluate]\nmetric = "fund"'))
    with pytest.raises(ValueError, match="'fund'"):
        slurm.main(["train", str(good), str(bad), "--executor", "debug", "--logs", str(tmp_path / "slurm")])
    assert not (tmp_path / "good/runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("words", "case"), [((), "preempted"), (("--minutes", "1", "--requeues", "1"), "timed-out")], ids=str
)
def test_runs_that_are_cut_off_go_on_to_the_same_bits(submit, tmp_path, words, case):
    """An array of two, each signaled as SLURM does before it takes a node away, or when the time is over.

    A job of a minute has always had most of its time.
    """
    path = make_study(tmp_path / "study", **LONG)
    process = submit("train", path, path, *words)
    runs = tmp_path / "study/runs"
    wait_until(lambda: len(list(runs.glob("*/checkpoints/step-00000020.safetensors"))) == 2, process)
    for task in tasks(process):
        task.send_signal(signal.SIGUSR2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    folders = sorted(runs.iterdir())
    assert all(str(folder) in out for folder in folders)
    said = "".join(p.read_text() for p in (tmp_path / "slurm").glob("*_log.out"))
    assert said.count(f"this job is {case}") == said.count("Requeued job") == 2
    whole = train(load_study(path))
    for folder in folders:
        assert parameters(Run.open(folder)) == parameters(whole)
        assert logged_steps(folder) == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_out_of_time_too_often_is_given_up_and_can_be_resumed(submit, tmp_path):
    path = make_study(tmp_path / "study", **LONG)
    process = submit("train", path, "--minutes", "1", "--requeues", "0")
    runs = tmp_path / "study/runs"
    wait_until(lambda: bool(list(runs.glob("*/checkpoints/step-00000020.safetensors"))), process)
    tasks(process)[0].send_signal(signal.SIGUSR2)
    _, err = process.communicate()
    assert process.returncode != 0
    assert "timed-out too many times" in err
    (folder,) = runs.iterdir()
    assert Run(folder).checkpoint_steps()[-1] < 60
    assert parameters(resume(folder)) == parameters(train(load_study(path)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_who_does_not_know_the_secret_is_refused(tmp_path):
    """By a cluster as those of the folder are, which asks for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    known = {}
    for name in ("right", "wrong"):
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
        known[name] = environment(**loopback, RAY_AUTH_TOKEN_PATH=str(path))
    words = ["--block", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", *words]
    file = sweep_file(tmp_path / "study", 'num_trials = 1\nsearch = "random"')
    sweep = [sys.executable, "-m", "fpatch", "sweep", file, "--sweep.address", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        [*command, "--include-dashboard=false"],
        env=known["right"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as head:
        try:
            wait_until(lambda: can_connect(port), head)
            results = {
                name: subprocess.run(sweep, cwd=tmp_path, env=known[name], capture_output=True, text=True)
                for name in ("wrong", "right")
            }
        finally:
            for child in psutil.Process(head.pid).children(recursive=True):
                child.terminate()
            head.terminate()
    assert results["wrong"].returncode == 2
    assert "InvalidAuthToken" in results["wrong"].stderr
    assert "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the token's file" in results["wrong"].stderr
    assert results["right"].returncode == 0, results["right"].stderr
    assert [e.outcome is not None for e in Journal(max((tmp_path / "study/runs").iterdir())).entries()] == [
        True
    ]


def can_connect(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preempted_sweep_goes_on_to_the_same_bits(submit, tmp_path):
    path = sweep_file(tmp_path / "study", RANDOM, **LONG)
    process = submit("sweep", path, "--cpus", "2")
    runs = tmp_path / "study/runs"
    wait_until(lambda: len(list(runs.glob("*/journal/*.points.jsonl"))) == 4, process)
    listening = {
        c.laddr.ip
        for p in psutil.Process(process.pid).children(recursive=True)
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    tasks(process)[0].send_signal(signal.SIGUSR2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    journal = the_sweep(tmp_path / "study")
    assert out.endswith(f"{journal.folder}: trials: 4 finished; fpatch sweep best {journal.folder}\n")
    assert [e.trial.pack for e in journal.entries()] == [["0000", "0001"]] * 2 + [["0002", "0003"]] * 2
    assert_same(journal, trained_here(tmp_path / "here", LONG, RANDOM, pack=2), 60)
    said = "".join(p.read_text() for p in (tmp_path / "slurm").glob("*_0_log.out"))
    assert said.count("Requeued job") == 1
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    assert stat.S_IMODE((journal.folder / ".ray-token").stat().st_mode) == 0o600
    assert not list(journal.folder.glob("ray-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_on_two_nodes(submit, tmp_path):
    """Which find each other, and show one another the secret."""
    if subprocess.run([*NETWORK, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody make a network of their own")
    path = sweep_file(tmp_path / "study", RANDOM, num_steps=20, every=10)
    process = submit("sweep", path, "--nodes", "2", network=NETWORK)
    _, err = process.communicate()
    assert process.returncode == 0, err
    journal = the_sweep(tmp_path / "study")
    assert [e.trial.pack for e in journal.entries()] == [["0000", "0001"]] * 2 + [["0002", "0003"]] * 2
    settings = {"num_steps": 20, "every": 10}
    assert_same(journal, trained_here(tmp_path / "here", settings, RANDOM, pack=2), 20)
    assert not list(journal.folder.glob("ray-*"))


# Files for others to read


def test_the_ray_cluster_is_one_that_ray_accepts():
    """By the validation of `ray up`, which asks no machine."""
    import yaml

    from fpatch.tune.trials.ray_cluster import import_ray

    import_ray()
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "ray.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"]) == 2
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    for command in (*starts, *config["setup_commands"]):
        subprocess.run(["bash", "-n", "-c", command], check=True)
    for command in starts:
        assert_known_options(command)
    broken = {**config, "max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


def assert_known_options(command: str) -> None:
    """All options of a `ray start` exist."""
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    words = shlex.split(command[command.index("ray start") :])
    found = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert found <= known


def test_the_kubernetes_manifest_has_what_the_operator_requires():
    import yaml

    from fpatch.tune.trials.ray_cluster import import_ray

    import_ray()
    cluster, claim, policy = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert_known_options("ray start " + " ".join(f"--{name}" for name in group["rayStartParams"]))
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
        assert mounts == {"shared": "/shared"}
        assert volumes == {"shared": claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert selected == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == selected


def test_an_object_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"log.runs must be a folder, .*got 's3://bucket/runs'; mount"):
        load_study(make_study(tmp_path), {"log.runs": "s3://bucket/runs"})
