"""UDP through the SOCKS proxy (RFC 1928, 7): an association is one client, with a flow for each of its targets.

A client's datagrams carry the name of their target, so that its socket cannot be handed over as it is. A flow is a pair
of UDP sockets of this host, connected to each other: one goes its way as any client's does, at the other the names are
taken off and put on. Datagrams stay datagrams, and what does not fit in a buffer is dropped, as a network would.

Whoever carries a flow ends it when it is idle; the next datagram meets a closed port then (ECONNREFUSED), and gets a new
flow. An association ends with the TCP connection by which it was asked for, or with the proxy.
"""

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable
from logging import Logger

from services.proxy import errors
from services.proxy.core import socks
from services.proxy.core.catalog import join
from services.proxy.core.socks import Address, SocksError
from services.proxy.departure import Departure
from services.proxy.names import Names, NoRoute

MAX_ASSOCIATIONS = 256  # each holds two descriptors
MAX_FLOWS = 256  # targets of one association; then the one that was used longest ago makes room
MAX_FLOWS_IN_ALL = 2048  # each holds a descriptor here and one where it is carried
BURST = 64  # datagrams a turn, so that one busy client leaves room for the others
MAX_TOLD = 64  # refused targets of one association that are logged


class Associations:
    """All of one proxy."""

    def __init__(self, names: Names, departure: Departure, dropped: Counter[str], log: Logger) -> None:
        self.names = names
        self.departure = departure
        self.dropped = dropped
        self.log = log
        self.loop = asyncio.get_running_loop()
        self.flows = 0  # of all associations
        self.idle = 60.0  # s without a datagram until a flow ends, see `rest`
        self._open: set[Association] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def open(self, control: socket.socket, client: tuple[str, int], wanted: Address) -> tuple[str, int]:
        """An association for the client of `control`, which it owns from now on; the address for its datagrams.

        `wanted` is from where the client says that it will send. Raises OSError, and owns nothing then.
        """
        if len(self._open) >= MAX_ASSOCIATIONS:
            raise OSError(errno.EMFILE, f"{MAX_ASSOCIATIONS} associations are open already")
        association = Association(self, control, client, wanted, self._open.discard)
        self._open.add(association)
        if self._sweep is None:
            self._sweep = self.loop.call_later(self.idle / 4, self._expire)
        return association.address

    def rest(self, seconds: float) -> None:
        """Time without a datagram until a flow ends, for those that are open as well."""
        self.idle = seconds
        if self._sweep is not None:
            self._sweep.cancel()
            self._expire()

    def close(self) -> None:
        """Ends all."""
        if self._sweep is not None:
            self._sweep.cancel()
        for association in list(self._open):
            association.close()

    def _expire(self) -> None:
        now = self.loop.time()
        for association in self._open:
            association.expire(now)
        self._sweep = self.loop.call_later(self.idle / 4, self._expire) if self._open else None


class _Flow:
    """To one target; `near` is our end."""

    __slots__ = ("near", "target", "used_at")

    def __init__(self, target: Address, near: socket.socket) -> None:
        self.target = target
        self.near = near
        self.used_at = 0.0


