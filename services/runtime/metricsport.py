"""The port that Prometheus reads: a small HTTP server, on a loop and a thread of its own.

On the service's loop a collector that asks that loop would wait for itself. The server of prometheus_client takes a thread
for each connection, and has neither a bound nor a deadline: it is no server for an address that strangers reach.
"""

from __future__ import annotations

import asyncio
import socket
import threading

MAX_CONNECTIONS = 16
"""At a time. The oldest yields to the next: a scrape takes milliseconds, so it is not the honest one."""
DEADLINE = 10.0
"""Seconds for the request and the answer together: Prometheus' own default for a scrape."""
HEAD_MAX = 16384
"""Bytes of a request."""


def serve(listen: str, port: int) -> None:
    """Answers for as long as the process lives. `listen`: an IP, "" for all. OSError when it cannot listen there."""
    sock = _listener(listen, port)
    threading.Thread(target=lambda: asyncio.run(_serve(sock)), name="metrics", daemon=True).start()


def _listener(listen: str, port: int) -> socket.socket:
    if listen:
        family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        return socket.create_server((listen, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


async def _serve(sock: socket.socket) -> None:
    waiting: dict[asyncio.StreamWriter, None] = {}  # oldest first

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(waiting) >= MAX_CONNECTIONS:
            oldest = next(iter(waiting))
            del waiting[oldest]
            oldest.transport.abort()
        waiting[writer] = None
        try:
            async with asyncio.timeout(DEADLINE):
                writer.transport.set_write_buffer_limits(high=0)  # drain then waits until all is sent
                writer.write(_response(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
            writer.close()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            waiting.pop(writer, None)

    server = await asyncio.start_server(answer, sock=sock, limit=HEAD_MAX)
    await server.serve_forever()


def _response(head: bytes) -> bytes:
    from prometheus_client import REGISTRY
    from prometheus_client.exposition import choose_encoder

    request, *lines = head.decode("latin-1").split("\r\n")
    method = request.partition(" ")[0]
    if method not in ("GET", "HEAD"):
        return b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    encode, kind = choose_encoder(fields.get("accept", ""))
    body = encode(REGISTRY)
    told = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return told.encode() + (body if method == "GET" else b"")
