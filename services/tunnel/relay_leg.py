"""Our leg of a circuit, from its token to its first byte."""

import asyncio
import socket

from services.tunnel.errors import LinkFailed
from services.tunnel.peers import LegOffer

MAGIC = b"CWL1"
READY = b"\x01"


async def pair(sock: socket.socket, offer: LegOffer, relay: str) -> socket.socket:
    """Shows the token and waits for the other leg; returns the socket. LinkFailed when that does not come, and whatever
    happens the socket is closed then, by which the relay knows."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(offer.timeout):
            await loop.sock_sendall(sock, MAGIC + offer.token)
            if await loop.sock_recv(sock, 1) != READY:
                raise LinkFailed(f"relay {relay} closed the circuit before it was complete")
        return sock
    except (OSError, TimeoutError) as error:
        sock.close()
        raise LinkFailed(f"relay {relay}: the other leg did not come") from error
    except BaseException:
        sock.close()
        raise
