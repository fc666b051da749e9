"""Measures the splice engine alone: python -m tests.relay.measure [GIGABYTES] [PAIRS]

A sender and a sink in processes of their own, the engine between them; prints rate and CPU of the engine's process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

from services.relay.engine import Engine

CHUNK = 256 * 1024


def blast(port: int, total: int) -> None:
    sock = socket.create_connection(("127.0.0.1", port))
    data = bytes(CHUNK)
    for _ in range(total // CHUNK):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)


def sink(port: int) -> None:
    sock = socket.create_connection(("127.0.0.1", port))
    buffer = memoryview(bytearray(CHUNK))
    while sock.recv_into(buffer):
        pass


def fork(work: object, *arguments: object) -> int:
    pid = os.fork()
    if not pid:
        try:
            work(*arguments)  # type: ignore[operator]
        finally:
            os._exit(0)
    return pid


async def main(total: int, pairs: int) -> list[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    children = []
    legs = []
    for _ in range(pairs):
        for work in ((blast, port, total), (sink, port)):
            children.append(fork(*work))
            legs.append(listener.accept()[0])
    loop = asyncio.get_running_loop()
    engine = Engine(loop, idle_timeout=60)
    done = [loop.create_future() for _ in range(pairs)]
    began, cpu = time.monotonic(), os.times()
    for n in range(pairs):
        engine.add(legs[2 * n], f"a{n}", legs[2 * n + 1], f"b{n}", done[n].set_result)
    reasons = await asyncio.gather(*done)
    took, after = time.monotonic() - began, os.times()
    spent = after.user + after.system - cpu.user - cpu.system
    gigabytes = engine.bytes_total / 1e9
    print(
        f"{reasons[0]}: {gigabytes:.2f} GB at {gigabytes / took:.2f} GB/s, {spent / gigabytes:.2f} CPU s/GB "
        f"(user {after.user - cpu.user:.2f} s), {engine.bytes_total / max(1, engine.splices_total) / 1024:.0f} KiB a splice"
    )
    engine.close()
    return children


if __name__ == "__main__":
    started = asyncio.run(
        main(int(float(sys.argv[1] if len(sys.argv) > 1 else 4) * 1e9), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    )
    for child in started:
        os.waitpid(child, 0)
