"""The proxy as a process: introspection, metrics, traces, SIGTERM, and not serving at all."""

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import proxy_pb2, proxy_pb2_grpc
from services.runtime import config
from tests import loopback
from tests.proxy.conftest import until
from tests.proxy.neighbours import Discovery, Tunnel, service

pytestmark = pytest.mark.slow  # real processes: several a test

LoopbackIp = Callable[[], str]


@asynccontextmanager
async def running(path: Path, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """A proxy process and a stub of its service; ends it by SIGTERM, and expects it to end well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.proxy", "--config", str(path), env=os.environ | environment
    )
    async with grpc.aio.insecure_channel(f"unix:{config.load(path).run_dir}/proxy.sock") as channel:
        try:
            yield process, channel
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(20):
                    await process.wait()
    assert process.returncode == 0


async def status(channel: Any) -> proxy_pb2.GetStatusResponse:
    stub: Any = proxy_pb2_grpc.ProxyServiceStub(channel)
    answer: proxy_pb2.GetStatusResponse = await stub.GetStatus(
        proxy_pb2.GetStatusRequest(), wait_for_ready=True, timeout=20
    )
    return answer


async def test_status_metrics_and_traces(node_config: Any, loopback_ip: LoopbackIp, tmp_path: Path) -> None:
    ip, port, spans = loopback_ip(), loopback.port(), tmp_path / "spans"
    # The metrics of the proxy are at +3.
    path = node_config("n", metrics={"basePort": port - 3})
    run_dir = config.load(path).run_dir
    run_dir.mkdir()
    tunnel, discovery = Tunnel(run_dir), Discovery(run_dir)  # type: ignore[abstract]
    await tunnel.start()
    await discovery.start()
    backend = socket.create_server((ip, 8080))
    discovery.put(service("web", ip, ("b", "10.0.0.1", 1)), service("own", "192.0.2.7", ("n", ip, 8080)))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running(path, CAUSEWAY_TRACE_FILE=str(spans)) as (_, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        for name in ("", "causeway.proxy.v1.ProxyService"):
            request = health_pb2.HealthCheckRequest(service=name)
            answer = await health.Check(request, wait_for_ready=True, timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        while len((await status(channel)).listeners) < 2:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
        await until(lambda: tunnel.listeners)
        client = socket.create_connection((ip, 80))
        outbound, taken = await tunnel.next()
        answered, sock = await tunnel.offer(f"{ip}:8080", traceparent=parent)
        assert sock is not None, answered
        refusal, _ = await tunnel.offer("10.0.0.1:22", traceparent=parent)
        assert refusal.message
        got = await status(channel)
        assert got.node_name == "n" and not got.warnings
        assert (got.accepted_total, got.dialled_total, dict(got.refused)) == (1, 1, {"denied": 1})
        own, web = got.listeners
        assert (own.service, own.address, own.network) == ("default/own:80", "192.0.2.7:80", "tcp")
        assert "not a local address" in own.error
        assert (web.service, web.address, web.endpoints, web.error) == ("default/web:80", f"{ip}:80", 1, "")
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode())
        for line in (
            'causeway_proxy_accepted_total{target="default/web"} 1.0',
            'causeway_proxy_dialled_total{target="default/own"} 1.0',
            'causeway_proxy_refused_total{direction="inbound",reason="denied",target=""} 1.0',
            "causeway_proxy_listeners 1.0",
            "causeway_proxy_waiting 0.0",
        ):
            assert line in text
        for one in (client, taken, sock, backend):
            one.close()
    found = {span["name"]: span for span in map(json.loads, spans.read_text().splitlines()) if not span["error"]}
    accept, dialled = found["proxy.accept"], found["proxy.dial"]
    assert outbound.traceparent.split("-")[1:3] == [accept["trace"], accept["span"]]  # what the tunnel continues
    assert (dialled["trace"], dialled["parent"]) == (parent.split("-")[1], parent.split("-")[2])
    assert any("not an endpoint" in json.loads(line)["error"] for line in spans.read_text().splitlines())
    await discovery.stop()
    await tunnel.stop()


async def test_a_proxy_that_is_switched_off_says_so(node_config: Any, loopback_ip: LoopbackIp) -> None:
    path = node_config("n", modules={"edgeProxy": {"enable": False}})
    run_dir = config.load(path).run_dir
    run_dir.mkdir()
    tunnel, discovery = Tunnel(run_dir), Discovery(run_dir)  # type: ignore[abstract]
    await tunnel.start()
    await discovery.start()
    discovery.put(service("web", loopback_ip(), ("b", "10.0.0.1", 1)))
    async with running(path) as (_, channel):
        got = await status(channel)
        await asyncio.sleep(0.5)
        assert not (await status(channel)).listeners
        assert got.warnings == ["edgeProxy.enable is false: no listener, and inbound streams are not served"]
        assert (tunnel.listeners, discovery.watches) == (0, 0)
    await discovery.stop()
    await tunnel.stop()


async def test_alone_it_waits_and_says_for_what(node_config: Any) -> None:
    port = loopback.port()
    proxy = {"socks5Proxy": {"enable": True, "listenPort": port}}
    async with running(node_config("n", modules={"edgeProxy": proxy})) as (_, channel):
        got = await status(channel)
        (socks5,) = got.listeners
        assert (socks5.service, socks5.address, socks5.network) == ("SOCKS5", f"127.0.0.1:{port}", "tcp")
        assert not any("socks5Proxy" in warning for warning in got.warnings)
        assert any("tunnel is away" in warning for warning in got.warnings)
        assert any("discovery has not answered" in warning for warning in got.warnings)
