"""The proxy's settings, taken from the one schema."""

from dataclasses import dataclass
from pathlib import Path

from services.proxy.core.catalog import Spot
from services.proxy.core.traffic import Ring, Traffic, strategy_of
from services.runtime.config import Config

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
class Settings:
    """What the proxy reads of the configuration."""

    node_name: str
    run_dir: Path  # holds tunnel.attach, and the sockets of the other services
    enable: bool  # False: no listener, and inbound streams are not served
    socks5: SocksSettings
    allowed_targets: tuple[str, ...]  # beyond the endpoints on this node
    traffic: Traffic  # of services that do not say otherwise

    @classmethod
    def of(cls, config: Config) -> "Settings":
        proxy = config.modules.edge_proxy
        return cls(
            node_name=config.node_name,
            run_dir=config.run_dir,
            enable=proxy.enable,
            socks5=SocksSettings.of(config),
            allowed_targets=tuple(proxy.allowed_targets),
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
