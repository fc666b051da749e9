"""The service at b: `python -m lab.matrix.backend ADDRESS PORT` sends back what comes, over TCP and UDP.

Prints one line when it listens.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

PIECE = 256 << 10  # bytes read at once


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except ConnectionError:
        pass  # the client's side tells
    finally:
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def serve(address: str, port: int) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    transport, _ = await loop.create_datagram_endpoint(_Datagrams, local_addr=(address, port))
    async with await asyncio.start_server(_echo, address, port):
        print("listening", flush=True)
        await end.wait()
    transport.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
