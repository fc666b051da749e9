"""The proxy's settings, taken from the one schema."""

from dataclasses import dataclass
from pathlib import Path

from services.proxy.core.traffic import Ring, Traffic, strategy_of
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


@dataclass(frozen=True, slots=True)
class Settings:
    """What the proxy reads of the configuration."""

    node_name: str
    run_dir: Path  # holds tunnel.attach, and the sockets of the other services
    enable: bool  # False: no listener, and inbound streams are not served
    socks5: bool  # asked for; there is none yet
    allowed_targets: tuple[str, ...]  # beyond the endpoints on this node
    traffic: Traffic  # of services that do not say otherwise
    gateway: GatewaySettings

    @classmethod
    def of(cls, config: Config) -> "Settings":
        proxy = config.modules.edge_proxy
        return cls(
            node_name=config.node_name,
            run_dir=config.run_dir,
            enable=proxy.enable,
            socks5=proxy.socks5_proxy.enable,
            allowed_targets=tuple(proxy.allowed_targets),
            traffic=traffic_of(config),
            gateway=GatewaySettings.of(config),
        )


def traffic_of(config: Config) -> Traffic:
    """How clients are spread where the service does not say."""
    return _traffic(config.modules.edge_proxy.load_balancer)


def _traffic(balancer: LoadBalancer) -> Traffic:
    ring = balancer.consistent_hash
    return Traffic(
        strategy=strategy_of(balancer.default_lb_strategy),
        ring=Ring(ring.partition_count, ring.replication_factor, ring.load),
    )
