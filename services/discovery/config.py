"""Discovery's settings, taken from the one schema."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from services.runtime import address
from services.runtime.config import Config

from .core.contacts import Endpoint


@dataclass(frozen=True, slots=True)
class StaticRelay:
    """One entry of relayNodes. `hosts`: IP literals and DNS names; `relay_port` 0: none was written."""

    node_name: str
    rank: int
    hosts: tuple[str, ...]
    relay_port: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What discovery needs to know."""

    node_name: str
    cluster: str
    listen_address: str
    listen_port: int
    tunnel_port: int
    state_dir: Path
    mdns: bool
    lookup: bool
    bootstrap: tuple[Endpoint, ...]
    services_file: Path | None
    advertise: tuple[str, ...]
    relays: tuple[StaticRelay, ...]

    @classmethod
    def of(cls, config: Config) -> Settings:
        """The part of the configuration that is discovery's."""
        discovery = config.modules.edge_discovery
        tunnel = config.modules.edge_tunnel
        relays = tuple(
            _static(node.node_name, rank, node.advertise_address) for rank, node in enumerate(tunnel.relay_nodes, 1)
        )
        mine = [relay.hosts for relay in relays if relay.node_name == config.node_name]
        advertise = [address.split(item)[0] for item in tunnel.advertise_address]
        return cls(
            node_name=config.node_name,
            cluster=config.cluster,
            listen_address=config.listen_address,
            listen_port=discovery.listen_port,
            tunnel_port=tunnel.listen_port,
            state_dir=config.state_dir,
            mdns=discovery.mdns.enable,
            lookup=discovery.dht.enable,
            bootstrap=tuple(Endpoint(*address.split(item, 20008)) for item in discovery.bootstrap),
            services_file=discovery.services_file,
            advertise=tuple(dict.fromkeys([*advertise, *(host for hosts in mine for host in hosts)])),
            relays=relays,
        )

    @property
    def loopback(self) -> bool:
        """Every public port is bound to a loopback address: nothing beyond this host is to be met."""
        return bool(self.listen_address) and ipaddress.ip_address(self.listen_address).is_loopback


def _static(node_name: str, rank: int, items: list[str]) -> StaticRelay:
    parsed = [address.split(item) for item in items]
    port = next((port for _, port in parsed if port), 0)
    return StaticRelay(node_name, rank, tuple(dict.fromkeys(host for host, _ in parsed)), port)
