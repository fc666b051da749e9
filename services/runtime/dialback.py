"""One dial for another node: connect, say its token, and read for a moment what it sends."""

from __future__ import annotations

import asyncio
import errno
import socket
from enum import Enum, auto

from services.runtime.core.proof import MAGIC

_NO_WAY = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL, errno.EACCES}
_RESET = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}


class End(Enum):
    """How a dial ended. NO_WAY: this host has no way to such an address."""

    CONNECTED = auto()
    RESET = auto()
    SILENCE = auto()
    UNREACHABLE = auto()
    NO_WAY = auto()


async def dial(ip: str, port: int, token: bytes, *, source: str, connect: float, read: float, most: int) -> End:
    """`source`: local IP, empty: any. `connect`: seconds until the token is said. `read`: seconds for `most` bytes, or the
    end, of what the other side sends; once it was reached, all of that may fail."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP) as sock:
        try:
            if source and (":" in source) == (family == socket.AF_INET6):
                sock.bind((source, 0))
            async with asyncio.timeout(connect):
                await loop.sock_connect(sock, (ip, port))
                await loop.sock_sendall(sock, MAGIC + token)
        except TimeoutError:
            return End.SILENCE
        except OSError as error:
            return _end(error)
        try:
            async with asyncio.timeout(read):
                while most > 0 and (data := await loop.sock_recv(sock, min(most, 64 * 1024))):
                    most -= len(data)
        except (OSError, TimeoutError):
            pass
        return End.CONNECTED


def _end(error: OSError) -> End:
    if error.errno in _NO_WAY:
        return End.NO_WAY
    if error.errno in _RESET:
        return End.RESET
    return End.SILENCE if error.errno == errno.ETIMEDOUT else End.UNREACHABLE
