"""Services as real processes: start, stop, fail, be looked at."""

import asyncio
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest

from protos import relay_pb2 as pb
from protos import relay_pb2_grpc as rpc
from services.runtime import dial
from services.runtime.metricsport import MAX_CONNECTIONS
from services.runtime.process import AGAIN
from tests.conftest import WriteConfig

pytestmark = pytest.mark.slow  # real processes: several a test

PROGRAM = [sys.executable, "-m", "tests.runtime.small_service", "--config"]


@asynccontextmanager
async def running(config: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, str(config), env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_with(process: asyncio.subprocess.Process, part: str) -> str:
    assert process.stderr is not None
    seen = []
    async with asyncio.timeout(30):
        while line := (await process.stderr.readline()).decode():
            seen.append(line)
            if part in line:
                return line
    raise AssertionError(f"{part!r} was never said, but: {seen}")


def ends(config: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [*PROGRAM, str(config)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


async def test_serves_and_stops_on_sigterm(node_config: WriteConfig) -> None:
    config = node_config("edge-a")
    run_dir = config.parent / "run"
    async with running(config) as process:
        line = await line_with(process, "ready")
        assert line.split(" ", 1)[1] == f"info relay edge-a: ready file={run_dir}/relay.sock count=2\n"
        assert stat.S_IMODE((run_dir / "relay.sock").stat().st_mode) == 0o660
        async with dial.local_channel(run_dir, "relay") as channel:
            answer = await dial.call(rpc.RelayServiceStub(channel).GetStatus, pb.GetStatusRequest())
            assert answer.reason == str(process.pid)
        process.terminate()
        await line_with(process, "reason=SIGTERM")
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_second_signal_does_not_wait(node_config: WriteConfig) -> None:
    async with running(node_config("edge-a"), CW_TEST="stubborn") as process:
        await line_with(process, "ready")
        process.send_signal(signal.SIGINT)
        await line_with(process, "reason=SIGINT")
        assert process.returncode is None
        await asyncio.sleep(AGAIN + 0.1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 128 + signal.SIGTERM


async def test_two_signals_in_one_moment_are_one_request(node_config: WriteConfig) -> None:
    async with running(node_config("edge-a")) as process:
        await line_with(process, "ready")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_json_log(node_config: WriteConfig) -> None:
    async with running(node_config("edge-a"), CAUSEWAY_LOG="json") as process:
        said = json.loads(await line_with(process, "ready"))
        assert (said["service"], said["node"], said["level"], said["count"]) == ("relay", "edge-a", "info", 2)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("fail", 'error="[Errno 98] port 20007 is taken; set listenPort"'),
        ("bug", "error=\"KeyError: 'x'\""),
        ("group", 'error="ValueError: the core of the matter"'),
    ],
)
def test_a_failure_is_one_line(node_config: WriteConfig, what: str, said: str) -> None:
    config = node_config("edge-a")
    code, text = ends(config, CW_TEST=what)
    assert code == 1
    assert said in text
    assert len(text.splitlines()) == 1, text
    _, text = ends(config, CW_TEST=what, CAUSEWAY_LOG_LEVEL="debug")
    assert "Traceback" in text


def test_start_up_problems_are_lines(node_config: WriteConfig) -> None:
    assert ends(Path("/nonexistent.yaml")) == (
        2,
        "/nonexistent.yaml: no such file; expected a configuration file (all settings have defaults: an empty one will do)\n",
    )
    config = node_config("edge-a", psk=None)
    code, text = ends(config)
    assert (code, len(text.splitlines())) == (2, 1)
    assert "causeway ca psk" in text
    (config.parent / "psk").write_text("x" * 10 + "abcdefghijklmnopqrstuv")
    for key, value in (("CAUSEWAY_LOG", "xml"), ("CAUSEWAY_LOG_LEVEL", "loud"), ("OTEL_TRACES_EXPORTER", "pigeon")):
        code, text = ends(config, **{key: value})
        assert (code, text.count("\n"), value in text, "expected" in text) == (2, 1, True, True), text
    code, text = ends(config, CAUSEWAY_LOCAL_TCP="10.0.0.1:7")
    assert (code, "loopback" in text) == (1, True)
    config.write_text("nodeNam: x\n")
    assert "did you mean nodeName?" in ends(config)[1]


def test_keys_without_effect_are_said_once(node_config: WriteConfig) -> None:
    config = node_config("edge-a", kubeAPIConfig={"burst": 1})
    assert "no effect" not in ends(config, CW_TEST="fail")[1]
    _, text = ends(config, CW_TEST="fail", CW_NAME="discovery")
    assert text.count("kubeAPIConfig has no effect here") == 1


async def test_two_of_a_kind(node_config: WriteConfig) -> None:
    config = node_config("edge-a")
    async with running(config) as process:
        await line_with(process, "ready")
        code, text = await asyncio.to_thread(ends, config)
        assert (code, "another relay service is running" in text) == (1, True), text
        async with dial.local_channel(config.parent / "run", "relay") as channel:
            await dial.call(rpc.RelayServiceStub(channel).GetStatus, pb.GetStatusRequest())


async def test_a_killed_service_leaves_nothing_in_the_way(node_config: WriteConfig) -> None:
    config = node_config("edge-a")
    async with dial.local_channel(config.parent / "run", "relay") as channel:
        stub = rpc.RelayServiceStub(channel)
        for _ in range(3):
            async with running(config) as process:
                await line_with(process, "ready")
                # The same channel finds each new process by itself.
                answer = await dial.call(stub.GetStatus, pb.GetStatusRequest(), timeout=30)
                assert answer.reason == str(process.pid)
                process.kill()


async def test_health_and_reflection(node_config: WriteConfig) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    config = node_config("edge-a")
    async with running(config, CAUSEWAY_DEBUG_CHANNELZ="1") as process:
        await line_with(process, "ready")
        async with dial.local_channel(config.parent / "run", "relay") as channel:
            health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            for name in ("", "causeway.relay.v1.RelayService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call]
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            names = [
                service.name
                async for answer in stub.ServerReflectionInfo(asked, timeout=20)
                for service in answer.list_services_response.service
            ]
            assert "causeway.relay.v1.RelayService" in names
            assert "grpc.health.v1.Health" in names
            assert "grpc.channelz.v1.Channelz" in names


async def test_local_tcp(node_config: WriteConfig, loopback_ip: Callable[[], str]) -> None:
    place = f"{loopback_ip()}:20999"
    async with running(node_config("edge-a"), CAUSEWAY_LOCAL_TCP=place) as process:
        await line_with(process, "ready")
        async with grpc.aio.insecure_channel(place) as channel:
            answer = await dial.call(rpc.RelayServiceStub(channel).GetStatus, pb.GetStatusRequest())
            assert answer.node_name == "edge-a"


async def test_silent_connections_do_not_keep_metrics_from_being_read(
    node_config: WriteConfig, loopback_ip: Callable[[], str]
) -> None:
    ip = loopback_ip()
    async with running(node_config("edge-a", metrics={"listenAddress": ip, "basePort": 9100})) as process:
        await line_with(process, "ready")
        silent = [await asyncio.open_connection(ip, 9102) for _ in range(4 * MAX_CONNECTIONS)]
        for _, writer in silent[::2]:
            writer.write(b"GET /metrics HTTP/1.1\r\nX: ")

        def scrape() -> str:
            with urllib.request.urlopen(f"http://{ip}:9102/metrics", timeout=30) as answer:
                return str(answer.read().decode())

        for _ in range(3):
            assert "process_open_fds" in await asyncio.to_thread(scrape)
        threads = os.listdir(f"/proc/{process.pid}/task")
        assert len(threads) < MAX_CONNECTIONS, "no thread for each connection"
        pushed_out = silent[: 3 * MAX_CONNECTIONS]
        await asyncio.wait_for(asyncio.gather(*(end_of(reader) for reader, _ in pushed_out)), 60)
        for _, writer in silent:
            writer.close()


async def end_of(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        assert await reader.read() == b""


async def test_metrics(node_config: WriteConfig, loopback_ip: Callable[[], str]) -> None:
    ip = loopback_ip()
    config = node_config("edge-a", metrics={"listenAddress": ip, "basePort": 9100})
    async with running(config) as process:
        await line_with(process, "ready")

        def fetch() -> str:
            with urllib.request.urlopen(f"http://{ip}:9102/metrics", timeout=20) as answer:
                return str(answer.read().decode())

        assert "process_open_fds" in await asyncio.to_thread(fetch)
        (config.parent / "other.yaml").write_text(config.read_text() + "runDir: other\n")
        code, text = await asyncio.to_thread(ends, config.parent / "other.yaml")
        assert (code, "metrics cannot be served" in text, "metrics.basePort" in text) == (1, True, True), text


async def test_descriptor_limit_is_raised(node_config: WriteConfig) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(256, soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        async with running(node_config("edge-a")) as process:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await line_with(process, "ready")
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == min(hard, 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_certificates_renew_while_running(node_config: WriteConfig) -> None:
    config = node_config("edge-a", modules={"edgeTunnel": {"psk": {"certificateLifetimeSeconds": 3}}})
    async with running(config) as process:
        await line_with(process, "ready")
        for _ in range(2):
            await line_with(process, "credentials renewed")


async def test_traces_are_exported_as_the_standard_variables_say(
    node_config: WriteConfig, loopback_ip: Callable[[], str]
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        received.put_nowait(head.split()[1].encode() + b"\n" + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    config = node_config("edge-a")
    async with await asyncio.start_server(collect, loopback_ip(), 0) as collector:
        ip, port = collector.sockets[0].getsockname()
        async with running(config, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{ip}:{port}") as process:
            await line_with(process, "ready")
            async with dial.local_channel(config.parent / "run", "relay") as channel:
                await dial.call(rpc.RelayServiceStub(channel).Drain, pb.DrainRequest())
            process.terminate()
            path, _, body = (await asyncio.wait_for(received.get(), 30)).partition(b"\n")
            assert await asyncio.wait_for(process.wait(), 30) == 0
    assert path == b"/v1/traces"
    request = ExportTraceServiceRequest.FromString(body)
    names = {span.name for part in request.resource_spans for scope in part.scope_spans for span in scope.spans}
    assert "work" in names


# Errors and traces across processes


async def test_errors_carry_their_reason(node_config: WriteConfig) -> None:
    config = node_config("edge-a")
    async with running(config) as process:
        await line_with(process, "ready")
        async with dial.local_channel(config.parent / "run", "relay") as channel:
            request = pb.DrainRequest()
            request.deadline.seconds = 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await dial.call(rpc.RelayServiceStub(channel).Drain, request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.details() == "no room: try later"
            assert dial.reason(caught.value) == "TABLE_FULL"


def test_errors_of_others_have_no_reason() -> None:
    def failed(*metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
        trailing = grpc.aio.Metadata(*metadata)
        return grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), trailing, None, None)

    assert dial.reason(failed()) == ""
    assert dial.reason(failed(("grpc-status-details-bin", b"\xff\xff"))) == ""
    assert dial.reason(failed(("grpc-status-details-bin", b""))) == ""
    assert dial.reason(grpc.RpcError()) == ""


async def test_spans_reach_the_file(node_config: WriteConfig, short_path: Path) -> None:
    config, file = node_config("edge-a"), short_path / "trace.jsonl"
    async with running(config, CAUSEWAY_TRACE_FILE=str(file)) as process:
        await line_with(process, "ready")
        async with dial.local_channel(config.parent / "run", "relay") as channel:
            parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
            stub = rpc.RelayServiceStub(channel)
            await stub.Drain(pb.DrainRequest(), metadata=(("traceparent", parent),), timeout=20)
            await stub.GetStatus(pb.GetStatusRequest(), timeout=20)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    spans = {span["name"]: span for span in map(json.loads, file.read_text().splitlines())}
    assert set(spans) == {"/causeway.relay.v1.RelayService/Drain", "work"}, "what polls is not traced"
    call, work = spans["/causeway.relay.v1.RelayService/Drain"], spans["work"]
    assert (call["trace"], call["parent"]) == ("ab" * 16, "cd" * 8)
    assert (work["trace"], work["parent"]) == (call["trace"], call["span"])
    assert work["attributes"] == {"count": 3}
    assert work["events"] == [{"name": "half-way", "attributes": {"bytes": 5}}]
    assert (work["service"], work["node"], work["error"]) == ("causeway-relay", "edge-a", "")
