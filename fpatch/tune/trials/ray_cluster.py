"""Ray itself: import it, start it on this machine or connect to a cluster, and count its resources."""

import atexit
import functools
import importlib
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fpatch.tune.plan import Plan

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
    """Import Ray and Ray Tune.

    Args:
        address: Address of a cluster; None: Ray listens on loopback only.

    Raises:
        ImportError: If the extra `sweep` is not installed.
    """
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    try:
        with quiet_ray(), on_loopback(address):
            import ray
            import ray.tune
    except ImportError as error:
        raise ImportError(f"a sweep needs Ray ({error}): pip install 'fpatch[sweep]'") from error
    return ray


@contextmanager
def on_loopback(address: str | None = None) -> Iterator[None]:
    """Let Ray listen on loopback only, unless an address is given; on macOS that is Ray's default.

    Ray reads the environment variable at import, in this process and in those that it starts.
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
def with_token() -> Iterator[None]:
    """Let Ray on this machine ask for a token, unless the environment says how it authenticates.

    Without one, any process that reaches Ray can run code as this user. Ray's own token is readable by all.
    """
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        yield
        return
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_token_file())}
    os.environ.update(own)
    _forget_token()
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
        _forget_token()


@functools.cache
def _token_file() -> Path:
    """Make the token of this process, in a file that only this user can read; it is removed at the end."""
    folder = tempfile.mkdtemp(prefix="fpatch-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "token")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _forget_token() -> None:
    """Have Ray read the settings of its token again; it keeps those of its first use."""
    raylet = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Silence Ray's own log, warnings and tables."""
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
    """Import Ray for a sweep, and check the GPUs of this machine or the address of the cluster.

    Raises:
        ImportError: If the extra `sweep` is not installed.
        ValueError: If this machine has fewer GPUs than a trial needs.
        ConnectionError: If no server listens at `sweep.address`.
    """
    sweep = plan.sweep
    ray = import_ray(sweep.address)
    if ray.is_initialized():
        return ray
    if sweep.address is not None:
        _check_listens(sweep.address)
    elif (needed := math.ceil(sweep.processes * sweep.gpus)) > (found := torch.cuda.device_count()):
        raise ValueError(
            f"sweep.gpus = {sweep.gpus:g}: a trial needs {needed} GPUs in all, and this machine has {found}; "
            "set sweep.gpus = 0, or sweep.address to a cluster that has them"
        )
    return ray


@contextmanager
def connected(plan: Plan) -> Iterator[Any]:
    """Start Ray on loopback, or connect to `sweep.address`; an initialized Ray is used and left running."""
    ray, address = find_ray(plan), plan.sweep.address
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    with on_loopback(address), with_token() if address is None else nullcontext():
        with quiet_ray(), _own_handler():
            if address is None:
                local = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
                ray.init("local", num_cpus=_num_cores(plan), **local, **quiet)
            else:
                _connect(ray, address, **quiet)
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by one that saves nothing."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _connect(ray: Any, address: str, **quiet: Any) -> None:
    try:
        ray.init(address, **quiet)
    except ConnectionError as error:
        raise ConnectionError(
            f"sweep.address: {error}; check that the cluster runs; if it needs a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the token's file"
        ) from error


def _check_listens(address: str) -> None:
    """Refuse an address at which no server listens; Ray would retry silently for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address or (address == "auto" and "://" in os.environ.get("RAY_ADDRESS", "")):
        return  # Ray's client has a timeout of its own
    server = address
    try:
        server = canonicalize_bootstrap_address(address) or address
        ip, _, port = server.rpartition(":")
        socket.create_connection((ip.strip("[]"), int(port)), timeout=10.0).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"sweep.address: no Ray cluster answers at {server!r}: {error}; start one, or correct the address"
        ) from error


def _num_cores(plan: Plan) -> int:
    """The cores that this process may use, at least those of one trial."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(own, math.ceil(plan.sweep.processes * plan.sweep.cpus))


def num_concurrent(plan: Plan, ray: Any) -> int:
    """The number of trials, or packs, that a cluster runs at once; at least one, since it may grow.

    Raises:
        ValueError: If this machine, which cannot grow, has no room for one trial.
    """
    sweep = plan.sweep
    needed = {kind: n for kind, n in (("CPU", sweep.cpus), ("GPU", sweep.gpus)) if n}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = ([int(node.get(kind, 0.0) / n + 1e-6) for kind, n in needed.items()] for node in nodes)
    room = sum(min(each, default=sweep.processes) for each in counts)  # a process is on one machine
    if room < sweep.processes:
        found = " and ".join(f"{sum(n.get(k, 0.0) for n in nodes):g} {k}s" for k in ("CPU", "GPU"))
        sentence = (
            f"sweep.processes = {sweep.processes}, sweep.cpus = {sweep.cpus:g}, sweep.gpus = {sweep.gpus:g}: "
            f"one trial does not fit, each process of which needs these; found {found}"
        )
        if sweep.address is None:
            raise ValueError(f"{sentence}; lower them, or set sweep.address to a larger cluster")
        _logger.warning("%s; trials wait until the cluster grows", sentence)
    return max(1, min(room // sweep.processes, sweep.max_concurrent or room))
