"""The README's ten minutes: a hub that is its cluster's relay, a node that nobody can dial, and the command."""

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from lab.manifest import service
from tests import loopback
from tests.causeway.node import Node
from tests.causeway.process import PATIENCE

pytestmark = pytest.mark.slow  # three nodes, which all tests look at and leave as they are

PAGE = b"hello from edge-b\n" * 1000


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def web(address: str) -> Iterator[int]:
    with http.server.ThreadingHTTPServer((address, 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def block() -> str:
    return loopback.block()


@pytest.fixture(scope="module")
def port(block: str) -> Iterator[int]:
    with web(f"{block}.9") as port:
        yield port


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, block: str, port: int) -> Iterator[dict[str, Node]]:
    """hub, edge-a and edge-b, up; edge-a and edge-b do not listen, so that they meet at the hub."""
    relays = [{"nodeName": "hub", "advertiseAddress": [f"{block}.1"]}]
    folder = tmp_path_factory.mktemp("nodes")
    nodes = {}
    for number, name in enumerate(("hub", "edge-a", "edge-b"), start=1):
        tunnel: dict[str, Any] = {"relayNodes": relays} | ({} if name == "hub" else {"listenPort": 0})
        node = Node(
            folder / name,
            name,
            f"{block}.{number}",
            edgeTunnel=tunnel,
            # On one machine all can be reached, and would earn the role.
            edgeRelay={"mode": "auto" if name == "hub" else "off"},
            edgeDiscovery={"servicesFile": "services.yaml"},
        )
        # One machine: each node serves the web on a clusterIP of its own.
        documents = service(
            "web", cluster_ip=f"{block}.10{number}", port=8000, node="edge-b", address=f"{block}.9", target_port=port
        )
        (node.folder / "services.yaml").write_text(yaml.safe_dump_all(documents))
        nodes[name] = node
    processes = [node.start() for node in nodes.values()]
    try:
        for process in processes:
            process.wait_for("^causeway: ready in ")
        yield nodes
        for process in processes:  # all at once: a relay that stops waits for circuits to move away
            process.signal(signal.SIGTERM)
        assert [process.end() for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.__exit__(None, None, None)
            print("\n".join(process.lines))  # pytest shows it when the test fails


def until_answered(node: Node, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Nodes that have just started know each other a moment later."""
    deadline = time.monotonic() + PATIENCE
    while (done := node.run(*arguments)).returncode and time.monotonic() < deadline:
        pass
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done


def test_ping_nc_and_status_tell_the_same_story(mesh: dict[str, Node], block: str, port: int) -> None:
    here = mesh["edge-a"]
    found = json.loads(until_answered(here, "ping", "edge-b", "-c", "3", "-i", "0", "-o", "json").stdout)
    assert (found["node"], found["sent"], found["received"], found["error"]) == ("edge-b", 3, 3, "")
    assert len(found["rtts_ms"]) == 3
    assert found["rtt_ms"]["min"] <= found["rtt_ms"]["avg"] <= found["rtt_ms"]["max"]
    assert (found["path"]["kind"], found["path"]["relay"]) == ("relayed", "hub")

    lines = here.run("ping", "edge-b", "-c", "2", "-i", "0").stdout.decode().splitlines()
    assert lines[0] == "PING edge-b"
    assert lines[1].startswith("from edge-b: seq=1 time=") and " ms relayed via hub (" in lines[1]
    assert lines[3] == "--- edge-b: 2 sent, 2 received, 0 % lost"
    assert lines[4].startswith("rtt min/avg/max/mdev = ")

    # Without a service in between: the endpoint is what the exit node's policy allows.
    done = here.run("nc", "edge-b", f"{block}.9:{port}", data=b"GET / HTTP/1.0\r\n\r\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\r\n\r\n" + PAGE)

    status = here.status()
    assert (status["node"], status["cluster"]) == ("edge-a", "tests")
    peer = next(peer for peer in status["peers"] if peer["name"] == "edge-b")
    assert (peer["path"], peer["relay"]) == ("relayed", "hub")
    assert peer["session"]["state"] == "up" and peer["rtt_ms"] > 0
    assert next(relay for relay in status["relays"] if relay["relay"] == "hub")["state"] == "reserved"
    assert status["roles"]["relay"]["active"] is False and status["roles"]["relay"]["reason"]
    listener = next(listener for listener in status["listeners"] if listener["service"].startswith("default/web"))
    assert listener["address"] == f"{block}.102:8000" and listener["error"] == ""

    text = here.run("status").stdout.decode()
    assert "relayed via hub" in text and "default/web" in text

    found = json.loads(here.run("explain", "edge-b", "-o", "json").stdout)
    assert (found["node"], found["session"]) == ("edge-b", "up")
    best, *others = found["candidates"]
    assert (best["kind"], best["relay"], best["state"]) == ("relayed", "hub", "active")
    assert best["rtt_ms"] > 0 and best["behind_ms"] is None and best["why"]
    assert all(it["state"] in ("failed", "untried") and it["why"] for it in others)
    assert found["punching"]["attempts"] == 0, "neither of them listens"
    lines = here.run("explain", "edge-b").stdout.decode().splitlines()
    assert lines[0].startswith("edge-b: up") and "relayed" in lines[2] and "active" in lines[2]
    assert lines[-1].startswith("hole punching: not tried, 0 attempts")

    hub = mesh["hub"].status()["roles"]["relay"]
    assert hub["active"] and {item["peer"] for item in hub["reservations"]} >= {"edge-a", "edge-b"}
    assert any({circuit["caller"], circuit["callee"]} == {"edge-a", "edge-b"} for circuit in hub["circuits"])


def test_a_client_reaches_the_service_by_its_address(mesh: dict[str, Node], block: str) -> None:
    script = f"import urllib.request as r; print(len(r.urlopen('http://{block}.102:8000/', timeout=30).read()))"
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        if done.returncode == 0 or time.monotonic() > deadline:
            break
    assert done.stdout.strip() == str(len(PAGE)), done.stderr


def test_what_the_exit_node_does_not_allow_is_refused_in_one_line(mesh: dict[str, Node], block: str) -> None:
    here = mesh["edge-a"]
    until_answered(here, "ping", "edge-b", "-c", "1")
    done = here.run("nc", "edge-b", f"{block}.9:1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("causeway: refused (denied): "), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_node_that_nobody_knows_is_one_line(mesh: dict[str, Node]) -> None:
    here = mesh["edge-a"]
    until_answered(here, "ping", "hub", "-c", "1")
    for arguments in (
        ("ping", "edge-z", "-c", "1", "-W", "3"),
        ("nc", "edge-z", "127.0.0.1:22", "-w", "3"),
        ("explain", "edge-z"),
    ):
        done = here.run(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1 and "edge-z" in done.stderr.decode(), done.stderr
    found = json.loads(here.run("ping", "edge-z", "-c", "1", "-W", "3", "-o", "json").stdout)
    assert found["received"] == 0 and "edge-z" in found["error"] and found["rtt_ms"] is None
