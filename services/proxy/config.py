"""The proxy's settings, taken from the one schema."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    traffic: Traffic  # of services that do not say otherwise
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
            socks5=proxy.socks5_proxy.enable,
            allowed_targets=tuple(proxy.allowed_targets),
            traffic=traffic_of(config),
            interception=proxy.interception.enable,
            listen_port=proxy.listen_port,
            listen_interface=proxy.listen_interface,
            subnets=tuple(proxy.sub_net.split(",")) if proxy.sub_net else (),
        )


def traffic_of(config: Config) -> Traffic:
    """How clients are spread where the service does not say."""
    balancer = config.modules.edge_proxy.load_balancer
    ring = balancer.consistent_hash
    return Traffic(
        strategy=strategy_of(balancer.default_lb_strategy),
        ring=Ring(ring.partition_count, ring.replication_factor, ring.load),
    )
