"""Loopback addresses that no test beside this one uses: one for each node, so that all keep the default ports. And ports, where
the address is not one's own."""

import random
import socket

from lab import place

# Of our own, for Hypothesis seeds the one of `random`, alike in every process of pytest-xdist.
_dice = random.Random()


def block() -> str:
    """The first three numbers."""
    return place.block(_dice)


def address() -> str:
    """One of 12 million."""
    return f"{block()}.{_dice.randint(2, 254)}"


def ports(count: int) -> list[int]:
    """Ports on which nobody listens, for TCP and UDP on all addresses: above those of nodes (20,00x), and below the ephemeral
    ones (ip_local_port_range), so that no connection takes one meanwhile."""
    found: set[int] = set()
    while len(found) < count:
        port = _dice.randrange(21_000, 32_000)
        try:
            with socket.socket(socket.AF_INET6) as tcp, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
                for sock in (tcp, udp):
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                    sock.bind(("::", port))
        except OSError:
            continue
        found.add(port)
    return list(found)


def port() -> int:
    """One such."""
    return ports(1)[0]