class Association:
    """Of one client."""

    def __init__(
        self,
        owner: Associations,
        control: socket.socket,
        client: tuple[str, int],
        wanted: Address,
        ended: Callable[["Association"], None],
    ) -> None:
        """Raises OSError, and owns nothing then."""
        self._owner = owner
        self._loop = owner.loop
        self._control = control
        self._ended = ended
        self._ip, self._label = client[0], join(client[0], client[1])
        # Zeros: the client does not know yet. An address other than the one it comes from is one before some NAT's.
        self._port = wanted.port if wanted.host == self._ip else 0
        self._client: tuple[str, int] | None = None  # the source of its datagrams, as soon as it is known
        self._flows: dict[bytes, _Flow] = {}  # by the target as it was written; the one used longest ago first
        self._told: set[bytes] = set()
        ip, _, *scope = control.getsockname()  # of a link-local address: the link
        self._sock = socket.socket(control.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._sock.bind((ip, 0, *scope))
        except OSError:
            self._sock.close()
            raise
        self.address = (ip, int(self._sock.getsockname()[1]))
        """Where the client is to send its datagrams."""
        self._loop.add_reader(control, self._controlled)
        self._loop.add_reader(self._sock, self._outward)

    def expire(self, now: float) -> None:
        """Ends the flows that are idle."""
        for flow in [flow for flow in self._flows.values() if now - flow.used_at >= self._owner.idle]:
            self._drop(flow)

    def close(self) -> None:
        for sock in (self._control, self._sock):
            self._loop.remove_reader(sock)
            sock.close()
        for flow in list(self._flows.values()):
            self._drop(flow)
        self._ended(self)

    def _controlled(self) -> None:
        """The connection by which the client asked: it has nothing more to say, but its end."""
        try:
            if self._control.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    # ── from the client ──

    def _outward(self) -> None:
        for _ in range(BURST):
            try:
                datagram, source = self._sock.recvfrom(65_535)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an earlier datagram
                continue
            if self._client is None and not self._meet(source):
                continue
            try:
                target, payload = socks.unwrap(datagram)
            except SocksError as error:
                self._discard(errors.MALFORMED, str(error))
                continue
            self._forward(target, payload)

    def _meet(self, source: tuple[str, int]) -> bool:
        """Whether the first datagram is the client's; from then on the kernel lets nobody else's in."""
        if source[0] != self._ip or (self._port and source[1] != self._port):
            return False
        self._client = source
        try:
            self._sock.connect(source)
        except OSError:
            return False
        return True

    def _forward(self, target: Address, payload: bytes) -> None:
        flow = self._flows.pop(target.wire, None)
        if flow is not None:
            self._flows[target.wire] = flow  # the latest
            if self._say(flow, payload):
                return
            self._drop(flow)  # it was ended by its carrier
        flow = self._make(target)
        if flow is not None:
            self._say(flow, payload)

    def _say(self, flow: _Flow, payload: bytes) -> bool:
        """False: nobody carries this flow any more."""
        flow.used_at = self._loop.time()
        try:
            flow.near.send(payload)
        except ConnectionRefusedError:
            return False
        except OSError:
            self._owner.dropped[errors.OVERFLOW] += 1
            return True
        # Over loopback the answer of a closed port is here when `send` returns: the datagram is not lost, then.
        return flow.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != errno.ECONNREFUSED

    def _make(self, target: Address) -> _Flow | None:
        owner = self._owner
        try:
            route = owner.names.route(target.host, target.port, "udp")
        except NoRoute as error:
            self._discard(error.reason, str(error), target)
            return None
        if len(self._flows) >= MAX_FLOWS:
            self._drop(next(iter(self._flows.values())))
        if owner.flows >= MAX_FLOWS_IN_ALL:
            self._discard(errors.OVERFLOW, f"{MAX_FLOWS_IN_ALL} flows are open already", target)
            return None
        try:
            near, far = _pair()
        except OSError as error:
            self._discard(errors.OVERFLOW, f"cannot open a flow: {error.strerror}", target)
            return None
        flow = self._flows[target.wire] = _Flow(target, near)
        owner.flows += 1
        self._loop.add_reader(near, self._inward, flow)
        assert self._client is not None
        owner.departure.send(far, (self._client[0], self._client[1]), route)
        return flow

    # ── to the client ──

    def _inward(self, flow: _Flow) -> None:
        for _ in range(BURST):
            try:
                payload = flow.near.recv(65_535)
            except BlockingIOError:
                return
            except OSError:
                self._drop(flow)
                return
            flow.used_at = self._loop.time()
            try:
                self._sock.send(socks.wrap(flow.target, payload))
            except OSError:  # its buffer is full, or nobody reads there now: UDP may lose
                self._owner.dropped[errors.OVERFLOW] += 1

    def _drop(self, flow: _Flow) -> None:
        if self._flows.pop(flow.target.wire, None) is not None:
            self._owner.flows -= 1
            self._loop.remove_reader(flow.near)
            flow.near.close()

    def _discard(self, reason: str, why: str, target: Address | None = None) -> None:
        """Nobody is told, as RFC 1928 has it; but the log is, once for each target."""
        self._owner.dropped[reason] += 1
        key = target.wire if target is not None else b""
        if key in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(key)
        self._owner.log.info(
            "dropping a SOCKS client's datagrams",
            extra={"address": self._label, "target": str(target or ""), "reason": reason, "error": why},
        )


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets that nobody but the other can reach. Not AF_UNIX: its queues may hold just ten datagrams
    (net.unix.max_dgram_qlen), which a burst overruns."""
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(2)]
    try:
        for sock in ends:
            sock.bind(("127.0.0.1", 0))
        for sock, other in (ends, ends[::-1]):
            sock.connect(other.getsockname())
        for sock in ends:
            _empty(sock)  # what some other process sent between bind and connect
    except OSError:
        for sock in ends:
            sock.close()
        raise
    return ends[0], ends[1]


def _empty(sock: socket.socket) -> None:
    for _ in range(BURST):
        try:
            sock.recv(1)
        except BlockingIOError:
            return
    raise OSError(errno.EBUSY, "somebody floods the port")
