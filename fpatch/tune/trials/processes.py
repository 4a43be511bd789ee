"""A trial that several processes train together, started by Ray; see `fpatch.runtime.parallel`."""

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
"""Seconds that processes wait for each other: at the start, and after one is lost."""


class Rendezvous(NamedTuple):
    """The message with which the first process of a trial invites the others.

    Attributes:
        folder: Folder of the sweep.
        name: Name of the trial.
        resources: Live objects by "path/setting" of the pipeline.
        device: Device of the trial's study.
        ip: Address of the store that the first process opened.
        port: Port of that store.
        size: Number of processes.
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
    """Start or resume a trial in `sweep.processes` processes, otherwise as `run_trial`.

    The caller is a Ray actor, the first process. The others use the other bundles of its placement group, and
    end with it. An error that one of them raises is the outcome of the trial.

    Raises:
        LostProcessError: If one of the others was killed.
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
    rendezvous = Rendezvous(str(folder), name, resources, device, ip, store.port, size)
    with _others(size, plan.sweep.cpus, plan.sweep.gpus) as others:
        ends = [other.follow.remote(rank, rendezvous) for rank, other in enumerate(others, 1)]
        has_left = threading.Event()
        threading.Thread(target=_end_all_with_one, args=(ends, others, has_left), daemon=True).start()
        try:
            _wait_for_all(store, ends)
            with _interface_of(ip), joined(device=device, meeting=Meeting(store, 0, size)) as ranks:
                return (yield from train_trial(journal, name, resources, ranks))
        except ConnectionError:
            _raise_cause(ends)
            raise
        finally:
            has_left.set()


def _wait_for_all(store: TCPStore, ends: list[Any]) -> None:
    """Wait until the other processes have registered in the store.

    Raises:
        ConnectionError: If one of them ends before, or does not register in time.
    """
    import ray

    keys = [_here(rank) for rank in range(1, len(ends) + 1)]
    deadline = time.monotonic() + _MEETING_S
    while not store.check(keys):
        ended, _ = ray.wait(ends, timeout=1.0)
        if ended or time.monotonic() > deadline:
            how = "ended before it joined" if ended else f"did not join within {_MEETING_S:.0f} s"
            raise ConnectionError(f"a process of the trial {how}")


def _here(rank: int) -> str:
    """The key under which a process registers in the store."""
    return f"fpatch/here/{rank}"


def _end_all_with_one(ends: list[Any], others: list[Any], has_left: threading.Event) -> None:
    """Kill the other processes once one has failed, so that the first does not wait for them.

    If the first waits nevertheless, in NCCL or for an incomplete group, it exits as if killed.
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
            if not has_left.wait(_MEETING_S):
                os._exit(1)
            return


def _raise_cause(ends: list[Any]) -> None:
    """Raise the error of another process, unless that is the loss of a process, too."""
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
    """Start an actor for each process but the first, in the bundles after its own."""
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
        for other in others:  # one that waits for the first would wait long
            ray.kill(other)


class Follower:
    """A process of a trial other than the first."""

    def __init__(self, cpus: float) -> None:
        """Set the number of threads."""
        torch.set_num_threads(max(1, int(cpus)))

    def follow(self, rank: int, rendezvous: Rendezvous) -> None:
        """Join the steps of the first process."""
        import ray

        store = _store(rendezvous.ip, rendezvous.port, rendezvous.size)
        store.set(_here(rank), "")
        own_ip = ray.util.get_node_ip_address()
        with (
            _interface_of(own_ip),
            joined(device=rendezvous.device, meeting=Meeting(store, rank, rendezvous.size)) as ranks,
        ):
            journal = Journal.open(rendezvous.folder)
            for _ in train_trial(journal, rendezvous.name, rendezvous.resources, ranks):
                pass


def _listen(ip: str, num: int) -> TCPStore:
    """Open a store for `num` processes, which listens at this address only."""
    listener = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    listener.bind((ip, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return _store(ip, port, num, is_master=True, master_listen_fd=listener.detach())


def _store(ip: str, port: int, num: int, **how: Any) -> TCPStore:
    return TCPStore(ip, port, num, wait_for_workers=False, timeout=timedelta(seconds=_MEETING_S), **how)


@contextmanager
def _interface_of(ip: str) -> Iterator[None]:
    """Select the network device with this address for tensors, unless the environment names one.

    By default gloo and NCCL choose a device by rules of their own, such as the name of the host.
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
