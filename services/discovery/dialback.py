"""One dial for another node: connect, say its token, and read for a moment what it sends."""

from __future__ import annotations

import asyncio
import errno
import socket

from .core.vantage import DialOutcome

MAGIC = b"CWP1"
CONNECT = 3.5
"""Seconds for the connection: two repetitions of the SYN (after 1 and 3 s) fit."""
READ = 5.0
"""Seconds for what the other side sends."""
MAX_BYTES = 256 * 1024
"""Bytes that are read: what the other side measures itself by."""


async def dial(ip: str, port: int, token: bytes, *, source: str) -> DialOutcome | None:
    """How it went; None: this host has no way to such an address. `source`: local IP, empty: any."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        try:
            if source and (":" in source) == (family == socket.AF_INET6):
                sock.bind((source, 0))
            async with asyncio.timeout(CONNECT):
                await loop.sock_connect(sock, (ip, port))
                await loop.sock_sendall(sock, MAGIC + token)
        except TimeoutError:
            return DialOutcome.SILENCE
        except OSError as error:
            return _outcome(error)
        left = MAX_BYTES
        try:
            async with asyncio.timeout(READ):
                while left > 0 and (data := await loop.sock_recv(sock, 64 * 1024)):
                    left -= len(data)
        except (OSError, TimeoutError):
            pass  # it was reached, however that went on
        return DialOutcome.CONNECTED


def _outcome(error: OSError) -> DialOutcome | None:
    if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL, errno.EACCES):
        return None
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
        return DialOutcome.RESET
    return DialOutcome.SILENCE if error.errno == errno.ETIMEDOUT else DialOutcome.UNREACHABLE
