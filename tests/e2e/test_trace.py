"""One trace from the client's accept to the backend's dial, through all four services and on both nodes."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.mesh import Mesh
from tests.e2e.traffic import PORT, TARGET_PORT, connect, echo_server, eventually

pytestmark = pytest.mark.slow  # real processes: four nodes

PLACES = {
    ("causeway-proxy", "a"),
    ("causeway-tunnel", "a"),
    ("causeway-discovery", "a"),
    ("causeway-tunnel", "b"),
    ("causeway-proxy", "b"),
}
"""Where the connection must have left spans, the relay aside."""


@pytest.fixture
async def traced(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Mesh, Path]]:
    spans = short_path / "spans.jsonl"
    monkeypatch.setenv("CAUSEWAY_TRACE_FILE", str(spans))
    mesh = Mesh.loopback(short_path)
    mesh.publish("echo", PORT, TARGET_PORT)
    async with mesh.running(lean=True):
        yield mesh, spans


async def test_one_trace_crosses_four_services_and_both_nodes(traced: tuple[Mesh, Path]) -> None:
    mesh, file = traced
    async with echo_server(mesh.b.place):
        reader, writer = await connect(mesh.a.place, mesh.cluster_ips[0])
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()

        async def complete() -> bool:
            trace = one_trace(file)
            names = {"proxy.accept", "tunnel.open", "relay.circuit", "tunnel.accept", "proxy.dial"}
            return names <= {span["name"] for span in trace} and places(trace) >= PLACES

        await eventually(complete, "all spans were written")
    trace = one_trace(file)
    assert any(span["service"] == "causeway-relay" and span["node"] in ("r1", "r2") for span in trace)
    by_id = {span["span"]: span for span in trace}
    chain = []
    at = next(span for span in trace if span["name"] == "proxy.dial")
    while at is not None:
        chain.append((at["node"], at["name"]))
        at = by_id.get(at["parent"])
    assert chain == [("b", "proxy.dial"), ("b", "tunnel.accept"), ("a", "tunnel.open"), ("a", "proxy.accept")]


def one_trace(file: Path) -> list[dict]:
    """The spans of the first connection's trace, as far as they have been written."""
    spans = read(file)
    first = next((span for span in spans if span["name"] == "proxy.accept"), None)
    return [span for span in spans if first is not None and span["trace"] == first["trace"]]


def places(trace: list[dict]) -> set[tuple[str, str]]:
    """Service and node of each span."""
    return {(span["service"], span["node"]) for span in trace}


def read(file: Path) -> list[dict]:
    """The spans written so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
