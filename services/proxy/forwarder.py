"""Asking other name servers: over UDP, and over TCP where the answer does not fit; one after the other until one answers."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence

import dns.exception
import dns.flags
import dns.message
import dns.rcode

from services.proxy.core.upstreams import Upstream, Upstreams

# A client asks again after 5 s (resolv.conf(5), timeout): by then it must have an answer, or SERVFAIL.
ATTEMPT = 1.5  # s for one server
DEADLINE = 4.5  # s for all of them
MAX_MESSAGE = 65_535

# What a server says when it will not or cannot answer: another may.
_UNWILLING = {dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.FORMERR}


class Forwarder:
    """`ask` for an answer. `servers`: whom to ask now, best first."""

    def __init__(self, servers: Callable[[], Sequence[Upstream]]) -> None:
        self._servers = servers
        self._upstreams = Upstreams()

    async def ask(self, query: dns.message.Message) -> dns.message.Message | None:
        """The first answer of any server. None: none answered in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE
        unwilling: dns.message.Message | None = None
        order = self._upstreams.order(self._servers(), time.monotonic())
        for one in (order * 2)[: max(len(order), 2)]:  # a single server gets a second chance: datagrams get lost
            left = min(ATTEMPT, deadline - loop.time())
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    answer = await _exchange(one, query)
            except (OSError, EOFError, dns.exception.DNSException, ValueError):  # TimeoutError is an OSError
                self._upstreams.failed(one, time.monotonic())
                continue
            if answer.rcode() in _UNWILLING:
                unwilling = answer
                continue
            self._upstreams.worked(one)
            return answer
        return unwilling


async def _exchange(one: Upstream, query: dns.message.Message) -> dns.message.Message:
    found = socket.getaddrinfo(one.ip, one.port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    family, target = found[0][0], found[0][4]
    wire = query.to_wire()
    loop = asyncio.get_running_loop()
    # Connected, so that the kernel takes answers from nobody else; with a port of its own, so that nobody can guess it.
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(target)
        await loop.sock_sendall(sock, wire)
        while True:
            answer = _answer(query, await loop.sock_recv(sock, MAX_MESSAGE))
            if answer is not None:
                break
    if not answer.flags & dns.flags.TC:
        return answer
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        await loop.sock_connect(sock, target)
        await loop.sock_sendall(sock, len(wire).to_bytes(2, "big") + wire)
        size = int.from_bytes(await _receive(sock, 2), "big")
        whole = _answer(query, await _receive(sock, size))
    if whole is None:
        raise ValueError("the answer over TCP is to another question")
    return whole


def _answer(query: dns.message.Message, wire: bytes) -> dns.message.Message | None:
    """None: it answers another question, as a forged one would."""
    try:
        answer = dns.message.from_wire(wire)
        return answer if query.is_response(answer) else None
    except (dns.exception.DNSException, ValueError):
        return None


async def _receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
