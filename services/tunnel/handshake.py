"""How a fresh connection becomes a link: by a full handshake (a new session) or by a keyed hello (one more link).

The first byte decides: 0x16 is a TLS ClientHello, 2 (JOIN) a packet. In TLS both sides say hello, then leave
TLS at that agreed point; keys come from the exporter. A certificate or greeting that is not acceptable is
answered by `reject` inside TLS before the connection is closed, so both sides can say what is wrong.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass

from services.runtime.identity import Identity, Rejection
from services.runtime.tls import FramedTls, TlsError
from services.tunnel.core.packets import HEADER, HEADER_SIZE, JOIN, JOINED, UNKNOWN
from services.tunnel.errors import LinkFailed
from services.tunnel.keys import (
    EXPORTER_LABEL,
    JOIN_SIZE,
    JOINED_SIZE,
    MASTER_SIZE,
    SessionKeys,
    fresh_nonce,
)

VERSION = 1
REASONS = frozenset(
    [
        "bad-certificate",
        "bad-version",
        "certificate-expired",
        "certificate-not-yet-valid",
        "limit",
        "name-mismatch",
        "no-certificate",
        "revoked",
        "wrong-cluster",
        "wrong-psk",
    ]
)
"""Words in which a side says why it does not accept the other."""
TLS_CLIENT_HELLO = 0x16


@dataclass(frozen=True, slots=True)
class Greeting:
    """Hello of the dialler, welcome of the other: JSON inside TLS."""

    cluster: str
    node: str
    instance: str
    """Random id of this run of the tunnel: another one means that all earlier sessions are gone."""
    resume: str = ""
    """Hello: hex id of the session the dialler still has with this peer."""
    known: bool = False
    """Welcome: that session still exists here."""

    def encode(self) -> bytes:
        return json.dumps(
            {
                "version": VERSION,
                "cluster": self.cluster,
                "node": self.node,
                "instance": self.instance,
                "resume": self.resume,
                "known": self.known,
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Greeting":
        """Raises Rejection where the other side sent one, or speaks another version."""
        try:
            fields = json.loads(data)
            if "reject" in fields:
                reason = str(fields["reject"])
                raise Rejection(
                    reason if reason in REASONS else "other", " ".join(str(fields["message"])[:512].split())
                )
            if fields["version"] != VERSION:
                text = f"the peer speaks version {str(fields['version'])[:20]} of the session protocol, this node {VERSION}"
                raise Unacceptable("bad-version", text)
            cluster, node, instance, resume = (
                str(fields[key])[:253] for key in ("cluster", "node", "instance", "resume")
            )
            return cls(cluster, node, instance, resume, bool(fields["known"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LinkFailed("the peer's greeting is not readable") from error


@dataclass(slots=True)
class NewSession:
    """What a full handshake gives."""

    keys: SessionKeys
    greeting: Greeting
    peer: str
    head: bytes
    """Bytes read after the handshake: the first packets."""


class RejectedByPeer(LinkFailed):
    """The other side does not accept us."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(f"refused by the other side: {rejection.reason}: {rejection}")
        self.reason = rejection.reason


class PeerRejected(LinkFailed):
    """We do not accept the other side."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(f"{rejection.reason}: {rejection}")
        self.reason = rejection.reason


class Unacceptable(Rejection):
    """A greeting that we reject, or cannot accept now."""


async def _judge(tls: FramedTls, expected: str) -> str:
    """The peer's name; tells it why where it is not acceptable."""
    try:
        return tls.judge(expected)
    except Rejection as rejection:
        raise await _refuse(tls, rejection) from rejection


async def _refuse(tls: FramedTls, rejection: Rejection) -> PeerRejected:
    """Tells the other side why, and closes."""
    await tls.send(json.dumps({"reject": rejection.reason, "message": str(rejection)}).encode())
    await tls.close()
    return PeerRejected(rejection)


async def initiate(sock: socket.socket, identity: Identity, peer: str, hello: Greeting, timeout: float) -> NewSession:
    """Dialler's side of a full handshake. LinkFailed with one line; the socket is then closed."""
    tls: FramedTls | None = None
    try:
        async with asyncio.timeout(timeout):
            tls = await FramedTls.start(sock, identity, server=False, timeout=timeout)
            name = await _judge(tls, peer)
            await tls.send(hello.encode())
            try:
                welcome = Greeting.decode(await tls.receive())
            except Unacceptable as rejection:
                raise PeerRejected(rejection) from rejection
            keys = SessionKeys(tls.export(EXPORTER_LABEL, MASTER_SIZE), initiator=True)
            return NewSession(keys, welcome, name, tls.detach())
    except Rejection as rejection:
        if tls is not None:
            tls.abort()
        raise RejectedByPeer(rejection) from rejection
    except (OSError, EOFError, TlsError, TimeoutError, LinkFailed) as error:
        if tls is not None:
            tls.abort()
        raise (
            error if isinstance(error, LinkFailed) else LinkFailed(str(error) or "the handshake took too long")
        ) from error
    except BaseException:
        if tls is not None:
            tls.abort()
        raise


