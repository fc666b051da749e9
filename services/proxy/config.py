"""The proxy's settings, taken from the one schema."""

from dataclasses import dataclass
from pathlib import Path

from services.proxy.core.traffic import Ring, Traffic, strategy_of
from services.runtime.config import Config


@dataclass(frozen=True, slots=True)
class Settings:
    """What the proxy reads of the configuration."""

    node_name: str
    run_dir: Path  # holds tunnel.attach, and the sockets of the other services
    enable: bool  # False: no listener, and inbound streams are not served
    socks5: bool  # asked for; there is none yet
    allowed_targets: tuple[str, ...]  # beyond the endpoints on this node
    udp_idle: float  # s without a datagram until a flow on this node ends
    traffic: Traffic  # of services that do not say otherwise

    @classmethod
    def of(cls, config: Config) -> "Settings":
        proxy = config.modules.edge_proxy
        return cls(
            node_name=config.node_name,
            run_dir=config.run_dir,
            enable=proxy.enable,
            socks5=proxy.socks5_proxy.enable,
            allowed_targets=tuple(proxy.allowed_targets),
            udp_idle=proxy.udp_idle_seconds,
            traffic=traffic_of(config),
        )


def traffic_of(config: Config) -> Traffic:
    """How clients are spread where the service does not say."""
    balancer = config.modules.edge_proxy.load_balancer
    ring = balancer.consistent_hash
    return Traffic(
        strategy=strategy_of(balancer.default_lb_strategy),
        ring=Ring(ring.partition_count, ring.replication_factor, ring.load),
    )
