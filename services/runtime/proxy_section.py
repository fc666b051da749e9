"""The part of the configuration that the proxy reads: `modules.edgeProxy`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from services.runtime.section import Port, Section, target_pattern


class Socks5Proxy(Section):
    """SOCKS5 with node names as targets."""

    enable: bool = False
    listen_port: Port = 10800


class ConsistentHash(Section):
    """The ring of load balancing by source address."""

    partition_count: int = Field(default=1000, ge=1, le=65_536)
    replication_factor: int = Field(default=100, ge=1, le=1000)
    load: float = Field(default=1.25, ge=1.0, le=100.0)


class LoadBalancer(Section):
    """How clients are spread over the endpoints of services that do not say."""

    default_lb_strategy: Literal[
        "RoundRobin", "Random", "ConsistentHash", "LeastLatency", "LeastConnections", "P2C", "SourceIP"
    ] = Field(default="RoundRobin", alias="defaultLBStrategy")
    consistent_hash: ConsistentHash = ConsistentHash()


class EdgeProxy(Section):
    """What applications talk to. allowed_targets: what may be dialled here beyond the endpoints of services. udp_idle_seconds:
    without a datagram either way until a UDP flow ends; of the two nodes that carry a flow the shorter time counts."""

    enable: bool = True
    load_balancer: LoadBalancer = LoadBalancer()
    socks5_proxy: Socks5Proxy = Field(default=Socks5Proxy(), alias="socks5Proxy")
    udp_idle_seconds: float = Field(default=60.0, ge=1, le=86_400)
    allowed_targets: list[Annotated[str, AfterValidator(target_pattern)]] = Field(default=[], max_length=4096)
