"""Where a node runs: in a simulated network, or beside others on the loopback interface.

Loopback places need no rights at all. Each has an IP of its own in 127.0.0.0/8. There are no NATs between
them: a node that must not be reached directly just does not listen for tunnels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lab.namespace import Namespace
from lab.network import Host
from lab.panel import Wire


@dataclass(frozen=True)
class Place:
    """A machine, as far as a node on it can tell."""

    name: str
    address: str
    """IP of the machine: what others dial if they can, and where backends on it may listen."""
    listen_address: str = ""
    """IP on which the node's public ports bind; empty: all interfaces."""
    listens: bool = True
    """Whether the tunnel listens."""
    namespace: Namespace | None = None
    wire: Wire | None = None
    """The link whose darkness cuts the machine off."""


def simulated(host: Host, wire: Wire | None = None, *, listens: bool = True) -> Place:
    """A host of a simulated network; `wire` is that of its router for a host in a LAN."""
    return Place(host.name, host.address, listens=listens, namespace=host.namespace, wire=wire or host.wire)


def block(dice: random.Random) -> str:
    """The first three numbers of loopback addresses, of 48,000 possible ones: others beside probably use none of them."""
    # 127.0 and its neighbours are popular; the rest of 127/8 is empty on ordinary machines.
    return f"127.{dice.randint(64, 250)}.{dice.randint(0, 255)}"


class Loopback:
    """Places on this machine's loopback interface, in a random /24 so that others can run beside."""

    def __init__(self, dice: random.Random) -> None:
        self._prefix = block(dice)
        self._last = 0

    def address(self) -> str:
        """An address that nobody else of this lab has."""
        self._last += 1
        if self._last > 254:
            raise ValueError("a loopback lab has room for 254 addresses")
        return f"{self._prefix}.{self._last}"

    def place(self, name: str, *, listens: bool = True) -> Place:
        """A machine."""
        address = self.address()
        return Place(name, address, listen_address=address, listens=listens)
