"""Whether this node is a relay, and why: by configuration, or by what it has shown it can do.

Named in relayNodes it is a relay from the start if one of its addresses there is the host's own, as somebody has to be
the first; dials from other nodes may disprove that. An address that is not the host's own (a router's, in front of
it) has to be proven first: a machine behind a NAT that lets nobody in stays ordinary from the first moment. With
private addresses only it is a relay for its LAN, and says so: nobody outside can disprove that, or use it.
Not named it has to earn the role: proven by dials, up for a while, and fast enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from services.runtime.core.private import private

from .confidence import Reachability

MIN_UPTIME = 5.0
"""Seconds that an earned relay's service has run: what ends again and again is no relay."""
MIN_THROUGHPUT = 125_000
"""Bytes per second that an earned relay has sent to a vantage, 1 Mbit/s: less would hardly carry one call."""


@dataclass(frozen=True, slots=True)
class Condition:
    """As in Kubernetes. `reason`: one CamelCase word; `message`: one line for a person."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Role:
    """`configured`: named in relayNodes. `reason`: one line for a person. `capable`, `condition`: the
    RelayCapable condition, its value and its CamelCase reason. `reachable`: what other nodes found."""

    active: bool
    configured: bool
    reason: str
    capable: bool
    condition: str
    reachable: Condition = Condition("Reachable", False, "NotProbed", "no other node has dialled this one yet")

    @property
    def forced(self) -> bool:
        """By its own configuration, whatever others found."""
        return self.condition == "Forced"

    @property
    def conditions(self) -> list[Condition]:
        """For status, log and metrics."""
        return [Condition("RelayCapable", self.capable, self.condition, self.reason), self.reachable]


def unusable(address: str) -> str:
    """Why other nodes cannot dial `address` (an IP literal or a DNS name); empty: they may try."""
    try:
        ip = ip_address(address)
    except ValueError:
        return ""  # a DNS name
    if ip.is_unspecified or ip.is_multicast:
        return f"{address} cannot be dialled"
    return ""


def in_lan(address: str) -> bool:
    """Whether an address, if it is one and no DNS name, means the host in its own LAN only."""
    try:
        return private(ip_address(address))
    except ValueError:
        return False


def decide(
    mode: str,
    node_name: str,
    relay_nodes: Iterable[tuple[str, list[str]]],
    found: Reachability | None = None,
    *,
    uptime: float = 0.0,
    own: Callable[[str], bool] = lambda address: True,
) -> Role:
    """`mode`: "auto", "on" or "off"; `relay_nodes`: names with their advertised addresses (hosts); `uptime` in
    seconds; `own`: whether an address is one of the host's own, or may be (a DNS name)."""
    found = found or Reachability()
    reachable = _reachable(found, mode)
    named = [advertised for name, advertised in relay_nodes if name == node_name]
    if mode == "off":
        return Role(False, bool(named), "modules.edgeRelay.mode is off", False, "Disabled", reachable)
    if mode == "on":
        return Role(True, bool(named), "modules.edgeRelay.mode is on", True, "Forced", reachable)
    if named:
        active, condition, why = _named(node_name, [it for addresses in named for it in addresses], found, own)
    else:
        active, condition, why = _earned(node_name, found, uptime)
    return Role(active, bool(named), why, active, condition, reachable)


def _named(name: str, addresses: list[str], found: Reachability, own: Callable[[str], bool]) -> tuple[bool, str, str]:
    """(active, condition, reason)."""
    stays = f"{name} is named in relayNodes but stays ordinary"
    problems = [problem for problem in map(unusable, addresses) if problem]
    if len(problems) == len(addresses):
        why = "; ".join(problems) or "its advertiseAddress is empty"
        return False, "NoUsableAddress", f"{stays}: {why}; give an address that other nodes can dial"
    if found.up():
        return True, "Proven", f"{name} is named in relayNodes, and {_proof(found)}"
    usable = [it for it in addresses if not unusable(it) and own(it) and found.verdict(it) is not False]
    if usable and all(map(in_lan, usable)):
        beyond = f" ({_disproof(found)})" if found.down() else ""
        return (
            True,
            "LanOnly",
            f"{name} is named in relayNodes, for its LAN only: {', '.join(usable)} is private{beyond}",
        )
    if usable:
        return True, "Configured", f"{name} is named in relayNodes"
    if found.down():
        return False, "Unreachable", f"{stays}: {_disproof(found)}"
    return (
        False,
        "Unproven",
        f"{stays}: {', '.join(addresses)} is no address of this host, and no other node has got through to it yet",
    )


def _earned(name: str, found: Reachability, uptime: float) -> tuple[bool, str, str]:
    """(active, condition, reason)."""
    ordinary = f"{name} is not named in relayNodes and mode is auto"
    if not found.up():
        if found.down():
            return False, "Unreachable", f"{ordinary}: {_disproof(found)}"
        return False, "Unproven", f"{ordinary}: not enough other nodes have dialled it back yet"
    if uptime < MIN_UPTIME:
        return False, "TooYoung", f"{_proof(found)}, but it has run for {uptime:.0f} s, expected {MIN_UPTIME:.0f}"
    if found.throughput < MIN_THROUGHPUT:
        speed = f"{found.throughput / 1000:.0f} kB/s, expected {MIN_THROUGHPUT / 1000:.0f}"
        return False, "TooSlow", f"{_proof(found)}, but it sent them {speed}"
    return True, "Proven", f"{_proof(found)} at {found.throughput / 1e6:.1f} MB/s"


def _reachable(found: Reachability, mode: str) -> Condition:
    if mode == "off":
        return Condition("Reachable", False, "NotProbed", "nobody is asked while modules.edgeRelay.mode is off")
    if found.up():
        return Condition("Reachable", True, "DialledBack", _proof(found))
    if found.down():
        return Condition("Reachable", False, "Unreachable", _disproof(found))
    return Condition("Reachable", False, "NotProbed", "not enough other nodes have dialled this one back yet")


def _proof(found: Reachability) -> str:
    return "; ".join(
        f"{', '.join(window.witnesses(True)) or 'others, not long ago,'} got through to {ip}"
        for ip, window in found.up().items()
    )


def _disproof(found: Reachability) -> str:
    return "; ".join(f"{ip} cannot be reached ({window.failure()})" for ip, window in found.down().items())
