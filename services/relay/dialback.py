"""One connection back to a client: connect, say the token, hang up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

from .core.messages import Outcome

MAGIC = b"CWP1"
TOKEN_LENGTH = 16
TIMEOUT = 2.0
"""Seconds for the connection: one repetition of the SYN (after 1 s) fits."""
LINGER = 0.5
"""Seconds for the client to hang up first: it then has read the token."""


async def dial(ip: str, port: int, token: bytes, *, source: str) -> Outcome:
    """How it went. `source`: local IP, empty: any."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP) as sock:
        try:
            if source and (":" in source) == (family == socket.AF_INET6):
                sock.bind((source, 0))
            async with asyncio.timeout(TIMEOUT):
                await loop.sock_connect(sock, (ip, port))
                await loop.sock_sendall(sock, MAGIC + token)
        except TimeoutError:
            return Outcome.SILENCE
        except OSError as error:
            return _outcome(error)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER):
                await loop.sock_recv(sock, 1)
        return Outcome.CONNECTED


def _outcome(error: OSError) -> Outcome:
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
        return Outcome.RESET
    return Outcome.SILENCE if error.errno == errno.ETIMEDOUT else Outcome.UNREACHABLE
