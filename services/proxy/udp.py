"""Listening for UDP clients of one service port, and making each of them a connected socket of its own.

The first datagram of a client reaches the listener. A new socket on the same address, connected to that client, then
gets all further ones from the kernel, and belongs to whoever carries the flow. Between `bind` and `connect` the new
socket is unconnected too, and, being the youngest, would receive everybody's datagrams. For IPv4 it therefore is an
IPv6 socket on the mapped address, which Linux ranks below the listener until it is connected (compute_score in
net/ipv4/udp.c): all is where it belongs, in order. IPv6 knows no such rank; so after `connect` both queues are
read empty, and what they hold is dispatched by its source: to this flow, or to the clients that come next.

A listener on all addresses (0.0.0.0, ::) learns from the kernel which of them each datagram came to, and answers from
there: the flow's socket is on that very address. The kernel looks for sockets on the address before those on all, so
here, too, a flow's socket receives everybody's datagrams for a moment.

The carrier ends idle flows. The next datagram of that client then reaches the listener again: no state is kept here.

SO_REUSEADDR lets the sockets of flows share the address, and would let any other process take it over too. The kernel
asks for the flag on both sides at the time of `bind`, so the listener has it set only while one of ours binds.
"""

import asyncio
import errno
import socket
from collections import Counter
from logging import Logger
from typing import Any

from services.proxy import errors, pktinfo
from services.proxy.core.catalog import Spot
from services.proxy.departure import Departure
from services.proxy.route import Route

BURST = 64  # new flows a turn of the loop
PAUSE = 0.2  # s without new flows after descriptors or memory ran out
MAX_CLIENTS = 1024  # that wait for their socket
MAX_CLIENT_DATAGRAMS = 256
MAX_CLIENT_BYTES = 60_000  # early datagrams of one flow; with its header they fit in one Attach (64 KiB)
MAX_BYTES = 4 << 20  # early datagrams of all clients
MAX_RECENT = 4096
RECENT = 0.05  # s; a datagram that was on its way through the kernel during `connect` is here by then
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SKB = 256  # bytes of receive buffer that the smallest queued datagram is charged, at least (a bare struct sk_buff)

_MAPPED = "::ffff:"  # + an IPv4 address: RFC 4291, 2.5.5.2

_scratch = memoryview(bytearray(65536))

Address = tuple[Any, ...]  # (ip, port), for IPv6 with flow info and scope
Client = tuple[str, Address]  # the address of ours that it speaks to, and its own


class _Early:
    """What a client sent before it had a socket, in order."""

    __slots__ = ("datagrams", "size")

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.size = 0


