"""The part of the configuration that the proxy reads: `modules.edgeProxy`."""

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from services.runtime.section import Port, Section, Switch, target_pattern


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


# Wider ranges than these are no cluster's: a slip would cut the machine off from half the world. Kubernetes itself allows
# /12 and /108 (--service-cluster-ip-range).
_SHORTEST_PREFIX = {4: 8, 6: 48}


def _networks(text: str) -> str:
    networks = [ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",")] if text.strip() else []
    for network in networks:
        if network.prefixlen < _SHORTEST_PREFIX[network.version]:
            raise ValueError(f"{network} is too wide: /{_SHORTEST_PREFIX[network.version]} or longer")
    return ",".join(map(str, networks))


class Interception(Section):
    """Services on addresses that the host has not, by nftables. auto: where it is possible; on: and complain where it is not."""

    enable: Switch = "auto"


class EdgeProxy(Section):
    """What applications talk to. allowed_targets: what may be dialled here beyond the endpoints of services.

    EdgeMesh's own keys of its interception: listen_port, to which TCP connections are redirected; listen_interface, whose
    address pods' traffic is redirected to (default: that of the interface it comes in by); sub_net, the cluster's range of
    service addresses, one or two with a comma between: what no service has of it is refused at once.
    """

    enable: bool = True
    load_balancer: LoadBalancer = LoadBalancer()
    socks5_proxy: Socks5Proxy = Field(default=Socks5Proxy(), alias="socks5Proxy")
    allowed_targets: list[Annotated[str, AfterValidator(target_pattern)]] = Field(default=[], max_length=4096)
    interception: Interception = Interception()
    listen_port: Annotated[int, Field(ge=1, le=65535)] = 20009
    listen_interface: str = Field(default="", max_length=15)  # IFNAMSIZ
    sub_net: Annotated[str, AfterValidator(_networks)] = ""
