"""How a connection becomes one more link of a session: JOIN from the side that dialled, JOINED from the other.

Who dialled says what kind of link it is, since only he knows: a connection from outside may be a punched one, or one that
was dialled in the ordinary way while a hole was being punched. Whether it came through a relay everybody knows.
"""

import asyncio
import socket
import time
from collections.abc import Mapping

from services.tunnel import dialling, handshake
from services.tunnel.config import HANDSHAKE_TIMEOUT
from services.tunnel.core.link import DIRECT, PUNCHED, RELAYED, Link
from services.tunnel.errors import LinkFailed
from services.tunnel.handshake import Joined
from services.tunnel.keys import SESSION_ID_SIZE
from services.tunnel.pairing import Pairing


def make_link(pairing: Pairing, nonces: tuple[bytes, bytes], kind: int, relay: str, remote: str) -> Link:
    """A link with the keys that follow from both nonces."""
    keys = pairing.keys
    return Link(keys.link_id(*nonces), kind, keys.link_cipher(*nonces), time.monotonic(), relay=relay, remote=remote)


async def join(pairing: Pairing, sock: socket.socket, kind: int, relay: str) -> Link | None:
    """Adds a dialled connection to a session. None when the peer does not know the session any more. LinkFailed; the
    socket is the caller's until there is a link."""
    joined = await handshake.join(sock, pairing.keys, kind, HANDSHAKE_TIMEOUT)
    if joined is None:
        return None
    if pairing.ended:
        raise LinkFailed("the session has ended meanwhile")
    link = make_link(pairing, joined.nonces, _kind(joined, relay), relay, dialling.name_of(sock.getpeername()))
    pairing.add_link(sock, link)
    return link


async def welcome(
    sock: socket.socket, first: bytes, relay: str, remote: str, pairings: Mapping[bytes, Pairing]
) -> None:
    """Answers a JOIN whose first byte is at hand: the connection becomes a link of the session that it names, if that is
    one of `pairings`, by id. LinkFailed, OSError or EOFError; then it is the caller's to close."""
    body = await handshake.read_join(sock, first)
    pairing = pairings.get(body[:SESSION_ID_SIZE])
    said = pairing.keys.check_join(body) if pairing is not None else None
    if pairing is None or said is None or pairing.ended:
        await asyncio.get_running_loop().sock_sendall(sock, handshake.unknown())
        sock.close()
        return
    joined = await handshake.answer(sock, pairing.keys, *said)
    pairing.add_link(sock, make_link(pairing, joined.nonces, _kind(joined, relay), relay, remote))


def _kind(joined: Joined, relay: str) -> int:
    return RELAYED if relay else PUNCHED if joined.kind == PUNCHED else DIRECT
