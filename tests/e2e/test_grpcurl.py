"""The real grpcurl lists, describes and calls every service of a running node, with nothing but its socket.

grpcurl comes from PATH or .venv/bin; where only Go is there, it is installed into .venv/bin (a minute, once).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from lab.folder import short_folder
from lab.mesh import Mesh
from lab.node import SERVICES, Node
from protos import discovery_pb2, proxy_pb2, relay_pb2, tunnel_pb2

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
MODULE = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
STATUS: dict[str, Any] = {
    "discovery": discovery_pb2.GetStatusResponse,
    "relay": relay_pb2.GetStatusResponse,
    "tunnel": tunnel_pb2.GetStatusResponse,
    "proxy": proxy_pb2.GetStatusResponse,
}


@pytest.fixture(scope="module")
def grpcurl() -> str:
    """Path of the program; skips with the reason when it cannot be had, or fails where CAUSEWAY_REQUIRE_GRPCURL=1."""
    refuse = pytest.fail if os.environ.get("CAUSEWAY_REQUIRE_GRPCURL") == "1" else pytest.skip
    path = f"{os.environ.get('PATH', '')}:{BIN}"
    if found := shutil.which("grpcurl", path=path):
        return found
    go = shutil.which("go", path=f"{path}:/usr/local/go/bin")
    if go is None:
        refuse("neither grpcurl nor go is installed")
    try:
        done = subprocess.run(
            [go, "install", MODULE], env={**os.environ, "GOBIN": str(BIN)}, capture_output=True, text=True, timeout=240
        )
    except subprocess.TimeoutExpired:
        refuse(f"go install {MODULE} is not done after 240 s")
    if done.returncode:
        refuse(f"go install {MODULE}: {done.stderr.strip().splitlines()[-1]}")
    return str(BIN / "grpcurl")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One node whose four services run; it needs no neighbour for this."""
    with short_folder() as folder:
        node = Mesh.loopback(folder).r1
        node.start()
        try:
            asyncio.run(node.ready())
            yield node
        finally:
            asyncio.run(node.stop())


async def call(grpcurl: str, node: Node, service: str, *words: str) -> str:
    """Output of `grpcurl -plaintext -unix RUN_DIR/SERVICE.sock WORDS…`.

    The path is absolute: grpcurl 1.9.4 makes `unix://run/tunnel.sock` of a relative one, where `run` is a host.
    """
    process = await asyncio.create_subprocess_exec(
        grpcurl,
        "-plaintext",
        "-unix",
        str(node.run_dir / f"{service}.sock"),
        *words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_tells_what_it_offers(grpcurl: str, node: Node, service: str) -> None:
    name = f"causeway.{service}.v1.{service.capitalize()}Service"
    listed = (await call(grpcurl, node, service, "list")).split()
    assert {name, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(listed)

    described = await call(grpcurl, node, service, "describe", name)
    assert f"service {service.capitalize()}Service {{" in described
    assert (
        f"rpc GetStatus ( .causeway.{service}.v1.GetStatusRequest )"
        f" returns ( .causeway.{service}.v1.GetStatusResponse );" in described
    )

    # Parsed as protobuf's JSON: versions of grpcurl differ in writing nodeName or node_name.
    answer = STATUS[service]()
    json_format.Parse(await call(grpcurl, node, service, f"{name}/GetStatus"), answer)
    assert answer.node_name == node.name

    health = json.loads(await call(grpcurl, node, service, "grpc.health.v1.Health/Check"))
    assert health == {"status": "SERVING"}


async def test_the_messages_describe_themselves(grpcurl: str, node: Node) -> None:
    described = await call(grpcurl, node, "tunnel", "describe", "causeway.tunnel.v1.Link")
    assert "message Link {" in described
    assert ".causeway.tunnel.v1.PathKind kind = 1;" in described
