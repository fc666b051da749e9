"""Applications that know names only: two nodes in a LAN without an uplink, real resolvers, services of all shapes."""

import asyncio
import contextlib
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.child import Child
from lab.manifest import Document
from lab.network import Network
from lab.node import Node, together
from lab.place import Place, simulated
from lab.wire import Shape
from tests.e2e.conftest import require_simulation
from tests.e2e.traffic import eventually, make_socket

pytestmark = [pytest.mark.slow, pytest.mark.lab]

MEMBER = ("discovery", "tunnel", "proxy")
PORT, NODE_PORT = 7001, 30701
# What a pod's resolv.conf holds, but for the address.
RESOLV_CONF = (
    "nameserver 127.0.0.1\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
)
APPLICATION = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as sock:
    print(sock.makefile().read())
"""


def manifests() -> list[Document]:
    """`web` with a clusterIP and a nodePort, the headless `db`, whose endpoints are a legacy object, and `site`, which is
    another name for `web`."""
    port: dict[str, Any] = {"name": "main", "port": PORT}
    metadata = {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}
    addresses = [{"ip": f"127.8.0.{i + 1}", "hostname": f"db-{i}", "nodeName": "b"} for i in range(2)]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "clusterIP": "127.88.0.1", "ports": [port | {"nodePort": NODE_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": "IPv4",
            "ports": [port],
            "endpoints": [{"addresses": ["127.8.0.1"], "nodeName": "b"}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "db"},
            "spec": {"clusterIP": "None", "ports": [port]},
        },
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": "db"},
            "subsets": [{"addresses": addresses, "ports": [port]}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "site"},
            "spec": {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"},
        },
    ]


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Iterator[None]:
    """The DNS of the node is the only name server of the machine."""
    require_simulation()
    file = tmp_path / "resolv.conf"
    file.write_text(RESOLV_CONF)
    # The wrapper of the lab has mounts of its own; nothing outside sees this one.
    subprocess.run(["mount", "--bind", str(file), "/etc/resolv.conf"], check=True)
    yield
    subprocess.run(["umount", "/etc/resolv.conf"], check=True)


@pytest.fixture
async def pair(resolv_conf: None) -> AsyncIterator[tuple[Node, Node]]:
    """Nodes a and b; b's backends say their address. The LAN's router leads nowhere."""
    folder, network = Path(tempfile.mkdtemp(prefix="cw-")), Network()
    nodes: list[Node] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(network.close)
        lan = network.lan("office", shape=Shape(delay=0.001))
        places = [simulated(lan.host(name)) for name in ("a", "b")]
        assert lan.wire is not None
        lan.wire.cut()
        psk = secrets.token_hex(32)
        for place in places:
            modules = {"edgeDNS": {"enable": True}, "edgeProxy": {"socks5Proxy": {"enable": True}}}
            nodes.append(Node(place, folder / place.name, psk=psk, services=manifests(), modules=modules))
        stack.push_async_callback(stop, nodes)
        for ip in ("127.8.0.1", "127.8.0.2"):
            await stack.enter_async_context(await backend(places[1], ip))
        for node in nodes:
            node.start(*MEMBER)
        await together(node.ready(*MEMBER) for node in nodes)
        try:
            yield nodes[0], nodes[1]
        except BaseException:
            for node in nodes:
                print(f"--- {node.name} proxy\n{node.tail('proxy')}\n{node.tail('discovery')}")
            raise


async def stop(nodes: list[Node]) -> None:
    await asyncio.gather(*(node.stop(timeout=5) for node in nodes))


async def backend(place: Place, ip: str) -> asyncio.Server:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ip.encode())
        await writer.drain()
        writer.close()

    sock = make_socket(place)
    sock.bind((ip, PORT))
    return await asyncio.start_server(answer, sock=sock)


async def run(node: Node, *argv: str) -> str:
    """What a command printed that ran on the node's machine."""
    child = Child(argv, output=None, namespace=node.place.namespace)
    try:
        assert await child.wait(100) == 0
        return child.stdout.read().decode()
    finally:
        await child.stop()


async def reached(node: Node, host: str, port: int = PORT) -> str:
    """Who answers an application that connects to a name, with the machine's own resolver."""
    return (await run(node, sys.executable, "-c", APPLICATION, host, str(port))).strip()


async def works(node: Node) -> None:
    async def found() -> bool:
        return await reached(node, "web") == "127.8.0.1"

    await eventually(found, "an application reaches the service by its name", timeout=120)
    for name in ("web.default", "web.default.svc", "web.default.svc.cluster.local", "web.default.svc.cluster.local."):
        assert await reached(node, name) == "127.8.0.1"
    assert await reached(node, "127.0.0.1", NODE_PORT) == "127.8.0.1"
    assert await reached(node, node.place.address, NODE_PORT) == "127.8.0.1"
    for number in range(2):
        assert await reached(node, f"db-{number}.db") == f"127.8.0.{number + 1}"
    assert await reached(node, "site") == "127.8.0.1"
    answers = await run(node, "dig", "@127.0.0.1", "+short", "db.default.svc.cluster.local")
    assert sorted(answers.split()) == ["127.8.0.1", "127.8.0.2"]


async def test_names_lead_to_services_and_to_each_endpoint_also_after_a_restart_offline(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    await works(a)
    for number in range(2):
        # It ends when both sides have: its own has nothing to say.
        nc = f"nc -X 5 -x 127.0.0.1:10800 db-{number}.db.default {PORT} </dev/null"
        assert await run(a, "sh", "-c", nc) == f"127.8.0.{number + 1}"
    assert await reached(b, "db-1.db") == "127.8.0.2"  # where the endpoint is, no listener stands in its way
    [[address, error]] = {(row.address, row.error) for row in (await a.proxy()).listeners if row.service == "dns"}
    assert (address, error) == ("127.0.0.1:53", "")
    text = await run(a, "dig", "@127.0.0.1", "+tries=1", "+time=30", "elsewhere.test")
    assert "status: SERVFAIL" in text  # nobody to ask: at once, not after a timeout
    await a.kill()
    a.start(*MEMBER)
    await a.ready(*MEMBER)
    await works(a)
