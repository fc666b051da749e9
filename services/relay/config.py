"""The relay's settings, taken from the one schema."""

from __future__ import annotations

import socket

from services.runtime import address
from services.runtime.config import Config

from .core import role
from .core.confidence import Reachability
from .core.limits import Limits
from .core.role import Role


def limits(config: Config, descriptors: int) -> Limits:
    """Limits in force in a process that may open `descriptors` files."""
    given = config.modules.edge_relay.limits
    return Limits(
        max_reservations=given.max_reservations,
        max_circuits=given.max_circuits,
        max_circuits_per_peer=given.max_circuits_per_peer,
        max_bytes_per_second_per_peer=given.max_bytes_per_second_per_peer,
        idle_timeout=given.idle_timeout_seconds,
        max_half_open=given.max_half_open,
        max_half_open_per_source=max(1, given.max_half_open // 4),
        reservation_ttl=given.reservation_ttl_seconds,
    ).fit(descriptors)


def decide_role(config: Config, found: Reachability, uptime: float) -> Role:
    """Whether this node is a relay, after what others `found`; `uptime` in seconds."""
    modules = config.modules
    named = [
        (node.node_name, [address.split(text)[0] for text in node.advertise_address])
        for node in modules.edge_tunnel.relay_nodes
    ]
    return role.decide(modules.edge_relay.mode, config.node_name, named, found, uptime=uptime, own=_own)


def _own(host: str) -> bool:
    """Whether it is an address of this host. A DNS name may be one."""
    if not address.is_ip(host):
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:  # also of a host whose kernel has no IPv6
        return False
    return True


def alternatives(config: Config) -> tuple[str, ...]:
    """Other relays to name to whom we refuse."""
    names = [node.node_name for node in config.modules.edge_tunnel.relay_nodes]
    return tuple(name for name in names if name != config.node_name)[:8]
