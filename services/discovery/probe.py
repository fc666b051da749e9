"""Who answers at an address, by a TLS handshake of our own.

gRPC has to be told whom to expect, and reports every failed handshake alike. A handshake that *we* judge tells
the name of a first contact that is known by address only, and why a node is refused: another PSK, another
cluster, an expired certificate, another name.
"""

from __future__ import annotations

import asyncio
import os
import socket

from services.runtime.identity import Identity, Rejection
from services.runtime.tls import FramedTls, TlsError

from .core.contacts import Endpoint

# Seconds for connecting and shaking hands.
TIMEOUT = 3.0


class Unreachable(Exception):
    """A discovery service did not answer, or is not who it should be; one line that says which."""


async def identify(endpoint: Endpoint, identity: Identity, expected_node: str = "") -> str:
    """The name of the node at an endpoint. Raises Unreachable with the reason when nobody acceptable is there."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(TIMEOUT):
            infos = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = infos[0]
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
            try:
                await loop.sock_connect(sock, address)
            except BaseException:
                sock.close()
                raise
            tls = await FramedTls.start(sock, identity, server=False, timeout=TIMEOUT)
            try:
                name = tls.judge(expected_node)
            finally:
                tls.abort()
    except Rejection as error:
        raise Unreachable(f"{endpoint}: {error.reason}: {error.message}") from error
    except TimeoutError:
        raise Unreachable(f"{endpoint}: no answer within {TIMEOUT:.0f} s") from None
    except (TlsError, EOFError) as error:
        raise Unreachable(f"{endpoint}: the TLS handshake failed: {error}") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise Unreachable(f"{endpoint}: {reason[:1].lower()}{reason[1:]}") from error
    return name
