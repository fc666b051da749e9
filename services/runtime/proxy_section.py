"""The part of the configuration that the proxy reads: `modules.edgeProxy`."""

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from services.runtime.section import FilePath, Section, Switch, ip_or_empty, node_pattern, target_pattern


def _countable(text: str) -> str:
    # RFC 1929 counts the bytes of both in one byte.
    if not 0 < len(text.encode()) <= 255:
        raise ValueError("1 to 255 bytes")
    return text


class Socks5User(Section):
    """Who may use the SOCKS5 proxy."""

    name: Annotated[str, AfterValidator(_countable)]
    password: Annotated[str, AfterValidator(_countable)]


class Socks5Proxy(Section):
    """SOCKS5 with names of nodes and services as targets. With users, or a password_file of lines "name:password" (read
    again when it changes), a client needs a password. listen_address "": all."""

    enable: bool = False
    listen_address: Annotated[str, AfterValidator(ip_or_empty)] = "127.0.0.1"
    listen_port: Annotated[int, Field(ge=1, le=65535)] = 10800
    users: list[Socks5User] = Field(default=[], max_length=256)
    password_file: FilePath | None = None


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


def _filter_mode(value: Any) -> Any:
    # EdgeMesh's constants end in "Mode", its values do not.
    return value.removesuffix("Mode") if isinstance(value, str) else value


# Wider ranges than these are no cluster's: a slip would cut the machine off from half the world. Kubernetes itself allows
# /12 and /108 (--service-cluster-ip-range).
_SHORTEST_PREFIX = {4: 8, 6: 48}


def _networks(text: str) -> str:
    try:
        networks = (
            [ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",")] if text.strip() else []
        )
    except ValueError:
        raise ValueError("networks with a comma between, as 10.96.0.0/12") from None
    for network in networks:
        if network.prefixlen < _SHORTEST_PREFIX[network.version]:
            raise ValueError(f"a narrower network than {network}: /{_SHORTEST_PREFIX[network.version]} or longer")
    return ",".join(map(str, networks))


class Interception(Section):
    """Services on addresses that the host has not, by nftables. auto: where it is possible; on: and complain where it is not."""

    enable: Switch = "auto"


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
    """What applications talk to. service_filter_mode: the services that are left out, those that have EdgeMesh's label
    service-proxy-name or those that lack it. allowed_targets: what may be dialled here beyond the endpoints of services.
    udp_idle_seconds: without a datagram either way until a UDP flow ends; of the two nodes that carry a flow the shorter
    time counts.

    EdgeMesh's own keys of its interception: listen_port, to which TCP connections are redirected; listen_interface, whose
    address pods' traffic is redirected to (default: that of the interface it comes in by); sub_net, the cluster's range of
    service addresses, one or two with a comma between: what no service has of it is refused at once.
    """

    enable: bool = True
    load_balancer: LoadBalancer = LoadBalancer()
    socks5_proxy: Socks5Proxy = Field(default=Socks5Proxy(), alias="socks5Proxy")
    service_filter_mode: Annotated[
        Literal["FilterIfLabelExists", "FilterIfLabelDoesNotExists"], BeforeValidator(_filter_mode)
    ] = "FilterIfLabelExists"
    allowed_targets: list[AllowedTarget] = Field(default=[], max_length=4096)
    interception: Interception = Interception()
    listen_port: Annotated[int, Field(ge=1, le=65535)] = 20009
    listen_interface: str = Field(default="", max_length=15)  # IFNAMSIZ
    sub_net: Annotated[str, AfterValidator(_networks)] = ""
    udp_idle_seconds: float = Field(default=60.0, ge=1, le=86_400)
