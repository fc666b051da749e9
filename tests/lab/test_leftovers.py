"""Nothing is left behind, however a lab ends."""

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lab.network import Network
from lab.rootless import available, wrapped
from lab.wire import Shape

pytestmark = pytest.mark.lab

BUILD_AND_HANG = """
import os, sys
from lab.network import Network
from lab.wire import Shape
network = Network()
network.lan("home", shape=Shape(delay=0.001)).host("host")
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
inodes = [os.fstat(it.fd).st_ino for it in [network.internet, network._panel.namespace]]
print(*children, *inodes, flush=True)
sys.stdin.read()
"""


def inodes_in_use() -> set[int]:
    """Network namespaces in which some process runs, or to which one holds a descriptor. Not those of tests that run beside this
    one: the kernel gives a number that is free again to the next namespace, which may be theirs."""
    used, others = set(), beside()
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in others:
            continue
        for entry in [process / "ns/net", *_listed(process / "fd")]:
            with contextlib.suppress(OSError):
                if os.readlink(entry).startswith("net:"):
                    used.add(entry.stat().st_ino)
    return used


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def beside() -> set[int]:
    """Processes of the tests that run beside this one (pytest-xdist)."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return set()
    workers = [it for it in psutil.Process(os.getppid()).children() if it.pid != os.getpid()]
    found = set()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {worker.pid, *(it.pid for it in worker.children(recursive=True))}
    return found


def gone(inodes: set[int]) -> bool:
    """Waits until nobody uses these namespaces: a process that is ending lets go of its parts one by one."""
    deadline = time.monotonic() + 10
    while inodes & inodes_in_use():
        if time.monotonic() > deadline:
            return False
    return True


def test_close_leaves_nothing(simulation: None) -> None:
    interfaces = set(os.listdir("/sys/class/net"))
    descriptors = len(os.listdir("/proc/self/fd"))
    network = Network()
    network.lan("home", shape=Shape(delay=0.001)).host("host")
    made = {os.fstat(it.fd).st_ino for it in network._namespaces}
    assert made <= inodes_in_use()
    network.close()
    assert gone(made)
    assert set(os.listdir("/sys/class/net")) == interfaces
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_killed_lab_leaves_nothing(simulation: None) -> None:
    command = [sys.executable, "-c", BUILD_AND_HANG]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        wire, *inodes = (int(word) for word in lab.stdout.readline().split())
        pidfd = os.pidfd_open(wire)
        lab.kill()
        lab.wait()
        assert select.select([pidfd], [], [], 10)[0], "the wire process lives on"
        os.close(pidfd)
    assert gone(set(inodes))


def test_the_wrapper_ends_with_all_its_processes() -> None:
    why = available()
    if why:
        pytest.skip(why)
    command = wrapped([sys.executable, "-c", BUILD_AND_HANG])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        _, *inodes = (int(word) for word in lab.stdout.readline().split())
        lab.kill()
        assert lab.stdout.read() == ""  # end of file: no process holds the pipe any more
        lab.wait()
    assert gone(set(inodes))


def test_two_labs_at_once_do_not_meet(simulation: None) -> None:
    with Network() as one, Network() as two:
        hosts = [network.public("same name") for network in (one, two)]
        assert hosts[0].address == hosts[1].address
        sockets = [host.namespace.socket() for host in hosts]
        for host, sock in zip(hosts, sockets, strict=True):
            sock.bind((host.address, 20006))
