"""The relay's settings, taken from the one schema."""

from __future__ import annotations

from services.runtime import address
from services.runtime.config import Config

from .core import role
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


def decide_role(config: Config) -> Role:
    """Whether this node is a relay."""
    modules = config.modules
    named = [
        (node.node_name, [address.split(text)[0] for text in node.advertise_address])
        for node in modules.edge_tunnel.relay_nodes
    ]
    return role.decide(modules.edge_relay.mode, config.node_name, named)


def alternatives(config: Config) -> tuple[str, ...]:
    """Other relays to name to whom we refuse."""
    names = [node.node_name for node in config.modules.edge_tunnel.relay_nodes]
    return tuple(name for name in names if name != config.node_name)[:8]
