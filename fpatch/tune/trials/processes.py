"""A trial that several processes train: Ray starts them, and they step as `fpatch.runtime.parallel` says."""

import os
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]  # documented, not in __all__

from fpatch.runtime.parallel import Meeting, joined
from fpatch.tune.folder.journal import Journal
from fpatch.tune.plan import plan_from_config, trial_study
from fpatch.tune.trials.trial import (
    PATIENCE_S,
    Evaluation,
    LostProcessError,
    TrialWork,
    record_outcome,
    train_trial,
)

_MEETING_S = 300.0
"""How long processes wait for one another: until all have come, and once one is lost."""


class Rendezvous(NamedTuple):
    """What the first process of a trial tells the others.

    Attributes:
        folder: Of the sweep.
        name: Of the trial.
        resources: Live objects by "path/setting" of the pipeline.
        device: Of the trial's study.
        ip: Where the first process has opened a store.
        port: The same.
        size: How many processes there are.
    """

    folder: str
    name: str
    resources: Mapping[str, Any] | None
    device: str
    ip: str
    port: int
    size: int


def run_together(
    folder: str | Path, name: str, resources: Mapping[str, Any] | None = None
) -> Generator[Evaluation, None, None]:
    """Train a trial from wherever it stands, as `run_trial` does, in as many processes as the sweep says.

    Called in a Ray actor, which is the first process; the others have the other bundles of its placement
    group, and end with it.

    Raises:
        LostProcessError: If one of the others was killed. What one raises is the outcome of the trial.
    """
    for point in record_outcome(Journal.open(folder), name, _lead(folder, name, resources)):
        if point is not None:
            yield name, point


def _lead(folder: str | Path, name: str, resources: Mapping[str, Any] | None) -> TrialWork:
    import ray

    journal = Journal.open(folder)
    plan = plan_from_config(journal.config, resources)
    device = trial_study(plan, journal.entry(name).trial, Path(), resources).device
    ip, size = ray.util.get_node_ip_address(), plan.sweep.processes
    store = _listen(ip, size)
    told = Rendezvous(str(folder), name, resources, device, ip, store.port, size)
    with _others(size, plan.sweep.cpus, plan.sweep.gpus) as others:
        ends = [other.follow.remote(rank, told) for rank, other in enumerate(others, 1)]
        left = threading.Event()
        threading.Thread(target=_end_all_with_one, args=(ends, others, left), daemon=True).start()
        try:
            _wait_for_all(store, ends)
            with _interface_of(ip), joined(device=device, meeting=Meeting(store, 0, size)) as ranks:
                return (yield from train_trial(journal, name, resources, ranks))
        except ConnectionError:
            _raise_cause(ends)
            raise
        finally:
            left.set()


def _wait_for_all(store: TCPStore, ends: list[Any]) -> None:
    """Wait until the others have come to the store.

    Raises:
        ConnectionError: If one of them has ended before, or does not come in time.
    """
    import ray

    keys = [_here(rank) for rank in range(1, len(ends) + 1)]
    deadline = time.monotonic() + _MEETING_S
    while not store.check(keys):
        ended, _ = ray.wait(ends, timeout=1.0)
        if ended or time.monotonic() > deadline:
            how = "ended before it came" if ended else f"did not come within {_MEETING_S:.0f} s"
            raise ConnectionError(f"a process of the trial {how}")


def _here(rank: int) -> str:
    """What a process that has come notes in the store."""
    return f"fpatch/here/{rank}"


def _end_all_with_one(ends: list[Any], others: list[Any], left: threading.Event) -> None:
    """Once one process has failed, kill the others, so that the first does not wait for them.

    Where it waits all the same, by NCCL or for a group that will never be, it ends as if killed.
    """
    import ray
    from ray.exceptions import RayError

    while ends:
        (ended,), ends = ray.wait(ends)
        try:
            ray.get(ended)
        except RayError:
            for other in others:
                ray.kill(other)
            if not left.wait(_MEETING_S):
                os._exit(1)
            return


def _raise_cause(ends: list[Any]) -> None:
    """Raise what another process has ended with, unless that is the end of a process, too."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    ended, _ = ray.wait(ends, num_returns=len(ends), timeout=PATIENCE_S)
    lost = None
    for end in ended:
        try:
            ray.get(end)
        except RayActorError as error:
            lost = error
        except RayTaskError as error:
            if not isinstance(error.cause, ConnectionError):
                error.cause.add_note(str(error))
                raise error.cause from None
    if lost is not None:
        raise LostProcessError("a process of the trial was killed; out of memory?") from lost


@contextmanager
def _others(num: int, cpus: float, gpus: float) -> Iterator[list[Any]]:
    """Actors for all processes but the first, in the bundles behind its own."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group: Any = ray.util.get_current_placement_group()
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(Follower)
    others: list[Any] = [
        actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle)).remote(cpus)
        for bundle in range(1, num)
    ]
    try:
        yield others
    finally:
        for other in others:  # one that waits for the first would wait for long
            ray.kill(other)


class Follower:
    """A process of a trial, but not its first."""

    def __init__(self, cpus: float) -> None:
        """With so many threads."""
        torch.set_num_threads(max(1, int(cpus)))

    def follow(self, rank: int, told: Rendezvous) -> None:
        """Take part in the steps of the first process."""
        import ray

        store = _store(told.ip, told.port, told.size)
        store.set(_here(rank), "")
        own_ip = ray.util.get_node_ip_address()
        with (
            _interface_of(own_ip),
            joined(device=told.device, meeting=Meeting(store, rank, told.size)) as ranks,
        ):
            for _ in train_trial(Journal.open(told.folder), told.name, told.resources, ranks):
                pass


def _listen(ip: str, num: int) -> TCPStore:
    """A store that so many processes reach, at this address alone."""
    listener = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    listener.bind((ip, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return _store(ip, port, num, is_master=True, master_listen_fd=listener.detach())


def _store(ip: str, port: int, num: int, **how: Any) -> TCPStore:
    return TCPStore(ip, port, num, wait_for_workers=False, timeout=timedelta(seconds=_MEETING_S), **how)


@contextmanager
def _interface_of(ip: str) -> Iterator[None]:
    """Have tensors travel by the network device that has this address, unless the environment names one.

    Else gloo and NCCL take one by rules of their own, such as by the name of the host.
    """
    import psutil  # comes with Ray

    found = (name for name, held in psutil.net_if_addrs().items() if any(a.address == ip for a in held))
    device = next(found, None)
    wanted = {} if device is None else {"GLOO_SOCKET_IFNAME": device, "NCCL_SOCKET_IFNAME": f"={device}"}
    own = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
