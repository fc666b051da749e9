"""Whether this node is a relay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True, slots=True)
class Role:
    """`configured`: named in relayNodes. `reason`: one line for a person. `capable`, `condition`: the
    RelayCapable condition, its value and its CamelCase reason."""

    active: bool
    configured: bool
    reason: str
    capable: bool
    condition: str


def unusable(address: str) -> str:
    """Why other nodes cannot dial `address` (an IP literal or a DNS name); empty: they may try."""
    try:
        ip = ip_address(address)
    except ValueError:
        return ""  # a DNS name
    if ip.is_unspecified or ip.is_multicast:
        return f"{address} cannot be dialled"
    return ""


def decide(mode: str, node_name: str, relay_nodes: Iterable[tuple[str, list[str]]]) -> Role:
    """`mode`: "auto", "on" or "off"; `relay_nodes`: names with their advertised addresses (hosts)."""
    named = False
    addresses: list[str] = []
    for name, advertised in relay_nodes:
        if name == node_name:
            named = True
            addresses += advertised
    if mode == "off":
        return Role(False, named, "modules.edgeRelay.mode is off", False, "Disabled")
    if mode == "on":
        return Role(True, named, "modules.edgeRelay.mode is on", True, "Forced")
    if not named:
        return Role(False, False, f"{node_name} is not named in relayNodes and mode is auto", False, "NotConfigured")
    problems = [problem for problem in map(unusable, addresses) if problem]
    if len(problems) == len(addresses):
        why = "; ".join(problems) or "its advertiseAddress is empty"
        reason = (
            f"{node_name} is named in relayNodes but stays ordinary: {why}; give an address that other nodes can dial"
        )
        return Role(False, True, reason, False, "NoUsableAddress")
    return Role(True, True, f"{node_name} is named in relayNodes", True, "Configured")
