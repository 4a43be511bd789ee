"""Several processes train one patch: real ones, by gloo on the loopback device."""

import json
import multiprocessing
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel_worker import CASES, run, tensors, work
from safetensors.torch import load_file
from study_fixture import STEPS, change, copy_run, environment, logged_steps, make_study, parameters

from fpatch.data import Loader
from fpatch.runs.folder import Run
from fpatch.runs.replaying import replay_step
from fpatch.runs.standing import go_back
from fpatch.runs.training import resume, train
from fpatch.runtime.parallel import ALONE, Ranks, joined
from fpatch.study.config import load_study


@pytest.fixture(scope="module")
def study_path(tmp_path_factory) -> Path:
    """Five photographs to train on, so that a batch uses some of them twice or more; two lack an object."""
    path = make_study(tmp_path_factory.mktemp("parallel"))
    table = path.parent / "objects.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if line[:13] not in ("photograph-01", "photograph-03")))
    return path


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["parallel_worker"])
"""Imports once what every process needs."""


def start(task: str, study: Path, folder: Path) -> list[Any]:
    """Two processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    processes = [SERVER.Process(target=work, args=(task, study, folder, given)) for given in own]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[Any]) -> None:
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@pytest.fixture(scope="module")
def found(study_path, tmp_path_factory):
    """What both processes of two runs hold after each case: `[run][rank][case]`."""
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    for started in [start("cases", study_path, folder) for folder in folders]:
        finish(started)
    return [
        [{name: load_file(folder / f"{name}-{rank}.safetensors") for name in CASES} for rank in range(2)]
        for folder in folders
    ]


@pytest.fixture(scope="module")
def alone(study_path):
    """The same from one process with the whole batch."""
    study = load_study(study_path)
    return {name: tensors(*run(study, name)) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_patch_of_one(name, found, alone):
    """Draws to the bit; the rest by rounding, which the sign or the scale of a small gradient enlarges."""
    tolerance = {"adam": 1e-3, "plateau": 1e-3, "looking ahead": 2e-2}.get(name, 1e-5)
    together = found[0][0][name]
    assert together.keys() == alone[name].keys()
    for key, value in alone[name].items():
        if "/batch/" in key or "/sample/" in key:
            assert torch.equal(together[key], value), key
        elif "/grad_norm" in key or "/terms/" in key or "/loss" in key:
            torch.testing.assert_close(together[key], value, rtol=tolerance, atol=tolerance)
        else:
            torch.testing.assert_close(together[key], value, rtol=0.0, atol=tolerance)


def test_rows_are_used_more_than_once(alone):
    """Or else these tests could not tell keys of the whole batch from keys of a part."""
    assert any(int(alone["even"][f"{i}/batch/draw"].max()) > 0 for i in range(3))


def test_some_rows_do_not_count(alone):
    """Or else these tests could not tell the rows counted in all processes from those in one."""
    for name in ("even", "uneven", "accumulated", "sharpness-aware"):
        counted = [alone[name][f"{i}/counted/vanish"] for i in range(3)]
        assert any(0 < int(mask.sum()) < len(mask) for mask in counted)
        parts = [[int(mask[Ranks(rank, 2).rows(len(mask))].sum()) for rank in (0, 1)] for mask in counted]
        assert any(one != other for one, other in parts)


@pytest.mark.parametrize("name", CASES)
def test_both_processes_and_both_runs_agree_to_the_bit(name, found):
    first = found[0][0][name]
    for other in (found[0][1][name], found[1][0][name], found[1][1][name]):
        assert other.keys() == first.keys()
        assert all(torch.equal(other[key], value) for key, value in first.items())


@pytest.mark.parametrize("name", CASES)
def test_one_process_can_sum_as_two_to_the_bit(name, found, study_path):
    parts = tensors(*run(load_study(study_path), name, processes=2))
    assert all(torch.equal(found[0][0][name][key], value) for key, value in parts.items())


def test_two_processes_are_two_micro_batches_to_the_bit(found, study_path):
    parts = tensors(*run(load_study(study_path), "uneven", micro_batch=4))
    assert all(torch.equal(found[0][0]["uneven"][key], value) for key, value in parts.items())


# -- rows


@pytest.mark.parametrize(("num_rows", "size"), [(7, 2), (8, 3), (5, 5), (16, 1), (100, 7)])
def test_every_row_is_held_once(num_rows, size):
    parts = [range(num_rows)[Ranks(rank, size).rows(num_rows)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(num_rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_reads_its_own_photographs_only(study_path):
    data = load_study(study_path).data.open().split("train")
    whole = Loader(data, torch.tensor([1, 2]), 7).batch(3)
    for rank, size in ((0, 4), (1, 3)):
        part = Loader(data, torch.tensor([1, 2]), 7, ranks=Ranks(rank, 2)).batch(3)
        assert len(part["scene"]) == size
        for name, value in part.items():
            assert torch.equal(value, whole[name][4 * rank : 4 * rank + size])


def test_alone_there_is_nothing_to_exchange():
    tree = {"a": torch.ones(2)}
    assert ALONE.gather(tree) == [tree]
    assert ALONE.join(tree) is tree
    assert ALONE.tell("here") == "here"
    ALONE.check_same("anything", b"")
    with joined() as ranks:
        assert ranks == ALONE


KEPT = """
import torch.distributed as dist
from fpatch.runtime.parallel import Meeting, joined
from pathlib import Path

