"""Ray Tune, as what starts and restarts trials. What is tried, and what was found, stands in the journal."""

import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fpatch.runtime.memory import CUBLAS_WORKSPACE
from fpatch.tune.folder.journal import Journal, Outcome
from fpatch.tune.plan import Plan, is_behind, next_trial, pack_size
from fpatch.tune.settings import Sweep

Notify = Callable[[str], None]
"""Told the name of a trial of which there is news."""

_logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def import_ray(address: str | None = None) -> Any:
    """Ray with Tune.

    Args:
        address: Of a cluster; None: Ray is told to be reachable from this machine only.

    Raises:
        ImportError: Without the extra `sweep`.
    """
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    try:
        with _quiet(), on_loopback(address):
            import ray
            import ray.tune
    except ImportError as error:
        raise ImportError(f"a sweep needs Ray ({error}): pip install 'fpatch[sweep]'") from error
    return ray


@contextmanager
def on_loopback(address: str | None = None) -> Iterator[None]:
    """Without an address, have Ray listen on loopback only, as it does on macOS by itself.

    It asks the environment for that when it is imported, in this process and in those that it starts.
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    mine = address is None and name not in os.environ
    if mine:
        os.environ[name] = "0"
    try:
        yield
    finally:
        if mine:
            del os.environ[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray says of itself: notes, coming changes, tables."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def find_ray(plan: Plan) -> Any:
    """Ray with Tune, for a sweep that it could run, as far as can be told before it is started.

    Raises:
        ImportError: Without the extra `sweep`.
        ValueError: If this machine has fewer GPUs than a trial asks for.
        ConnectionError: If nobody listens at the cluster's address.
    """
    sweep = plan.sweep
    ray = import_ray(sweep.address)
    if ray.is_initialized():
        return ray
    if sweep.address is not None:
        _check_listens(sweep.address)
    elif (asked := math.ceil(sweep.processes * sweep.gpus)) > (there := torch.cuda.device_count()):
        raise ValueError(
            f"sweep.gpus = {sweep.gpus:g}: a trial asks for GPUs, {asked} in all, and this machine has "
            f"{there}; set sweep.gpus = 0, or sweep.address to a cluster that has them"
        )
    return ray


@contextmanager
def connected(plan: Plan) -> Iterator[Any]:
    """Ray on this machine's loopback, or the cluster of `sweep.address`; one that runs already is left."""
    ray, address = find_ray(plan), plan.sweep.address
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    with on_loopback(address):
        with _quiet():
            if address is None:
                local = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
                ray.init("local", num_cpus=_cores(plan), **local, **quiet)
            else:
                _connect(ray, address, **quiet)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, **quiet: Any) -> None:
    try:
        ray.init(address, **quiet)
    except ConnectionError as error:
        raise ConnectionError(
            f"sweep.address: {error}; is it there, and is its secret, if it asks for one, in the file named "
            "by RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token?"
        ) from error


def _check_listens(address: str) -> None:
    """Refuse an address where nobody listens; Ray would try it for minutes, and say nothing."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address or (address == "auto" and "://" in os.environ.get("RAY_ADDRESS", "")):
        return  # Ray's client gives up by itself
    place = address
    try:
        place = canonicalize_bootstrap_address(address) or address
        ip, _, port = place.rpartition(":")
        socket.create_connection((ip.strip("[]"), int(port)), timeout=10.0).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"sweep.address: there is no Ray cluster at {place!r}: {error}") from error


def _cores(plan: Plan) -> int:
    """All that this process may use; at least what one trial asks for."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(mine, math.ceil(plan.sweep.processes * plan.sweep.cpus))


