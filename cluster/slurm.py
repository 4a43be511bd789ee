"""Submit runs and sweeps to SLURM through submitit, or run them here in the same way.

    python cluster/slurm.py train a.toml b.toml --partition gpu --gpus 1 --minutes 240
    python cluster/slurm.py sweep study.toml --nodes 4 --cpus 16

`train` is a job array with a run for each file. `sweep` is one job, which brings up Ray on all its nodes and
searches. A job that is preempted or out of time is requeued and goes on from its last checkpoint, with the
bits of an undisturbed run. Run folders, sweeps and --logs must be on storage that all nodes share.

--dry-run prints the script that sbatch would be given. --executor local runs the jobs on this machine, a
process for each node, and waits for them; debug runs them in this process.
"""

import argparse
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

_PATIENCE_S = 300.0
"""How long nodes wait for one another."""


class Requeued:
    """A job that needs nothing but itself to go on, because its folder holds the rest."""

    def __call__(self) -> str:
        """Run it, or go on with it; the folder where it did."""
        raise NotImplementedError

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again when the job is preempted or out of time."""
        return DelayedSubmission(self)


@dataclass(frozen=True)
class TrainJob(Requeued):
    """One run.

    Attributes:
        folder: Of the run.
        config: Of the study.
    """

    folder: str
    config: dict[str, Any]

    def __call__(self) -> str:
        """Train from wherever the run stands; returns its folder."""
        from fpatch.runs.training import train_in
        from fpatch.study.config import study_from_config

        for measured in train_in(self.folder, study_from_config(self.config, Path.cwd())):
            assert measured is not None
            print(f"{self.folder}: evaluated at step {measured.step}", flush=True)
        return self.folder

    def ended(self) -> str:
        """What has come of it, and how to go on."""
        return f"trained; fpatch evaluate {self.folder}"


@dataclass(frozen=True)
class SweepJob(Requeued):
    """A sweep, as every node of the job runs it: the first leads, the others lend it their devices.

    Attributes:
        folder: Of the sweep.
        cpus: Cores of a node.
        gpus: GPUs of a node.
        loopback: Whether this machine is the only node, so that Ray need not be reached from elsewhere.
    """

    folder: str
    cpus: int
    gpus: int
    loopback: bool

    def __call__(self) -> str:
        """Search from wherever the sweep stands; returns its folder."""
        from fpatch.tune.trials.ray_cluster import import_ray, on_loopback

        env = submitit.JobEnvironment()
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        meeting = Path(self.folder) / f"ray-{env.job_id}-{restarts}"
        token = Path(self.folder) / ".ray-token"
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        address = None if self.loopback else "a cluster"
        with on_loopback(address):
            ray = import_ray(address)
            if env.global_rank == 0:
                self._lead(ray, meeting, env.num_tasks)
            else:
                self._follow(meeting)
        return self.folder

    def ended(self) -> str:
        """What has come of it, and how to go on."""
        from fpatch.tune import Journal

        ends = [entry.outcome.status for entry in Journal.open(self.folder).entries() if entry.outcome]
        counts = ", ".join(f"{ends.count(status)} {status}" for status in dict.fromkeys(ends))
        return f"trials: {counts}; fpatch sweep best {self.folder}"

    def _lead(self, ray: Any, meeting: Path, num_nodes: int) -> None:
        from fpatch.tune import resume_sweep

        ip = "127.0.0.1" if self.loopback else ray.util.get_node_ip_address()
        with (
            _kept_port(ip) as port,
            self._node("--head", f"--node-ip-address={ip}", f"--port={port}", "--include-dashboard=false"),
        ):
            _wait_until(lambda: _listens(ip, port), "Ray did not start")
            draft = meeting.with_suffix(".draft")
            draft.write_text(f"{ip}:{port}")
            draft.rename(meeting)
            try:
                try:
                    os.environ["RAY_ADDRESS"] = f"{ip}:{port}"
                    ray.init("auto", log_to_driver=False)
                    _wait_until(lambda: _num_nodes(ray) == num_nodes, "a node did not come")
                    resume_sweep(self.folder, lambda *words: print(*words, flush=True))
                except SystemExit:  # requeued; if Ray was waiting just then, it has put another exit code
                    sys.exit(LOCAL_REQUEUE_RETURN_CODE)
                finally:
                    meeting.unlink()
                with suppress(TimeoutError):  # a node leaves quickly while there is a head to tell
                    _wait_until(lambda: _num_nodes(ray) == 1, "a node did not leave")
            finally:
                ray.shutdown()  # or the head would wait for the trials of a job that was cut off

    def _follow(self, meeting: Path) -> None:
        _wait_until(meeting.is_file, "the first node did not start Ray")
        address = meeting.read_text()
        with self._node(f"--address={address}") as node:
            while meeting.is_file():
                if node.poll() is not None:
                    raise RuntimeError(f"Ray has ended on this node, with exit code {node.returncode}")
                time.sleep(1.0)

    @contextmanager
    def _node(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Ray on this node."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        own = [f"--num-cpus={self.cpus}", f"--num-gpus={self.gpus}"]
        with subprocess.Popen([*command, *own, *words]) as node:
            try:
                yield node
            finally:
                node.terminate()


def _num_nodes(ray: Any) -> int:
    return sum(node["Alive"] for node in ray.nodes())


@contextmanager
def _kept_port(ip: str) -> Iterator[int]:
    """A port that the system gives to nobody else; Ray can listen there meanwhile, as it reuses addresses."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((ip, 0))
        yield kept.getsockname()[1]