def threads():
    return [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]

with joined(device="cpu", meeting=Meeting(dist.HashStore(), 0, 1)):
    import torch.distributed.nn.functional
    import torch.jit._recursive
    print(len(threads()))
print(len(threads()), sum("gloo" in name for name in threads()))
"""


def test_nothing_keeps_the_group_or_its_threads():
    """Threads of gloo at the exit of Python may abort the process."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    within, after, left = map(int, done.stdout.split())
    assert within >= after + 2
    assert left == 0


def test_a_group_that_somebody_else_has_made_is_used_and_left():
    """As in a worker of Ray Train."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]: documented, and not listed
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with joined() as ranks:
            assert ranks == (0, 1, None)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_beside_a_group_that_carries_no_tensors_on_a_cpu_another_is_made(found, study_path, tmp_path):
    """As in a worker of Ray Train with NCCL; the patch has the bits of processes started by torchrun."""
    finish(start("beside", study_path, tmp_path))
    for rank in range(2):
        beside = load_file(tmp_path / f"uneven-{rank}.safetensors")
        assert all(torch.equal(found[0][0]["uneven"][key], value) for key, value in beside.items())


@pytest.mark.parametrize(
    ("device", "backend", "chosen"),
    [
        ("auto", "cpu:gloo,cuda:nccl", [1]),
        ("cuda", "cpu:gloo,cuda:nccl", [1]),
        ("cuda:1", "gloo", []),
        ("cpu", "gloo", []),
    ],
)
def test_a_process_takes_the_gpu_of_its_number_only_where_none_is_named(monkeypatch, device, backend, chosen):
    """Where there were two GPUs; what torch is asked for, which only such a machine could do."""
    given = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    gpus, backends = [], []

    def refuse(backend, timeout):
        backends.append(backend)
        raise RuntimeError("there is no other process")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", gpus.append)
    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(ConnectionError, match="there is no other process"), joined(device=device):
        pass
    assert (gpus, backends) == (chosen, [backend])


# -- errors


def test_fewer_rows_than_processes(study_path):
    data = load_study(study_path).data.open().split("train")
    with pytest.raises(ValueError, match="at least the number of processes, got 2 rows for 3 processes"):
        Loader(data, torch.tensor([1, 2]), 2, ranks=Ranks(0, 3))


def test_a_number_of_processes_without_a_way_to_meet(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ValueError, match="WORLD_SIZE=2, but no RANK; start the processes with torchrun"),
        joined(),
    ):
        pass


def test_processes_that_do_not_hold_the_same(study_path, tmp_path):
    finish(start("refuse", study_path, tmp_path))
    for rank in range(2):
        seed, form = (tmp_path / f"refused-{rank}.txt").read_text().splitlines()
        assert "the seed must be the same in all processes, but process 1 differs" in seed
        assert "rows of [12, 16] bytes" in form


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_process_that_is_lost_is_an_error_in_the_others(how, study_path, tmp_path):
    first, second = start(how, study_path, tmp_path)
    try:
        first.join(60)
        assert "another process of this run has ended, or did not" in (tmp_path / f"{how}.txt").read_text()
        assert second.is_alive() == (how == "hangs")
    finally:
        second.kill()
        second.join()


# -- by the command line


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "fpatch", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=170,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """By torchrun, and the only run of its study."""
    path = make_study(tmp_path_factory.mktemp("torchrun"), batch_size=7)
    done = torchrun("train", path, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    (folder,) = (path.parent / "runs").iterdir()
    assert done.stdout.count(f"run folder: {folder}") == 2  # by one process: where it starts, and at the end
    assert done.stdout.count("fpatch evaluate ") == 1
    return Run.open(folder)


def test_torchrun_leaves_one_run_with_one_set_of_records(trained):
    assert logged_steps(trained.folder) == list(range(1, STEPS + 1))
    assert logged_steps(trained.folder, "validation/success/patch") == [3, 6]
    assert json.loads((trained.folder / "environment.json").read_text())["processes"] == 2
    path = trained.folder.parent.parent / "study.toml"
    one = train(load_study(path, {"log.runs": str(path.parent / "alone"), "train.micro_batch": 4}))
    assert parameters(one) == parameters(trained)


def test_an_update_of_several_processes_is_replayed_by_one_to_the_bit(trained):
    for number in (1, 4):
        again = replay_step(trained.folder, number)
        assert again.identical
        assert again.environment == []


def test_updates_after_a_resume_by_another_number_are_replayed_to_the_bit(trained, tmp_path):
    stopped = copy_run(trained, tmp_path)
    go_back(stopped, "step-00000004")
    for _ in range(2):  # the second finds nothing to do
        resume(stopped.folder)
        assert stopped.read_json("environment.json")["resumed"] == [{"step": 4, "processes": 1}]
    for number in (1, 4, 5, 6):
        again = replay_step(stopped.folder, number)
        assert (again.identical, again.environment) == (True, [])
    (stopped.folder / "checkpoints/step-00000004.safetensors").unlink()
    assert replay_step(stopped.folder, 5).environment == [
        "processes: 2 made update 3, 1 made update 5; restore the checkpoint between them"
    ]


def test_what_was_resumed_later_is_forgotten_where_an_earlier_checkpoint_is(tmp_path):
    run = Run(tmp_path)
    run.write_json("environment.json", {"processes": 2})
    for step, processes in ((2, 2), (2, 4), (6, 1), (4, 3)):
        run.note_processes(step, processes)
    assert [run.processes_at(update) for update in (1, 2, 3, 4, 5, 9)] == [2, 2, 4, 4, 3, 3]
    assert run.stretches() == [2, 4, 3]
    run.note_processes(0, 5)
    assert [run.processes_at(update) for update in (1, 9)] == [5, 5]


@pytest.mark.slow
def test_a_stopped_run_goes_on_by_torchrun_to_the_bit(trained, tmp_path):
    stopped = copy_run(trained, tmp_path)
    go_back(stopped, "step-00000004")
    done = torchrun("resume", stopped.folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert parameters(stopped) == parameters(trained)
    assert logged_steps(stopped.folder) == list(range(1, STEPS + 1))
    assert "bit for bit" not in done.stderr


@pytest.mark.slow
def test_resumed_by_another_number_of_processes_it_says_so(trained, tmp_path, caplog):
    stopped = copy_run(trained, tmp_path)
    go_back(stopped, "step-00000004")
    resume(stopped.folder)
    assert "processes: 2 was recorded, 1 is here" in caplog.text


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(tmp_path):
    """A photograph that only the second process comes to read."""
    path = make_study(tmp_path, batch_size=2)
    change(path, num_steps=200)
    (tmp_path / "photograph-04.png").write_bytes(b"")
    done = torchrun("train", path, cwd=tmp_path)
    assert done.returncode != 0
    assert "photograph-04.png" in done.stderr


@pytest.mark.slow
def test_workers_of_ray_train_leave_the_run_of_torchrun(trained, tmp_path):
    pytest.importorskip("ray")
    path = make_study(tmp_path / "study", batch_size=7)
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).parents[1] / "support" / "parallel_by_ray.py",
            path,
            tmp_path / "ray",
        ],
        env=environment(RAY_USAGE_STATS_ENABLED="0"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (path.parent / "runs").iterdir()
    assert logged_steps(folder) == list(range(1, STEPS + 1))
    assert parameters(Run.open(folder)) == parameters(trained)
