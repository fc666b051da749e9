"""Clients that nftables redirects to us: where did they want to go?

All TCP connections come to one listener, which asks the kernel for the original destination. UDP has no such question;
so every UDP address has a listener of its own.
"""

import socket
import struct
from collections.abc import Callable
from logging import Logger

from services.proxy.core.catalog import Spot
from services.proxy.core.ruleset import Target
from services.proxy.departure import Departure
from services.proxy.route import Route
from services.proxy.tcp import Acceptor
from services.runtime.sockets import reset

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST in netfilter_ipv6/ip6_tables.h is 80, too
_IPV4 = struct.Struct("!2xH4s8x")  # struct sockaddr_in: family, port, address
_IPV6 = struct.Struct("!2xH4x16s4x")  # struct sockaddr_in6: family, port, flow, address, scope


class CapturedListener(Acceptor):
    """TCP clients of all intercepted addresses of one IP version. Raises OSError when the port cannot be had."""

    def __init__(
        self,
        version: int,
        port: int,
        find: Callable[[Target], Route | None],
        departure: Departure,
        stray: Callable[[], None],
        log: Logger,
    ) -> None:
        """`find`: the route for an address and port. `stray`: called for each client that wants none of those."""
        self._find = find
        self._departure = departure
        self._stray = stray
        # The redirected come to the address of any interface.
        spot = Spot("tcp", "::" if version == 6 else "0.0.0.0", port)
        super().__init__(spot, "intercepted", self._send, log, lambda: departure.crowded)

    def _send(self, client: socket.socket, address: tuple[str, int]) -> None:
        wanted = original_destination(client)
        route = self._find(wanted) if wanted is not None else None
        if route is None:
            self._stray()
            reset(client)
        else:
            self._departure.send(client, address, route)


def original_destination(client: socket.socket) -> Target | None:
    """Where a redirected connection was going; its own local address, or None, when nobody redirected it."""
    try:
        if client.family == socket.AF_INET6:
            port, ip = _IPV6.unpack(client.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _IPV6.size))
        else:
            port, ip = _IPV4.unpack(client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _IPV4.size))
    except OSError:  # ENOENT: conntrack knows nothing of it
        return None
    return socket.inet_ntop(client.family, ip), port
