"""UDP servers in processes of their own, so that one can be frozen: each answers every datagram with its port."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable

PROGRAM = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    _, client = sock.recvfrom(100)
    sock.sendto(sys.argv[2].encode(), client)
"""


@contextlib.asynccontextmanager
async def answering(address: str, ports: Iterable[int]) -> AsyncIterator[dict[int, asyncio.subprocess.Process]]:
    """One at each port, all ready; by port."""
    running: dict[int, asyncio.subprocess.Process] = {}
    try:
        for port in ports:
            running[port] = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, address, str(port), stdout=asyncio.subprocess.PIPE
            )
        for process in running.values():
            assert process.stdout is not None and await process.stdout.readline() == b"ready\n"
        yield running
    finally:
        for process in running.values():
            process.kill()
            await process.wait()
