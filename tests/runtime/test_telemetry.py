"""Spans: next to nothing when off, linked when on."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protos import relay_pb2, relay_pb2_grpc
from services.runtime import dial, telemetry

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "trace.jsonl"
    monkeypatch.setenv("CAUSEWAY_TRACE_FILE", str(file))
    telemetry.set_up("tunnel", "edge-a")
    yield file
    telemetry.shut_down()


def spans(file: Path) -> dict[str, dict[str, Any]]:
    telemetry.shut_down()
    return {span["name"]: span for span in map(json.loads, file.read_text().splitlines())}


def test_off_hands_the_context_on() -> None:
    assert not telemetry.enabled()
    with telemetry.span("x", parent=PARENT, peer="b") as span:
        assert span.traceparent == PARENT
        span.set(a=1)
        span.event("y")
    assert telemetry.start_span("x") is telemetry.start_span("y"), "no object is made"
    assert telemetry.start_span("x").traceparent == ""


def test_off_imports_nothing() -> None:
    program = (
        "import sys; from services.runtime import telemetry; telemetry.set_up('relay', 'a');"
        "telemetry.start_span('x').end(); sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize("value", ["none", ""])
def test_off_by_the_standard_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", value)
    telemetry.set_up("tunnel", "edge-a")
    assert not telemetry.enabled()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry.set_up("tunnel", "edge-a")
    assert not telemetry.enabled()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "opentelemetry-exporter-otlp-proto-grpc is not installed"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "expected http/protobuf or grpc"),
    ],
)
def test_a_protocol_that_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    if value == "grpc" and importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None:
        pytest.skip("the exporter by gRPC is installed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable) as caught:
        telemetry.set_up("tunnel", "edge-a")
    assert said in str(caught.value)
    assert not telemetry.enabled()


async def test_a_call_that_fails_fails_its_span(on: Path, tmp_path: Path) -> None:
    async with dial.local_channel(tmp_path, "relay") as channel:
        stub = relay_pb2_grpc.RelayServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Drain(relay_pb2.DrainRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, "it reaches the caller as it came"
    assert spans(on)["/causeway.relay.v1.RelayService/Drain"]["error"].startswith("UNAVAILABLE: ")


def test_spans_are_linked(on: Path) -> None:
    assert telemetry.enabled()
    with telemetry.span("outer", parent=PARENT, peer="edge-b") as outer:
        assert outer.traceparent.startswith(f"00-{'ab' * 16}-")
        assert outer.traceparent.endswith("-01")
        inner = telemetry.start_span("inner", count=2)
    far = telemetry.start_span("far", parent=inner.traceparent)
    far.end("broken: pipe")
    far.end()
    inner.end()
    fresh = telemetry.start_span("fresh")
    fresh.end()
    found = spans(on)
    assert found["outer"]["parent"] == "cd" * 8
    assert found["inner"]["parent"] == found["outer"]["span"]
    assert found["far"]["parent"] == found["inner"]["span"]
    assert found["far"]["error"] == "broken: pipe"
    assert {found[name]["trace"] for name in ("outer", "inner", "far")} == {"ab" * 16}
    assert found["fresh"]["parent"] == ""
    assert found["fresh"]["trace"] != "ab" * 16
    assert found["outer"]["attributes"] == {"peer": "edge-b"}
    assert found["outer"]["start"] <= found["outer"]["end"]


def test_an_exception_fails_the_span(on: Path) -> None:
    with pytest.raises(ValueError, match="no"), telemetry.span("x"):
        raise ValueError("no")
    assert spans(on)["x"]["error"] == "ValueError: no"


@pytest.mark.parametrize(
    "parent",
    ["x", "00-zz-11-01", f"00-{'zz' * 16}-{'11' * 8}-01", f"00-{'00' * 16}-{'11' * 8}-01", "-" * 55, PARENT[:-3]],
)
def test_a_bad_parent_starts_a_new_trace(on: Path, parent: str) -> None:
    telemetry.start_span("x", parent=parent).end()
    assert spans(on)["x"]["parent"] == ""


def test_an_unsampled_parent_is_not_recorded(on: Path) -> None:
    span = telemetry.start_span("x", parent=PARENT[:-2] + "00")
    assert span.traceparent.startswith(PARENT[:35])
    assert span.traceparent.endswith("-00")
    span.set(a=1)
    span.end()
    assert spans(on) == {}


def test_a_trace_file_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSEWAY_TRACE_FILE", "/nonexistent/trace")
    with pytest.raises(OSError, match="No such file"):
        telemetry.set_up("tunnel", "edge-a")
    assert not telemetry.enabled()
