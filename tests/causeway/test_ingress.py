"""An ingress gateway on one node, in front of a service on another: through the real tunnel, with real programs."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import websockets
import yaml

from lab.clients.rpc_program import OPTIONS, SERVICE, Calls, Echo
from lab.manifest import service
from tests import loopback
from tests.causeway.node import Node, stop
from tests.causeway.process import PATIENCE
from tests.proxy.ingress import Authority, Backend

pytestmark = pytest.mark.slow  # two nodes

AUTHORITY = Authority()
HOST = "shop.test"


def objects() -> list[dict[str, Any]]:
    istio = {"apiVersion": "networking.istio.io/v1", "metadata": {"name": "edge"}}
    tls = {"mode": "SIMPLE", "credentialName": "shop"}
    return [
        {**istio, "kind": "Gateway", "spec": {
            "selector": {"kubeedge": "edgemesh-gateway"},
            "servers": [
                {"port": {"number": 8443, "name": "https", "protocol": "HTTPS"}, "hosts": [HOST], "tls": tls},
                {"port": {"number": 8000, "name": "tcp", "protocol": "TCP"}, "hosts": ["*"]},
            ],
        }},
        {**istio, "kind": "VirtualService", "spec": {
            "hosts": [HOST], "gateways": ["edge"],
            "http": [
                {"match": [{"uri": {"prefix": f"/{SERVICE}/"}}], "route": [{"destination": {"host": "rpc"}}]},
                {"route": [{"destination": {"host": "web", "port": {"number": 8000}}}]},
            ],
        }},
        {**istio, "kind": "VirtualService", "metadata": {"name": "tcp"}, "spec": {
            "hosts": ["*"], "gateways": ["edge"],
            "tcp": [{"match": [{"port": 8000}], "route": [{"destination": {"host": "web"}}]}],
        }},
        {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "shop"},
         "stringData": AUTHORITY.issue(HOST)},
    ]  # fmt: skip


@pytest.fixture
def block() -> str:
    return loopback.block()


@pytest.fixture
def nodes(tmp_path: Path, block: str) -> Iterator[tuple[Node, Node]]:
    """gate, where clients come, and edge-b, which has the service."""
    relays = [{"nodeName": "gate", "advertiseAddress": [f"{block}.1"]}]
    documents = service(
        "web", cluster_ip=f"{block}.8", port=8000, node="edge-b", address=f"{block}.9", target_port=8000
    )
    rpc = service("rpc", cluster_ip=f"{block}.8", port=9000, node="edge-b", address=f"{block}.9", target_port=9000)
    rpc[0]["spec"]["ports"][0]["appProtocol"] = "grpc"
    documents += rpc
    made = []
    for number, name in enumerate(("gate", "edge-b"), start=1):
        section = {"edgeGateway": {"enable": True, "includeIP": f"{block}.7"}} if name == "gate" else {}
        node = Node(
            tmp_path / name,
            name,
            f"{block}.{number}",
            edgeTunnel={"relayNodes": relays},
            edgeRelay={"mode": "off"},
            edgeDiscovery={"servicesFile": "services.yaml"},
            **section,
        )
        (node.folder / "services.yaml").write_text(yaml.safe_dump_all([*documents, *(objects() if section else [])]))
        made.append(node)
    processes = [node.start() for node in made]
    try:
        for process in processes:
            process.wait_for("^causeway: ready in ")
        yield made[0], made[1]
    finally:
        for process in processes:
            stop(process)


async def curl(block: str, url: str, *arguments: str) -> tuple[int, str]:
    def run() -> "subprocess.CompletedProcess[str]":
        resolve = [f"{HOST}:{port}:{block}.7" for port in (8000, 8443)]
        command = ["curl", "-sS", "-m", "60", "--noproxy", "*", "--resolve", resolve[0], "--resolve", resolve[1]]
        return subprocess.run([*command, *arguments, url], capture_output=True, text=True, errors="replace")

    done = await asyncio.to_thread(run)
    return done.returncode, done.stdout or done.stderr


async def calls(block: str) -> None:
    """gRPC on the same port, all the way."""
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, Echo().handlers()),))
    server.add_insecure_port(f"{block}.9:9000")
    await server.start()
    options = [*OPTIONS, ("grpc.ssl_target_name_override", HOST), ("grpc.default_authority", HOST)]
    trusting = grpc.ssl_channel_credentials(AUTHORITY.pem.encode())
    async with grpc.aio.secure_channel(f"{block}.7:8443", trusting, options=options) as channel:
        tried = Calls(channel, 100)
        for one in (tried.unary, tried.server_stream, tried.client_stream, tried.both_streams, tried.large):
            await one()
        for one in (tried.status, tried.deadline, tried.cancellation, tried.load):
            await one()
    await server.stop(None)


async def test_through_the_gateway_to_another_node(nodes: tuple[Node, Node], block: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(AUTHORITY.pem)
    trust = ("--cacert", str(tmp_path / "ca.pem"))
    backend = Backend("web", f"{block}.9", 8000)
    await backend.start()
    try:
        async with asyncio.timeout(PATIENCE):
            while (await curl(block, f"https://{HOST}:8443/", *trust))[0] != 0:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.2)
        large = tmp_path / "large"
        large.write_bytes(b"0123456789abcdef" * 500_000)
        code, body = await curl(
            block, f"https://{HOST}:8443/post", *trust, "-H", "Transfer-Encoding: chunked", "-T", str(large)
        )
        assert code == 0 and json.loads(body)["size"] == large.stat().st_size, body
        assert json.loads(body)["headers"]["x-forwarded-host"] == f"{HOST}:8443"
        got = tmp_path / "got"
        assert (await curl(block, f"https://{HOST}:8443/large?size=8000000", *trust, "-o", str(got)))[0] == 0
        assert got.read_bytes() == bytes(range(256)) * 31250
        context = ssl.create_default_context(cadata=AUTHORITY.pem)
        async with websockets.connect(f"wss://{HOST}:8443/ws", host=f"{block}.7", port=8443, ssl=context) as client:
            await client.send("hello")
            assert await client.recv() == "web:hello"
        await calls(block)
        code, body = await curl(block, f"http://{HOST}:8000/stream")
        assert code == 0 and "x-forwarded-for" not in json.loads(body)["headers"]
        shown = nodes[0].status()["listeners"]
        labels = {(one["address"], one["service"], one["endpoints"], one["error"]) for one in shown}
        assert (f"{block}.7:8443", "gateway default/edge:8443 HTTPS", 2, "") in labels
        # The backend is gone: the client hears so, and the gateway is there for the next one.
        await backend.stop()
        code, body = await curl(block, f"https://{HOST}:8443/", *trust, "-w", "%{http_code}")
        assert code == 0 and body.endswith("502"), body
        await backend.start()
        assert (await curl(block, f"https://{HOST}:8443/", *trust))[0] == 0
    finally:
        await backend.stop()
