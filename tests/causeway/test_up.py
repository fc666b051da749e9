"""`causeway up` with the real services."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from causeway.service import NAMES
from tests import loopback
from tests.causeway.node import Node, stop
from tests.causeway.process import PATIENCE, Process, alive


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, "edge-a", f"{loopback.block()}.1")


def started(process: Process, name: str, *, after: int = 0) -> int:
    return int(process.wait_for(rf"^causeway: {name} started \(pid (\d+)\)", after=after).group(1))


@pytest.mark.slow
def test_it_says_when_the_node_is_ready_and_stops_clean(node: Node) -> None:
    with node.start() as up:
        ready = up.wait_for(r"^causeway: ready in [\d.]+ s: node edge-a, cluster tests, sockets in (.*)$")
        assert ready.group(1) == str(node.run_dir)
        pids = {name: started(up, name) for name in NAMES}
        services = node.status()["services"]
        assert all(service == {"up": True, "error": ""} for service in services.values())
        assert stop(up) == 0
        for name in NAMES:
            up.wait_for(rf"^causeway: {name} exited with code 0 ")
        assert not any(alive(pid) for pid in pids.values())
    assert node.run("status").returncode == 1


@pytest.mark.slow
def test_each_service_killed_comes_back_and_serves(node: Node) -> None:
    with node.start() as up:
        up.wait_for("^causeway: ready in ")
        for name in NAMES:
            said = len(up.lines)
            os.kill(started(up, name), signal.SIGKILL)
            started(up, name, after=said)
            deadline = time.monotonic() + PATIENCE
            while not (service := node.status()["services"][name])["up"]:
                assert time.monotonic() < deadline, service["error"]
        assert stop(up) == 0


@pytest.mark.slow
def test_a_second_up_on_the_same_run_directory_is_refused(node: Node) -> None:
    with node.start() as up:
        up.wait_for("^causeway: ready in ")
        second = node.run("up")
        assert second.returncode == 1
        assert second.stderr.decode() == (
            f"causeway: another causeway up (pid {up.pid}) runs on {node.run_dir}: stop it, or choose another runDir\n"
        )
        assert stop(up) == 0


@pytest.mark.slow
def test_after_a_killed_up_the_next_one_starts(node: Node) -> None:
    with node.start() as up:
        up.wait_for("^causeway: ready in ")
        up.signal(signal.SIGKILL)
        assert up.end() == -signal.SIGKILL
    with node.start() as up:  # over left-over sockets and the left-over lock file
        up.wait_for("^causeway: ready in ")
        assert stop(up) == 0


@pytest.mark.slow
def test_a_service_may_be_run_by_other_means(node: Node) -> None:
    with node.start("up", "--without", "relay") as up, node.start("relay") as relay:
        up.wait_for("^causeway: ready in ")
        relay.wait_for("relay idle")
        assert node.status()["services"]["relay"]["up"]
        assert not any("relay started" in line for line in up.lines)
        assert stop(relay) == 0
        assert not node.status()["services"]["relay"]["up"]
        assert stop(up) == 0


@pytest.mark.slow
def test_it_runs_when_nobody_takes_what_it_says(node: Node) -> None:
    command = ["sh", "-c", 'exec "$0" -m causeway up 2>/dev/full', sys.executable]
    with Process(command, env={"CAUSEWAY_CONFIG": ""}, cwd=str(node.folder)) as up:
        deadline = time.monotonic() + PATIENCE
        while node.run("status").returncode != 0:
            assert time.monotonic() < deadline and up.popen.poll() is None
            time.sleep(0.2)
        assert stop(up) == 0


@pytest.mark.slow
def test_a_disabled_proxy_is_left_out(tmp_path: Path) -> None:
    node = Node(tmp_path, "edge-a", f"{loopback.block()}.1", edgeProxy={"enable": False})
    with node.start() as up:
        up.wait_for("^causeway: proxy is left out: modules.edgeProxy.enable is false")
        up.wait_for("^causeway: ready in ")
        assert not any("proxy started" in line for line in up.lines)
        assert stop(up) == 0
