"""The proxy's settings, taken from the one schema."""

from dataclasses import dataclass
from pathlib import Path

from services.runtime.config import Config


@dataclass(frozen=True, slots=True)
class Settings:
    """What the proxy reads of the configuration."""

    node_name: str
    run_dir: Path  # holds tunnel.attach, and the sockets of the other services
    enable: bool  # False: no listener, and inbound streams are not served
    socks5: bool  # asked for; there is none yet
    allowed_targets: tuple[str, ...]  # beyond the endpoints on this node

    @classmethod
    def of(cls, config: Config) -> "Settings":
        proxy = config.modules.edge_proxy
        return cls(
            node_name=config.node_name,
            run_dir=config.run_dir,
            enable=proxy.enable,
            socks5=proxy.socks5_proxy.enable,
            allowed_targets=tuple(proxy.allowed_targets),
        )