class UdpListener:
    """Raises OSError when the address cannot be had."""

    error = ""
    intercepted = False

    def __init__(self, spot: Spot, route: Route, departure: Departure, dropped: Counter[str], log: Logger) -> None:
        self.route = route
        self._departure = departure
        self._dropped = dropped
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._family = socket.AF_INET6 if ":" in spot.ip else socket.AF_INET
        self._any = pktinfo.is_wildcard(spot.ip)
        self._mapped = self._family == socket.AF_INET and not self._any and socket.has_dualstack_ipv6()
        self._ip, self._port = spot.ip, spot.port
        self._waiting: dict[Client, _Early] = {}
        self._size = 0  # bytes in _waiting
        self._recent: dict[Client, float] = {}  # client → loop time of its connect, oldest first
        self._next: asyncio.Handle | None = None
        self._reading = False
        self._sock = self._bound(self._family, (spot.ip, spot.port))
        self._share(False)
        if self._any:
            pktinfo.ask(self._sock)
        # More than this cannot have been queued before a connect; whoever reads on would serve a flood for ever.
        self._depth = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // _SKB
        self._read(True)

    def close(self) -> None:
        """Listens no longer. Flows that have their socket live on."""
        self._read(False)
        if self._next is not None:
            self._next.cancel()
        self._sock.close()
        self._waiting.clear()

    @staticmethod
    def _bound(family: socket.AddressFamily, address: Address) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address[0].startswith(_MAPPED))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        return sock

    def _share(self, allow: bool) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, allow)

    def _read(self, on: bool) -> None:
        if on is not self._reading:
            self._reading = on
            if on:
                self._loop.add_reader(self._sock, self._readable)
            else:
                self._loop.remove_reader(self._sock)

    def _readable(self) -> None:
        self._drain(self._sock, self._ip)
        if self._next is None:
            self._open_flows()

    def _drain(self, sock: socket.socket, own: str) -> None:
        """Reads what `sock`, which is on address `own`, holds now and sorts it by client."""
        receive = _receive if pktinfo.is_wildcard(own) else _receive_here
        for _ in range(self._depth):
            try:
                size, source, to = receive(sock)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error: it says nothing about the datagrams behind it
                continue
            if sock is not self._sock and self._mapped:
                source = (source[0].removeprefix(_MAPPED), source[1])
            self._keep((to or own, source), size)

    def _keep(self, client: Client, size: int) -> None:
        early = self._waiting.get(client)
        if early is None:
            if self._recent and client in self._recent and not self._forget(client):
                self._dropped[errors.LATE] += 1
                return
            if not client[1][1]:  # connect(2) to port 0 would receive from every port
                return
            if not len(self.route):
                self._dropped[errors.NO_ENDPOINT] += 1
                return
            if len(self._waiting) >= MAX_CLIENTS:
                self._dropped[errors.OVERFLOW] += 1
                return
            early = self._waiting[client] = _Early()
        if early.size + size > MAX_CLIENT_BYTES or len(early.datagrams) >= MAX_CLIENT_DATAGRAMS:
            self._dropped[errors.OVERSIZE] += 1
        elif self._size + size > MAX_BYTES:
            self._dropped[errors.OVERFLOW] += 1
        else:
            early.datagrams.append(bytes(_scratch[:size]))
            early.size += size
            self._size += size

    def _open_flows(self) -> None:
        self._next = None
        for _ in range(BURST):
            if not self._waiting:
                break
            client = next(iter(self._waiting))
            try:
                sock = self._connected(client)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return
                self._take(client)  # nothing can be sent to such an address
                continue
            self._drain(self._sock, self._ip)  # first what came before the new socket was there, …
            self._drain(sock, client[0])  # … then what came to it, for whomever
            self._recent.pop(client, None)
            self._recent[client] = self._loop.time()
            if len(self._recent) > MAX_RECENT:
                del self._recent[next(iter(self._recent))]
            self._departure.send(sock, client[1][:2], self.route, self._take(client))
        if self._waiting:
            self._next = self._loop.call_soon(self._open_flows)
        self._read(True)

    def _take(self, client: Client) -> list[bytes]:
        early = self._waiting.pop(client)
        self._size -= early.size
        return early.datagrams

    def _connected(self, client: Client) -> socket.socket:
        family, (ip, peer) = self._family, client
        if self._mapped:
            family, ip, peer = socket.AF_INET6, _MAPPED + ip, (_MAPPED + peer[0], peer[1])
        self._share(True)
        try:
            sock = self._bound(family, (ip, self._port, *peer[2:]))  # a link-local address has a scope
        finally:
            self._share(False)
        try:
            sock.connect(peer)
        except OSError:
            self._drain(sock, client[0])
            sock.close()
            raise
        return sock

    def _forget(self, client: Client) -> bool:
        """Whether the flow of `client` is old enough for a new one; forgets all that are."""
        now = self._loop.time()
        while self._recent:
            oldest = next(iter(self._recent))
            if now - self._recent[oldest] < RECENT:
                break
            del self._recent[oldest]
        return client not in self._recent

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory; the kernel's queue drops what is too much meanwhile."""
        self._log.warning(
            "cannot open a flow: %s; pausing %.1f s", error.strerror, PAUSE, extra={"target": self.route.label}
        )
        self._read(False)
        self._next = self._loop.call_later(PAUSE, self._open_flows)


def _receive_here(sock: socket.socket) -> tuple[int, Address, str]:
    """Size and source of the next datagram, which is in `_scratch` then."""
    size, source = sock.recvfrom_into(_scratch)
    return size, source, ""


def _receive(sock: socket.socket) -> tuple[int, Address, str]:
    """And the address it came to, of a socket that is on all addresses."""
    size, notes, _, source = sock.recvmsg_into([_scratch], pktinfo.ANCILLARY)
    return size, source, pktinfo.destination(notes)
