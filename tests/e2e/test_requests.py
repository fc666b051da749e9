"""Requests of real clients between real nodes: balanced by a header, and told why where they get nowhere."""

import asyncio
import http.client
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.manifest import Document, service
from lab.mesh import Mesh
from tests.e2e.traffic import eventually

pytestmark = pytest.mark.slow

PORTS = (7301, 7302, 7303)
WEB, DENIED, DEAD = 7310, 7311, 7312


class Handler(BaseHTTPRequestHandler):
    """Answers with its port and the length of the body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = f"{self.server.server_address[1]} {len(body)}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        pass


@pytest.fixture
async def mesh(short_path: Path) -> AsyncIterator[Mesh]:
    mesh = Mesh.loopback(short_path)
    config = yaml.safe_load(mesh.a.config_file.read_text())
    # No endpoint counts as busy while the end of the request before is still on its way.
    config["modules"]["edgeProxy"] = {"loadBalancer": {"consistentHash": {"load": 100}}} | config["modules"].get(
        "edgeProxy", {}
    )
    mesh.a.configure(config)
    async with mesh.running(lean=True):
        yield mesh


@pytest.fixture
def servers(mesh: Mesh) -> Iterator[None]:
    running = [ThreadingHTTPServer((mesh.b.place.address, port), Handler) for port in PORTS]
    for one in running:
        threading.Thread(target=one.serve_forever, daemon=True).start()
    yield
    for one in running:
        one.shutdown()
        one.server_close()


@pytest.fixture
def services(mesh: Mesh, servers: None) -> str:
    """Publishes them; the address at a. What is to be denied only a knows."""
    address = mesh.b.place.address

    def at(ip: str, name: str, port: int, target: int) -> list[Document]:
        return service(name, cluster_ip=ip, port=port, node="b", address=address, target_port=target)

    for node, ip in zip((mesh.a, mesh.b), mesh.cluster_ips, strict=True):
        web = at(ip, "web", WEB, PORTS[0])
        endpoints = web.pop()
        ports = endpoints.pop("ports")
        web += [
            endpoints
            | {"metadata": endpoints["metadata"] | {"name": f"web-{port}"}, "ports": [ports[0] | {"port": port}]}
            for port in PORTS
        ]
        rule = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": {"name": "web"},
            "spec": {
                "host": "web",
                "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpHeaderName": "X-User"}}},
            },
        }
        more = at(ip, "denied", DENIED, 7399) if node is mesh.a else []
        node.publish([*web, rule, *at(ip, "dead", DEAD, 7398), *more])
    return mesh.cluster_ips[0]


async def curl(*arguments: str) -> tuple[str, str]:
    """The status and the body; an answer there must be."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--noproxy", "*", "-m", "60", "-w", "\n%{http_code}", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    body, _, status = output.decode().rpartition("\n")
    return status, body


def ask(ip: str, user: str, size: int) -> str:
    """The port that answered two requests on one connection."""
    connection = http.client.HTTPConnection(ip, WEB, timeout=60)
    ports = set()
    for _ in range(2):
        connection.request("POST", "/", body=b"x" * size, headers={"X-User": user})
        port, length = connection.getresponse().read().decode().split()
        assert int(length) == size
        ports.add(port)
    connection.close()
    (port,) = ports
    return port


async def test_a_header_decides_and_a_refusal_says_why(mesh: Mesh, services: str) -> None:
    async def served() -> bool:
        ports = {await asyncio.to_thread(ask, services, f"user-{number}", 10) for number in range(12)}
        left_out = sum(row.ejected for row in (await mesh.a.proxy()).listeners)
        return len(ports) > 1 and left_out == 0

    await eventually(served, "the service is there, and no endpoint is left out that was asked too early")
    chosen: dict[str, set[str]] = {}
    for size in (0, 1000, 500_000):  # beyond what is read with the head, and what the tunnel reads early
        for number in range(12):
            user = f"user-{number}"
            chosen.setdefault(user, set()).add(await asyncio.to_thread(ask, services, user, size))
    assert all(len(ports) == 1 for ports in chosen.values())
    assert len(set.union(*chosen.values())) > 1

    for port, status, said in (
        (DENIED, "403", ("denied", f"{mesh.b.place.address}:7399", "node 'a'", "node 'b'")),
        (DEAD, "502", ("connection_refused", "ECONNREFUSED")),
    ):
        for more in ([], ["--http2-prior-knowledge"], ["--data-binary", "x" * 100_000]):
            got, body = await curl(*more, f"http://{services}:{port}/")
            assert got == status
            assert all(part in body for part in said), body
            assert body.count("\n") == 1