def _places(plan: Plan, ray: Any) -> int:
    """Trials, or packs of them, that have room in a cluster at once; at least one, since it may grow.

    Raises:
        ValueError: If this machine, which will not grow, has no room for one.
    """
    sweep = plan.sweep
    asked = {kind: n for kind, n in (("CPU", sweep.cpus), ("GPU", sweep.gpus)) if n}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = ([int(node.get(kind, 0.0) / n + 1e-6) for kind, n in asked.items()] for node in nodes)
    room = sum(min(each, default=sweep.processes) for each in counts)  # a process is on one machine
    if room < sweep.processes:
        there = " and ".join(f"{sum(n.get(k, 0.0) for n in nodes):g} {k}s" for k in ("CPU", "GPU"))
        sentence = (
            f"sweep.processes = {sweep.processes}, sweep.cpus = {sweep.cpus:g}, sweep.gpus = {sweep.gpus:g}: "
            f"there is no room for one trial, whose processes have so much each; there are {there}"
        )
        if sweep.address is None:
            raise ValueError(f"{sentence}; set less, or sweep.address to a larger cluster")
        _logger.warning("%s; trials wait until the cluster grows", sentence)
    return max(1, min(room // sweep.processes, sweep.max_concurrent or room))


def drive(
    journal: Journal,
    plan: Plan,
    notify: Notify,
    resources: Mapping[str, Any] | None = None,
) -> None:
    """Train what was begun and not done, then what the search proposes, until there is nothing more.

    Raises:
        KeyboardInterrupt: Ctrl-C; every trial can go on from its last checkpoint.
    """
    if Dispatcher(journal, plan, notify).exhausted:
        return
    with connected(plan) as ray:
        dispatcher = Dispatcher(journal, plan, notify, pack_size(plan, _places(plan, ray)))
        bound = {"folder": str(journal.folder.resolve()), "sweep": plan.sweep, "resources": resources}
        bundle = {"CPU": plan.sweep.cpus, "GPU": plan.sweep.gpus}
        trainable = ray.tune.with_resources(
            ray.tune.with_parameters(_trainable(ray), **bound),
            ray.tune.PlacementGroupFactory([bundle] * plan.sweep.processes),
        )
        with _quiet():
            ray.tune.run(
                trainable,
                name="ray",
                search_alg=make_searcher(dispatcher, plan.sweep.mode),
                num_samples=-1,
                storage_path=str(journal.folder.resolve()),
                max_failures=plan.sweep.retries,
                raise_on_failed_trial=False,
                verbose=0,
                log_to_file=False,
                reuse_actors=True,
            )


class Dispatcher:
    """Hands out trials of the journal that are not done, and then new ones, which it notes there first.

    A pack of trials goes by the name of its first.
    """

    def __init__(self, journal: Journal, plan: Plan, notify: Notify, pack: int = 1) -> None:
        """Take up what was begun and not done.

        Args:
            journal: The sweep.
            plan: The same.
            notify: Told of news.
            pack: New trials that are handed out together.
        """
        self._journal, self._plan, self._notify, self._pack = journal, plan, notify, pack
        known = journal.entries()
        if known:
            self._note(known[-1].trial.together)
        left = [e.trial.together[0] for e in journal.entries() if e.outcome is None]
        self._left = list(dict.fromkeys(left))
        self._running: set[str] = set()

    @property
    def exhausted(self) -> bool:
        """Whether there will be nothing more to hand out."""
        return not self._left and len(self._journal.names()) >= self._plan.sweep.count(self._plan.space)

    def take(self) -> str | None:
        """The name of the next trial; None if there is nothing now."""
        limit = self._plan.sweep.max_concurrent
        if limit is not None and len(self._running) >= limit:
            return None
        if self._left:
            name = self._left.pop(0)
        else:
            number = len(self._journal.names())
            left = self._plan.sweep.count(self._plan.space) - number
            names = [f"{number + i:04d}" for i in range(min(self._pack, left))]
            if not names or not self._note(names):
                return None
            name = names[0]
        self._running.add(name)
        for one in self._journal.entry(name).trial.together:
            self._notify(one)
        return name

    def _note(self, names: list[str]) -> bool:
        """Propose those of a pack that do not stand in the journal yet; false if there is none for now."""
        known = self._journal.names()
        for name in names:
            if name not in known:
                trial = next_trial(self._plan, self._journal.entries())
                if trial is None:
                    return False
                assert trial.name == name
                self._journal.add(trial._replace(pack=names) if len(names) > 1 else trial)
        return True

    def measured(self, name: str) -> None:
        """Learn that a trial has been evaluated; tell it to stop if it is behind."""
        if is_behind(self._plan, name, self._journal.entries()):
            self._journal.stop(name)
        self._notify(name)

    def ended(self, name: str) -> None:
        """Learn that a trial or a pack has ended, or that its workers have, again and again."""
        self._running.discard(name)
        for one in self._journal.entry(name).trial.together:
            if self._journal.entry(one).outcome is None:
                times = self._plan.sweep.retries + 1
                sentence = f"the worker died {times} times, without an error of its own; out of memory?"
                self._journal.add_outcome(one, Outcome("failed", time.time(), 0.0, sentence, sentence))
            self._notify(one)


def make_searcher(dispatcher: Dispatcher, mode: str) -> Any:
    """A dispatcher as a searcher of Ray Tune."""
    from ray.tune.search import Searcher

    class JournalSearcher(Searcher):
        """Settings come from the journal by way of the trial's name; so do results."""

        def __init__(self) -> None:
            super().__init__(metric="value", mode=mode)
            self._names: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            if dispatcher.exhausted:
                return Searcher.FINISHED
            name = dispatcher.take()
            if name is None:
                return None
            self._names[trial_id] = name
            return {"trial": name}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            dispatcher.measured(result["name"])

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            dispatcher.ended(self._names.pop(trial_id))

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # what it knows stands in the journal

        def restore(self, checkpoint_path: str) -> None:
            pass

    return JournalSearcher()


def _trainable(ray: Any) -> Any:
    """A class whose instances are Ray actors, each training a trial."""

    class FpatchTrial(ray.tune.Trainable):
        """A step is training up to the next evaluation."""

        def setup(self, config: dict[str, Any], folder: str, sweep: Sweep, resources: Any) -> None:
            torch.set_num_threads(max(1, int(sweep.cpus)))
            os.environ.setdefault(*CUBLAS_WORKSPACE)
            self._folder, self._sweep, self._resources = folder, sweep, resources
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            from fpatch.tune.trials.pack import run_trials
            from fpatch.tune.trials.processes import run_together

            name = new_config["trial"]
            run = run_trials if self._sweep.processes == 1 else run_together
            self._news = run(self._folder, name, self._resources)
            self._last: dict[str, Any] = {"name": name, "value": math.nan}
            return True

        def step(self) -> dict[str, Any]:
            news = next(self._news, None)
            if news is None:
                return {**self._last, "done": True}
            name, point = news
            self._last = {"name": name, "value": point.value}
            return self._last

        def cleanup(self) -> None:
            self._news.close()

    return FpatchTrial
