"""What this host sees of the network: its addresses and its ways out. Two of them compared tell what changed."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from services.tunnel.core.netlink import Way

CONTAINER = re.compile(r"docker|br-|cni|flannel|veth|virbr|podman|cali|vxlan\.|kube-|lxc|lxdbr|cilium")
"""Bridges and ends of container networks: they come and go with containers, and nobody outside this host is there."""
SETTLE = 0.1
"""Seconds from the first word of a change to a look: an interface that comes up says so in several messages."""
PAUSE_FIRST, PAUSE_MOST = 1.0, 10.0
"""Seconds between two changes that are acted upon, doubling while there is no rest. Each asks every link and dials
every relay that is away, so a route that flaps must not make us do it at its own pace."""
REST = 2.0
"""Without a change for so many times the last pause, the next is acted upon at once again: who roams from one network to
another every few seconds is no storm."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """A snapshot."""

    addresses: frozenset[str] = frozenset()
    """All addresses of this host."""
    met: frozenset[str] = frozenset()
    """Those under which somebody else may meet it."""
    ways: Mapping[str, Way] = field(default_factory=dict)
    """How the kernel would send now, by destination."""

    @classmethod
    def of(cls, addresses: Iterable[tuple[str, str]], running: Collection[str], ways: Mapping[str, Way]) -> "Outlook":
        """From pairs of interface's name and address, and the names of the interfaces that are up with a carrier."""
        pairs = list(addresses)
        met = frozenset(ip for name, ip in pairs if name in running and not CONTAINER.match(name) and _leaves_host(ip))
        return cls(frozenset(ip for _, ip in pairs), met, ways)

    def differs(self, before: "Outlook") -> bool:
        """Whether something changed that may make or break a path. A destination that one of both does not know
        says nothing."""
        return self.met != before.met or any(before.ways.get(to, way) != way for to, way in self.ways.items())

    def lost(self, before: "Outlook") -> frozenset[str]:
        """Addresses that this host had and has no more: the kernel does not tell their connections."""
        return before.addresses - self.addresses


class Pace:
    """When to look after word of a change came, and how often changes are acted upon."""

    def __init__(self) -> None:
        self._acted_at = float("-inf")
        self._pause = 0.0

    def wait(self, now: float) -> float:
        """Seconds from the word to the look."""
        if now - self._acted_at > REST * self._pause:
            self._pause = 0.0
        return max(SETTLE, self._acted_at + self._pause - now)

    def acted(self, now: float) -> None:
        """The look showed a change."""
        self._acted_at = now
        self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_MOST)


def _leaves_host(ip: str) -> bool:
    parsed = ip_address(ip)
    # A link-local IPv6 address comes with every interface that is up.
    return not (parsed.is_loopback or (parsed.version == 6 and parsed.is_link_local))
