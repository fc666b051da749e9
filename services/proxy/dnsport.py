"""The sockets of the DNS on one address: datagrams, and connections that carry one question after the other."""

import asyncio
import errno
import socket
from collections import OrderedDict
from logging import Logger
from typing import Any

from services.proxy import pktinfo
from services.proxy.resolver import HEADER, MAX_QUERY, Resolver

BURST = 64  # datagrams a turn of the loop: a flood leaves room for everything else
MAX_CONNECTIONS = 256  # the one that was silent for longest gives way
IDLE = 10.0  # s between two questions on a connection (RFC 7766, 6.2.3: a few seconds)
SLOW = 5.0  # s for one question to arrive whole, and for one answer to be taken
UNREAD = 65_536  # bytes of answers that the kernel keeps for a client that does not read
ANSWER = 10.0  # s; the resolver gives up long before

_scratch = memoryview(bytearray(MAX_QUERY + 1))  # longer ones are cut, and too long for the resolver all the same


class DnsPort:
    """Raises OSError when the address cannot be had for both UDP and TCP."""

    def __init__(self, ip: str, port: int, resolver: Resolver, log: Logger) -> None:
        self._resolver = resolver
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._wild = pktinfo.is_wildcard(ip)
        self._connections: OrderedDict[asyncio.Task[None], asyncio.StreamWriter] = OrderedDict()  # longest silent first
        self._server: asyncio.Server | None = None
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._tcp = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            for sock in (self._udp, self._tcp):
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)  # connections inherit it
            if self._wild:
                pktinfo.ask(self._udp)
            self._udp.bind((ip, port))
            self._tcp.bind((ip, port))
            self._tcp.listen(MAX_CONNECTIONS)
        except OSError:
            self._udp.close()
            self._tcp.close()
            raise

    async def start(self) -> None:
        self._loop.add_reader(self._udp, self._datagrams)
        self._server = await asyncio.start_server(self._connected, sock=self._tcp, limit=MAX_QUERY)

    async def close(self) -> None:
        self._loop.remove_reader(self._udp)
        self._udp.close()
        if self._server is None:
            self._tcp.close()
        else:
            self._server.close()  # and the socket, which it reads
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── UDP ──

    def _datagrams(self) -> None:
        for _ in range(BURST):
            own = ""
            try:
                if self._wild:
                    size, messages, _, source = self._udp.recvmsg_into((_scratch,), pktinfo.ANCILLARY)
                    own = pktinfo.destination(messages)
                else:
                    size, source = self._udp.recvfrom_into(_scratch)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an answer: it says nothing about the questions behind it
                continue
            self._resolver.handle(
                bytes(_scratch[:size]),
                source[0],
                False,
                lambda wire, source=source, own=own: self._reply(wire, source, own),  # type: ignore[misc]
            )

    def _reply(self, wire: bytes, source: Any, own: str) -> None:
        try:
            if own:
                self._udp.sendmsg((wire,), (pktinfo.origin(own),), 0, source)
            else:
                self._udp.sendto(wire, source)
        except OSError as error:  # the client asks again; port 0 and the like never asked for an answer
            if error.errno not in (errno.EAGAIN, errno.EINVAL, errno.EPERM):
                self._log.debug("an answer was not sent", extra={"client": source[0], "error": str(error)})

    # ── TCP ──

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, peer = asyncio.current_task(), writer.get_extra_info("peername")
        assert task is not None
        if peer is None:  # it is gone already
            writer.transport.abort()
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._connections.popitem(last=False)[1].transport.abort()
        self._connections[task] = writer
        writer.transport.set_write_buffer_limits(high=0)  # drain waits until all is with the kernel
        try:
            while await self._question(reader, writer, str(peer[0])):
                if task in self._connections:
                    self._connections.move_to_end(task)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.pop(task, None)
            writer.transport.abort()

    async def _question(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ip: str) -> bool:
        """False: what came deserves no answer, nor the client another question."""
        async with asyncio.timeout(IDLE):
            first = await reader.readexactly(1)
        async with asyncio.timeout(SLOW):
            size = int.from_bytes(first + await reader.readexactly(1), "big")
            if not HEADER <= size <= MAX_QUERY:
                return False
            wire = await reader.readexactly(size)
        answered: asyncio.Future[bytes] = self._loop.create_future()

        def reply(answer: bytes) -> None:
            if not answered.done():
                answered.set_result(answer)

        self._resolver.handle(wire, ip, True, reply)
        async with asyncio.timeout(ANSWER):
            answer = await answered
        writer.write(len(answer).to_bytes(2, "big") + answer)
        async with asyncio.timeout(SLOW):
            await writer.drain()
        return True
