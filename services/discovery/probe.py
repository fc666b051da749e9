"""Who answers at an address, by a TLS handshake of our own.

gRPC has to be told whom to expect. A first contact is known by its address only; a handshake that *we* judge tells
its name, or why it is refused.
"""

from __future__ import annotations

import asyncio
import os
import socket

from services.runtime.identity import Identity, Rejection

from .core.contacts import Endpoint

# Seconds for connecting and shaking hands.
TIMEOUT = 3.0


class Unreachable(Exception):
    """A discovery service did not answer, or is not who it should be; one line that says which."""


async def identify(endpoint: Endpoint, identity: Identity) -> str:
    """The name of the node at an endpoint, an IP literal. Raises Unreachable with the reason when nobody acceptable is there."""
    # pyOpenSSL is not needed as long as everybody is who they should be.
    from services.runtime.tls import FramedTls, TlsError

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(TIMEOUT):
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                await loop.sock_connect(sock, (endpoint.host, endpoint.port))
            except BaseException:
                sock.close()
                raise
            tls = await FramedTls.start(sock, identity, server=False, timeout=TIMEOUT)
            try:
                name = tls.judge()
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
