"""The proxy's settings, taken from the one schema."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.proxy.core.catalog import Spot
from services.proxy.core.plan import Site
from services.proxy.core.policy import Allowed
from services.proxy.core.traffic import Ring, Traffic, strategy_of
from services.proxy.core.upstreams import Upstream
from services.runtime import address
from services.runtime.config import Config
from services.runtime.proxy_section import LoadBalancer


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """modules.edgeGateway. `traffic`: of clients that come through it, where the service does not say; None: as of all."""

    enable: bool
    nic: str
    include_ip: str
    exclude_ip: str
    traffic: Traffic | None
    secrets_dir: Path | None
    run_dir: Path

    @classmethod
    def of(cls, config: Config) -> "GatewaySettings":
        gateway = config.modules.edge_gateway
        return cls(
            enable=gateway.enable,
            nic=gateway.nic,
            include_ip=gateway.include_ip,
            exclude_ip=gateway.exclude_ip,
            traffic=_traffic(gateway.load_balancer) if gateway.load_balancer is not None else None,
            secrets_dir=gateway.secrets_dir,
            run_dir=config.run_dir,
        )


_SOCKS_SPOT = Spot("tcp", "127.0.0.1", 10800)


@dataclass(frozen=True, slots=True)
class SocksSettings:
    """Of the SOCKS5 proxy."""

    enable: bool = False
    spot: Spot = _SOCKS_SPOT
    users: tuple[tuple[str, str], ...] = ()  # name, password
    password_file: Path | None = None  # more of them

    @property
    def authenticates(self) -> bool:
        """Whether a client needs a password."""
        return bool(self.users) or self.password_file is not None

    @classmethod
    def of(cls, config: Config) -> "SocksSettings":
        socks = config.modules.edge_proxy.socks5_proxy
        return cls(
            enable=socks.enable,
            spot=Spot("tcp", socks.listen_address or "0.0.0.0", socks.listen_port),
            users=tuple((user.name, user.password) for user in socks.users),
            password_file=socks.password_file,
        )


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """What the DNS reads of the configuration."""

    enable: bool
    addresses: tuple[str, ...]  # to listen on; empty: those of `interface`
    interface: str
    port: int
    domain: str  # of the cluster
    upstreams: tuple[Upstream, ...]
    cluster_dns: bool  # the cluster's name server is asked, too
    cache_ttl: int  # s

    @classmethod
    def of(cls, config: Config) -> "DnsSettings":
        own = config.modules.edge_dns
        cache = own.cache_dns
        default = "" if own.listen_interface else config.listen_address or "127.0.0.1"
        return cls(
            enable=own.enable,
            addresses=tuple(filter(None, [own.listen_address or default])),
            interface=own.listen_interface,
            port=own.listen_port,
            domain=own.cluster_domain,
            upstreams=tuple(Upstream(*address.split(one)) for one in cache.upstream_servers) if cache.enable else (),
            cluster_dns=cache.enable and cache.auto_detect,
            cache_ttl=cache.cache_ttl,
        )

    def listens_as(self, other: "DnsSettings") -> bool:
        """Whether nothing need be opened or closed to change from one to the other."""
        mine, theirs = ((one.enable, one.addresses, one.interface, one.port, one.domain) for one in (self, other))
        return mine == theirs


@dataclass(frozen=True, slots=True)
class Settings:
    """What the proxy reads of the configuration."""

    node_name: str
    run_dir: Path  # holds tunnel.attach, and the sockets of the other services
    enable: bool  # False: no listener, and inbound streams are not served
    socks5: SocksSettings
    allowed_targets: tuple[Allowed, ...]  # beyond the endpoints on this node
    udp_idle: float  # s without a datagram until a flow on this node ends
    traffic: Traffic  # of services that do not say otherwise
    site: Site
    dns: DnsSettings
    gateway: GatewaySettings
    interception: Literal["auto", "on", "off"]
    listen_port: int  # to which intercepted TCP connections are redirected
    listen_interface: str  # whose address pods' traffic is redirected to; "": of the one it comes in by
    subnets: tuple[str, ...]  # addresses that belong to services alone

    @classmethod
    def of(cls, config: Config) -> "Settings":
        proxy = config.modules.edge_proxy
        return cls(
            node_name=config.node_name,
            run_dir=config.run_dir,
            enable=proxy.enable,
            socks5=SocksSettings.of(config),
            allowed_targets=targets_of(config),
            udp_idle=proxy.udp_idle_seconds,
            traffic=traffic_of(config),
            site=site_of(config),
            dns=DnsSettings.of(config),
            gateway=GatewaySettings.of(config),
            interception=proxy.interception.enable,
            listen_port=proxy.listen_port,
            listen_interface=proxy.listen_interface,
            subnets=tuple(proxy.sub_net.split(",")) if proxy.sub_net else (),
        )


def targets_of(config: Config) -> tuple[Allowed, ...]:
    """What may be dialled here beyond the endpoints on this node, and for whom."""
    return tuple(Allowed(entry.target, tuple(entry.nodes)) for entry in config.modules.edge_proxy.allowed_targets)


def traffic_of(config: Config) -> Traffic:
    """How clients are spread where the service does not say."""
    return _traffic(config.modules.edge_proxy.load_balancer)


def _traffic(balancer: LoadBalancer) -> Traffic:
    ring = balancer.consistent_hash
    return Traffic(
        strategy=strategy_of(balancer.default_lb_strategy),
        ring=Ring(ring.partition_count, ring.replication_factor, ring.load),
    )


def site_of(config: Config) -> Site:
    """What listeners depend on beside the services."""
    everywhere = ("0.0.0.0", "::") if socket.has_dualstack_ipv6() else ("0.0.0.0",)
    return Site(
        node=config.node_name,
        addresses=(config.listen_address,) if config.listen_address else everywhere,
        filter=config.modules.edge_proxy.service_filter_mode,
        zone=config.zone,
    )
