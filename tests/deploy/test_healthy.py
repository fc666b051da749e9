"""The probe of the containers against real gRPC servers, and against things that are none."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
Status = health_pb2.HealthCheckResponse
Serve = Callable[[int | None], Awaitable[None]]


async def probe(run_dir: Path, service: str = "relay") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-IS", DEPLOY / "healthy.py", service, str(run_dir), stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    servers: list[grpc.aio.Server] = []

    async def start(status: int | None) -> None:
        server = grpc.aio.server()
        if status is not None:
            servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stub knows no aio
            await servicer.set("", status)
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"unix:{tmp_path}/relay.sock")
        await server.start()
        servers.append(server)

    yield start
    for server in servers:
        await server.stop(None)


async def test_serving_is_zero_and_silent(serve: Serve, tmp_path: Path) -> None:
    await serve(Status.SERVING)
    assert await probe(tmp_path) == (0, "")


@pytest.mark.parametrize("status", [Status.NOT_SERVING, Status.UNKNOWN])
async def test_any_other_status_is_one(serve: Serve, tmp_path: Path, status: int) -> None:
    await serve(status)
    code, errors = await probe(tmp_path)
    assert code == 1
    assert errors == f"{tmp_path}/relay.sock: not serving\n"


async def test_a_server_without_health_service_is_one(serve: Serve, tmp_path: Path) -> None:
    await serve(None)
    code, errors = await probe(tmp_path)
    assert code == 1
    assert "without a health status" in errors


async def test_no_socket_is_one(tmp_path: Path) -> None:
    code, errors = await probe(tmp_path)
    assert code == 1
    assert errors == f"{tmp_path}/relay.sock: [Errno 2] No such file or directory\n"


async def test_a_socket_left_behind_is_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/relay.sock")
    code, errors = await probe(tmp_path)
    assert code == 1
    assert "refused" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [None, b"", os.urandom(4096), b"HTTP/1.1 200 OK\r\n\r\n", b"\0\0\0\0\0\0\0\0\0" * 100],
    ids=["silence", "end", "noise", "http", "endless"],
)
async def test_what_does_not_speak_grpc_is_one_within_its_time(tmp_path: Path, answer: bytes | None) -> None:
    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if answer is None:
            await reader.read()  # until the probe gives up
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(welcome, f"{tmp_path}/relay.sock")
    async with server:
        code, errors = await probe(tmp_path)
    assert code == 1
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


def test_usage_is_two() -> None:
    done = subprocess.run([sys.executable, DEPLOY / "healthy.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
