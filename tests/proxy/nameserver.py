"""A name server for tests: real sockets, answers as the test says."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Answers = Callable[[dns.message.Message], list[bytes]]  # what is sent to a question, in order; nothing: silence


def answering(*records: str, ttl: int = 300) -> Answers:
    """Answers every question with these addresses."""

    def answer(query: dns.message.Message) -> list[bytes]:
        return [addresses(query, *records, ttl=ttl).to_wire(max_size=65_535)]

    return answer


def addresses(query: dns.message.Message, *records: str, ttl: int = 300) -> dns.message.Message:
    response = dns.message.make_response(query, recursion_available=True)
    response.answer = [dns.rrset.from_text(query.question[0].name, ttl, "IN", "A", *records)]
    return response


def missing(minimum: int | None) -> Answers:
    """NXDOMAIN, to be kept for `minimum` seconds; None: without a word about that."""

    def answer(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.NXDOMAIN)
        if minimum is not None:
            response.authority = [dns.rrset.from_text("test.", 600, "IN", "SOA", f"a. b. 1 1 1 1 {minimum}")]
        return [response.to_wire()]

    return answer


def saying(rcode: dns.rcode.Rcode) -> Answers:
    def answer(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(rcode)
        return [response.to_wire()]

    return answer


def silent(query: dns.message.Message) -> list[bytes]:
    return []


class NameServer:
    """On ip:53, UDP and TCP. `asked`: the names, in order; over TCP with "tcp " before them."""

    def __init__(self, ip: str, answers: Answers) -> None:
        self.ip = ip
        self.answers = answers
        self.asked: list[str] = []
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "NameServer":
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), (self.ip, 53))
        self._server = await asyncio.start_server(self._connected, self.ip, 53)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._transport is not None and self._server is not None
        self._transport.close()
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        query = dns.message.from_wire(await reader.readexactly(size))
        self.asked.append(f"tcp {query.question[0].name}")
        for wire in self.answers(query):
            writer.write(len(wire).to_bytes(2, "big") + wire)
        await writer.drain()
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def datagram_received(self, data: bytes, address: Any) -> None:
        query = dns.message.from_wire(data)
        self._server.asked.append(str(query.question[0].name))
        for wire in self._server.answers(query):
            self._transport.sendto(cut(query, wire), address)


def cut(query: dns.message.Message, wire: bytes) -> bytes:
    """Truncated where it does not fit into a datagram."""
    if len(wire) <= 1232:
        return wire
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return response.to_wire()
