"""Processes of a trial before they step: how they meet, by which network device, and that one never comes."""

import dataclasses
import os
import socket
import threading
import time

import psutil
import pytest
from sweeps import make_plan

from fpatch.tune.plan import Plan
from fpatch.tune.trials import processes
from fpatch.tune.trials.ray_cluster import connected, num_concurrent


@pytest.fixture
def here(monkeypatch) -> None:
    """Without what the environment says of network devices."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def devices() -> list[tuple[str, str]]:
    """Network devices of this machine, each with its addresses."""
    families = (socket.AF_INET, socket.AF_INET6)
    return [
        (name, held.address)
        for name, addresses in psutil.net_if_addrs().items()
        for held in addresses
        if held.family in families
    ]


def test_tensors_travel_by_the_device_that_has_the_address(here):
    for name, ip in devices():
        with processes._interface_of(ip):
            assert os.environ["GLOO_SOCKET_IFNAME"] == name
            assert os.environ["NCCL_SOCKET_IFNAME"] == f"={name}"
        assert not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & set(os.environ)


def test_what_the_environment_says_of_devices_holds(here, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    with processes._interface_of("127.0.0.1"):
        assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_an_address_that_no_device_has_is_left_to_the_libraries(here):
    with processes._interface_of("192.0.2.77"):
        assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.fixture
def plan(tmp_path) -> Plan:
    return make_plan(tmp_path, processes=2, cpus=0.5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_ends_before_it_comes_is_not_waited_for(plan, monkeypatch):
    with connected(plan) as ray:

        @ray.remote(num_cpus=0)
        def die() -> None:
            os._exit(1)

        @ray.remote(num_cpus=0)
        def stay() -> None:
            time.sleep(600)

        store = processes._listen("127.0.0.1", 2)
        start, ends = time.monotonic(), [die.options(max_retries=0).remote()]
        with pytest.raises(ConnectionError, match="ended before it joined"):
            processes._wait_for_all(store, ends)
        assert time.monotonic() - start < 60
        ends = [stay.remote()]
        monkeypatch.setattr(processes, "_MEETING_S", 2.0)
        with pytest.raises(ConnectionError, match="did not join within 2 s"):
            processes._wait_for_all(store, ends)
        store.set(processes._here(1), "")
        processes._wait_for_all(store, ends)
        codes: list[int] = []  # one is lost after it came: the first is ended, unless it has left
        monkeypatch.setattr(processes.os, "_exit", codes.append)
        lost, left = die.options(max_retries=0).remote(), threading.Event()
        processes._end_all_with_one([lost], [], left)
        assert codes == [1]
        left.set()
        processes._end_all_with_one([lost], [], left)
        assert codes == [1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_has_no_room_on_this_machine_is_refused_and_waits_on_a_cluster(tmp_path, caplog):
    """Ray would wait without end, and say nothing."""
    few = make_plan(tmp_path, processes=2)
    many = make_plan(tmp_path, processes=4, gpus=1)
    elsewhere = many._replace(sweep=dataclasses.replace(many.sweep, address="auto"))
    with connected(few) as ray:
        cores = int(ray.cluster_resources()["CPU"])
        assert num_concurrent(few, ray) == cores // 2
        asked = "sweep.processes = 4, sweep.cpus = 1, sweep.gpus = 1"
        with pytest.raises(
            ValueError, match=f"{asked}: one trial does not fit.* found {cores} CPUs and 0 GPUs"
        ):
            num_concurrent(many, ray)
        assert num_concurrent(elsewhere, ray) == 1
        assert "trials wait until the cluster grows" in caplog.text
