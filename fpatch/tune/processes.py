"""A trial that several processes train together: Ray starts them, and they step as `fpatch.parallel` says."""

import os
import socket
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]  # documented, not in __all__

from fpatch.parallel import Meeting, joined
from fpatch.tune.journal import Journal
from fpatch.tune.plan import plan_from_config, trial_study
from fpatch.tune.trial import LostProcessError, News, Work, noted, train_trial

_PATIENCE_S = 60.0
"""How long to wait for what a lost process has to say."""


def run_together(
    folder: str | Path, name: str, resources: Mapping[str, Any] | None = None
) -> Generator[News, None, None]:
    """Train a trial from wherever it stands, as `run_trial` does, in as many processes as the sweep says.

    Called in a Ray actor, which is the first process; the others have the other bundles of its placement
    group, and end with it.

    Raises:
        LostProcessError: If one of the others was killed. What one raises is the outcome of the trial.
    """
    for point in noted(Journal.open(folder), name, _lead(folder, name, resources)):
        if point is not None:
            yield name, point


def _lead(folder: str | Path, name: str, resources: Mapping[str, Any] | None) -> Work:
    import ray

    journal = Journal.open(folder)
    plan = plan_from_config(journal.config, resources)
    device = trial_study(plan, journal.entry(name).trial, Path(), resources).device
    ip = ray.util.get_node_ip_address()
    store = _listen(ip, plan.sweep.processes)
    with _others(plan.sweep.processes, plan.sweep.cpus, plan.sweep.gpus) as others:
        words = (str(folder), name, resources, ip, store.port, plan.sweep.processes)
        ends = [other.follow.remote(rank, device, *words) for rank, other in enumerate(others, 1)]
        threading.Thread(target=_end_all_with_one, args=(ends, others), daemon=True).start()
        try:
            with (
                _loopback_only(ip),
                joined(device=device, meeting=Meeting(store, 0, plan.sweep.processes)) as ranks,
            ):
                return (yield from train_trial(journal, name, resources, ranks))
        except ConnectionError:
            _raise_cause(ends)
            raise


def _end_all_with_one(ends: list[Any], others: list[Any]) -> None:
    """Once one process has failed, kill the others, so that the first does not wait for them."""
    import ray
    from ray.exceptions import RayError

    while ends:
        (ended,), ends = ray.wait(ends)
        try:
            ray.get(ended)
        except RayError:
            for other in others:
                ray.kill(other)
            return


def _raise_cause(ends: list[Any]) -> None:
    """Raise what another process has ended with, unless that is the end of a process, too."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    ended, _ = ray.wait(ends, num_returns=len(ends), timeout=_PATIENCE_S)
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

    def follow(
        self,
        rank: int,
        device: str,
        folder: str,
        name: str,
        resources: Mapping[str, Any] | None,
        ip: str,
        port: int,
        num: int,
    ) -> None:
        """Take part in the steps of the first process, which has opened a store at this address."""
        meeting = Meeting(TCPStore(ip, port, num, wait_for_workers=False), rank, num)
        with _loopback_only(ip), joined(device=device, meeting=meeting) as ranks:
            for _ in train_trial(Journal.open(folder), name, resources, ranks):
                pass


def _listen(ip: str, num: int) -> TCPStore:
    """A store that so many processes reach, at this address alone."""
    listener = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    listener.bind((ip, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return TCPStore(ip, port, num, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


@contextmanager
def _loopback_only(ip: str) -> Iterator[None]:
    """Where processes meet on the loopback device, let tensors travel by it, too."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    own = [name for name in names if ip.startswith("127.") and name not in os.environ]
    loopback = next(device for _, device in socket.if_nameindex() if device.startswith("lo"))
    os.environ.update(dict.fromkeys(own, loopback))
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
