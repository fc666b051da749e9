"""The part of the configuration that the proxy reads: `modules.edgeProxy`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from services.runtime.section import Port, Section, node_pattern, target_pattern


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


def _some(nodes: list[str]) -> list[str]:
    if not nodes:
        raise ValueError('at least one node; leave nodes out, or write ["*"], for all of them')
    return nodes


class AllowedTarget(Section):
    """What may be dialled here, and for which nodes: names, in which * stands for any part. In the file also a plain
    text: the target, for all nodes."""

    target: Annotated[str, AfterValidator(target_pattern)]
    nodes: Annotated[list[Annotated[str, AfterValidator(node_pattern)]], AfterValidator(_some)] = Field(
        default=["*"], max_length=256
    )

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"target": target_pattern(value)}
        if not isinstance(value, dict | AllowedTarget):
            raise ValueError("cidr:port or host:port as text, or a mapping of target and nodes")
        return value


class EdgeProxy(Section):
    """What applications talk to. allowed_targets: what may be dialled here beyond the endpoints of services."""

    enable: bool = True
    load_balancer: LoadBalancer = LoadBalancer()
    socks5_proxy: Socks5Proxy = Field(default=Socks5Proxy(), alias="socks5Proxy")
    allowed_targets: list[AllowedTarget] = Field(default=[], max_length=4096)
