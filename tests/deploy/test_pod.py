"""The real pod: four containers built from deploy/Dockerfile, run by podman from deploy/pod.yaml, in a mesh.

Takes about a minute and a half; the first time on a machine 40 s more, for the base image. Skipped with the
reason where podman and the like are missing; with CAUSEWAY_REQUIRE_PODMAN=1 that is a failure.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.manifest import service
from tests import loopback

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ["discovery", "tunnel", "relay", "proxy"]
UNABLE = 77  # deploy/podman.sh: this machine cannot do it
BLOCK = loopback.block()
POD, HOST, POD_IP, HOST_IP, BACKEND = (f"{BLOCK}.{last}" for last in (1, 2, 101, 102, 9))
PORT = 7000


def podman(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", ROOT / "deploy/podman.sh", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "POD_ADDRESS": POD},
    )


def status() -> dict[str, Any]:
    done = podman("status")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def pod() -> Iterator[None]:
    done = podman("up")
    try:
        if done.returncode == UNABLE:
            reason = done.stderr.strip()
            if os.environ.get("CAUSEWAY_REQUIRE_PODMAN") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        assert done.returncode == 0, done.stdout + done.stderr + podman("logs").stdout
        yield
    finally:
        if done.returncode != UNABLE:
            down = podman("down")
            assert down.returncode == 0, down.stderr


def test_four_containers_are_healthy_and_share_their_sockets(pod: None) -> None:
    done = podman("check")
    assert done.returncode == 0, done.stderr
    found = status()
    assert found["node"] == "edge-a"
    assert {name: it["up"] for name, it in found["services"].items()} == dict.fromkeys(SERVICES, True)


def test_a_stream_goes_from_the_pod_to_a_node_outside(pod: None, tmp_path: Path) -> None:
    # The client's socket goes from the proxy's container to the tunnel's by descriptor: what no other test shows
    # under a container's limits and seccomp profile.
    listener = socket.create_server((BACKEND, 0))
    target = listener.getsockname()[1]
    folder = Path(tmp_path)
    (folder / "psk").write_text(podman("psk").stdout)
    (folder / "psk").chmod(0o600)
    for name, cluster_ip in (("pod", POD_IP), ("host", HOST_IP)):
        documents = service(
            "echo", cluster_ip=cluster_ip, port=PORT, node="edge-b", address=BACKEND, target_port=target
        )
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(documents))
    config = {
        "nodeName": "edge-b",
        "listenAddress": HOST,
        "runDir": "run",
        "modules": {
            "edgeDiscovery": {
                "bootstrap": [f"{POD}:20008"],
                "servicesFile": "host.yaml",
                "mdns": {"enable": False},
            },
        },
    }
    (folder / "causeway.yaml").write_text(yaml.safe_dump(config))
    log = folder / "node.log"
    argv = [sys.executable, "-m", "causeway", "up", "--config", str(folder / "causeway.yaml")]
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output, cwd=ROOT) as node:
        try:
            assert podman("publish", str(folder / "pod.yaml")).returncode == 0
            threading.Thread(target=echo, args=(listener,), daemon=True).start()
            data = random.Random(7).randbytes(3 << 20)
            client = reach((POD_IP, PORT), deadline=time.monotonic() + 120, log=log)
            with client:

                def write() -> None:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)

                writer = threading.Thread(target=write)
                writer.start()
                back = bytearray()
                while chunk := client.recv(1 << 16):
                    back += chunk
                writer.join()
            assert back == data
            peer = next(it for it in status()["peers"] if it["name"] == "edge-b")
            assert peer["path"] in ("direct", "punched")
        finally:
            node.terminate()
            node.wait(30)
            listener.close()


def echo(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            while chunk := connection.recv(1 << 16):
                connection.sendall(chunk)


def reach(address: tuple[str, int], *, deadline: float, log: Path) -> socket.socket:
    """A connection through which an echo has come back; tried again while the mesh comes up."""
    while True:
        client = socket.socket()
        client.settimeout(30)
        try:
            client.connect(address)
            client.sendall(b"x")
            if client.recv(1) == b"x":
                return client
        except OSError:
            pass
        client.close()
        if time.monotonic() > deadline:
            pytest.fail(f"no echo from {address}\n{podman('logs').stdout[-3000:]}\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


def test_the_script_says_what_it_does_not_know() -> None:
    done = podman("upp")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "'upp' is not known; expected up, check" in done.stderr


def test_no_wheel_of_another_causeway_gets_in(pod: None) -> None:
    wheels = [wheel.name for wheel in (ROOT / "build/pod/context/wheels").glob("causeway-*")]
    assert len(wheels) == 1