async def respond(
    sock: socket.socket, identity: Identity, head: bytes, welcome: Callable[[str, Greeting], Greeting], timeout: float
) -> NewSession:
    """The other side. `welcome(peer, hello)` makes our answer or raises Unacceptable. LinkFailed; the socket is then
    closed."""
    tls: FramedTls | None = None
    try:
        async with asyncio.timeout(timeout):
            tls = await FramedTls.start(sock, identity, server=True, head=head, timeout=timeout)
            name = await _judge(tls, "")
            try:
                hello = Greeting.decode(await tls.receive())
                if hello.cluster != identity.cluster or hello.node != name:
                    text = f"{name} of cluster {identity.cluster} greets as {hello.node} of cluster {hello.cluster}"
                    raise Unacceptable("name-mismatch", text)
                answer = welcome(name, hello)
            except Unacceptable as rejection:
                raise await _refuse(tls, rejection) from rejection
            await tls.send(answer.encode())
            keys = SessionKeys(tls.export(EXPORTER_LABEL, MASTER_SIZE), initiator=False)
            return NewSession(keys, hello, name, tls.detach())
    except Rejection as rejection:
        if tls is not None:
            tls.abort()
        raise RejectedByPeer(rejection) from rejection
    except (OSError, EOFError, TlsError, TimeoutError, LinkFailed) as error:
        if tls is not None:
            tls.abort()
        raise (
            error if isinstance(error, LinkFailed) else LinkFailed(str(error) or "the handshake took too long")
        ) from error
    except BaseException:
        if tls is not None:
            tls.abort()
        raise


@dataclass(frozen=True, slots=True)
class Joined:
    """What a keyed hello gives: the nonces of who is taken for the dialler, and of the other, and the kind of link."""

    nonces: tuple[bytes, bytes]
    kind: int


async def join(sock: socket.socket, keys: SessionKeys, kind: int, timeout: float) -> Joined | None:
    """Dialler's side of the keyed hello; None when the peer does not know the session. `kind`: of link.

    LinkFailed when the connection breaks. The socket stays open on None: a full handshake may follow on a new one.

    While a hole is punched the other end may say JOIN, too: it accepted an ordinary connection, heard nothing on it for a
    moment, and took it for the punched one (punching.SPEAKS_WITHIN). That end is the session's initiator, and yields.
    """
    loop = asyncio.get_running_loop()
    nonce = fresh_nonce()
    try:
        async with asyncio.timeout(timeout):
            await loop.sock_sendall(sock, HEADER.pack(JOIN, 0, 0, JOIN_SIZE, 0) + keys.join(kind, nonce))
            word, length = await _receive_header(sock)
            if word == JOIN and length == JOIN_SIZE:
                said = keys.check_join(await receive_exactly(sock, JOIN_SIZE))
                if said is None:
                    raise LinkFailed("the JOIN that came in place of an answer is not authentic")
                if keys.initiator:
                    return await answer(sock, keys, *said)
                word, length = await _receive_header(sock)
            if word == UNKNOWN:
                return None
            if word != JOINED or length != JOINED_SIZE:
                raise LinkFailed(f"the answer to JOIN is not readable (kind {word}, {length} bytes)")
            other = keys.check_joined(nonce, await receive_exactly(sock, JOINED_SIZE))
    except (OSError, TimeoutError, EOFError) as error:
        raise LinkFailed(str(error) or "the join took too long") from error
    if other is None:
        raise LinkFailed("the answer to JOIN is not authentic")
    return Joined((nonce, other), kind)


async def _receive_header(sock: socket.socket) -> tuple[int, int]:
    """Kind and length of the next packet."""
    kind, _, _, length, _ = HEADER.unpack(await receive_exactly(sock, HEADER_SIZE))
    return kind, length


async def answer(sock: socket.socket, keys: SessionKeys, kind: int, theirs: bytes) -> Joined:
    """The other side of the keyed hello, to a JOIN that said so. OSError."""
    ours = fresh_nonce()
    packet = HEADER.pack(JOINED, 0, 0, JOINED_SIZE, 0) + keys.joined(theirs, ours)
    await asyncio.get_running_loop().sock_sendall(sock, packet)
    return Joined((theirs, ours), kind)


async def read_join(sock: socket.socket, first: bytes) -> bytes:
    """Body of a JOIN whose first byte is at hand. LinkFailed when it is none."""
    header = first + await receive_exactly(sock, HEADER_SIZE - len(first))
    kind, _, _, length, _ = HEADER.unpack(header)
    if kind != JOIN or length != JOIN_SIZE:
        raise LinkFailed(f"neither TLS nor a JOIN packet (begins with {header.hex()})")
    return await receive_exactly(sock, JOIN_SIZE)


def unknown() -> bytes:
    """The answer to a JOIN for a session that is not here."""
    return HEADER.pack(UNKNOWN, 0, 0, 0, 0)


async def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes and none more. EOFError at the end."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        chunk = await loop.sock_recv(sock, size - len(data))
        if not chunk:
            raise EOFError("closed by the other end")
        data += chunk
    return data