def _listens(ip: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((ip, port), timeout=1.0):
        return True
    return False


def _wait_until(holds: Any, otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} within {_PATIENCE_S:.0f} s")
        time.sleep(0.5)


# -- submitting --------------------------------------------------------------------------------------------


def read_studies(paths: Sequence[str]) -> list[Any]:
    """The studies, all tried on a few images.

    Raises:
        ValueError: For anything wrong in one of them.
    """
    from fpatch.study.config import load_study
    from fpatch.study.dry_run import dry_run

    studies = [load_study(path) for path in paths]
    for study in studies:
        dry_run(study)
    return studies


def train_jobs(paths: Sequence[str]) -> list[TrainJob]:
    """A job for each study, whose folder is made; all are tried on a few images before.

    Raises:
        ValueError: For anything wrong in one of them.
    """
    from fpatch.runs.locks import new_folder
    from fpatch.study.config import vary

    jobs = []
    for study in read_studies(paths):
        runs = Path(study.log.runs).resolve()
        study = vary(study, {"log.runs": str(runs)})
        config = study.config | {"pipeline": study.pipeline.given_config}
        jobs.append(TrainJob(str(new_folder(runs, study.name)), config))
    return jobs


def sweep_job(path: str, cpus: int, gpus: int, loopback: bool) -> SweepJob:
    """The job of a sweep, whose folder is made, with the secret that its nodes show one another.

    Raises:
        ValueError: For anything wrong in it.
    """
    from fpatch.tune import load_plan
    from fpatch.tune.sweep import create_sweep

    journal = create_sweep(load_plan(path, {"sweep.address": "auto"}))
    token = journal.folder / ".ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return SweepJob(str(journal.folder), cpus, gpus, loopback)


def slurm_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """What sbatch is told, by the names of submitit."""
    asked = {
        "job_name": f"fpatch-{options.what}",
        "nodes": options.nodes,
        "ntasks_per_node": 1,
        "time": options.minutes,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus or None,
        "mem": f"{options.mem_gb}GB" if options.mem_gb else None,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "array_parallelism": options.at_once,
        "setup": options.setup or None,
        "signal_delay_s": 120,
        "additional_parameters": {"requeue": True},
    }
    return {name: value for name, value in asked.items() if value is not None}


def dry_run(options: argparse.Namespace) -> str:
    """The script that sbatch would be given; what is submitted is tried, as it would be.

    Raises:
        ValueError: For anything wrong in it.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    if options.what == "train":
        read_studies(options.configs)
    else:
        from fpatch.tune import load_plan
        from fpatch.tune.plan import check_plan

        check_plan(load_plan(options.configs[0], {"sweep.address": "auto"}))
    command = f"{sys.executable} -u -m submitit.core._submit {options.logs}"
    parameters = slurm_parameters(options)
    if len(options.configs) > 1:
        parameters["map_count"] = len(options.configs)
    return _make_sbatch_string(command, options.logs, **parameters)


def make_executor(options: argparse.Namespace) -> Any:
    """Who runs the jobs."""
    if options.executor == "debug":
        return submitit.DebugExecutor(options.logs)
    if options.executor == "local":
        executor: Any = submitit.LocalExecutor(options.logs, max_num_timeout=options.requeues)
        executor.update_parameters(timeout_min=options.minutes, tasks_per_node=options.nodes)
        return executor
    try:
        executor = submitit.SlurmExecutor(options.logs, max_num_timeout=options.requeues)
    except RuntimeError as error:
        raise ValueError(
            f"{error} Run this on a login node of SLURM; or take --dry-run, or --executor local"
        ) from error
    executor.update_parameters(**slurm_parameters(options))
    return executor


def read_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "sweep"))
    parser.add_argument("configs", nargs="+", metavar="CONFIG.toml", help="one, or several to train")
    parser.add_argument("--executor", choices=("slurm", "local", "debug"), default="slurm")
    parser.add_argument("--dry-run", action="store_true", help="print the script, and submit nothing")
    parser.add_argument("--logs", default="slurm", help="folder of the jobs' own logs (slurm)")
    parser.add_argument("--nodes", type=int, default=1, help="of a sweep (1)")
    parser.add_argument("--cpus", type=int, default=1, help="cores of a node (1)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of a node (0)")
    parser.add_argument("--mem-gb", type=int, help="memory of a node")
    parser.add_argument("--minutes", type=int, default=60, help="until a job is out of time (60)")
    parser.add_argument("--requeues", type=int, default=10, help="after so often being out of time (10)")
    parser.add_argument("--at-once", type=int, default=256, help="runs of an array at a time (256)")
    parser.add_argument("--setup", action="append", help="a line of shell before the job; may be repeated")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args(argv)
    options.logs = str(Path(options.logs).resolve())
    if options.what == "sweep" and len(options.configs) > 1:
        parser.error("a sweep is one file; submit each by itself")
    if options.what == "train" and options.nodes > 1:
        parser.error("--nodes: a run is trained on one node; leave it out")
    if options.what == "sweep" and options.executor == "debug" and options.nodes > 1:
        parser.error("--nodes: debug has one node; take --executor local")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Submit, and say where everything is."""
    options = read_options(argv)
    if options.dry_run:
        print(dry_run(options))
        return
    here = options.executor != "slurm"
    alone = here and options.nodes == 1
    executor = make_executor(options)
    if options.what == "train":
        jobs: list[Any] = train_jobs(options.configs)
    else:
        jobs = [sweep_job(options.configs[0], options.cpus, options.gpus, alone)]
    with executor.batch():
        submitted = [executor.submit(job) for job in jobs]
    for job, one in zip(jobs, submitted, strict=True):
        print(f"{one.job_id}: {job.folder}", flush=True)
    if here:
        for job, one in zip(jobs, submitted, strict=True):
            one.results()
            print(f"{job.folder}: {job.ended()}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
