"""The parts of the configuration that the proxy reads: `modules.edgeProxy` and `modules.edgeGateway`."""

from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from services.runtime.section import FilePath, Section, ip_or_empty, target_pattern


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


class EdgeProxy(Section):
    """What applications talk to. service_filter_mode: the services that are left out, those that have EdgeMesh's label
    service-proxy-name or those that lack it. allowed_targets: what may be dialled here beyond the endpoints of services.
    """

    enable: bool = True
    load_balancer: LoadBalancer = LoadBalancer()
    socks5_proxy: Socks5Proxy = Field(default=Socks5Proxy(), alias="socks5Proxy")
    service_filter_mode: Annotated[
        Literal["FilterIfLabelExists", "FilterIfLabelDoesNotExists"], BeforeValidator(_filter_mode)
    ] = "FilterIfLabelExists"
    allowed_targets: list[Annotated[str, AfterValidator(target_pattern)]] = Field(default=[], max_length=4096)


def _selection(text: str) -> str:
    for item in text.split(","):
        if item.strip() not in ("", "*"):
            ip_network(item.strip(), strict=False)
    return text


Selection = Annotated[str, Field(max_length=4096), AfterValidator(_selection)]


class EdgeGateway(Section):
    """The ingress gateway: Istio Gateway and VirtualService objects of the servicesFile, served on addresses of this host.

    nic: interfaces, comma-separated; "" or "*": all. include_ip, exclude_ip: of their addresses only those, and not
    those, as addresses or networks, comma-separated; "" or "*": all, and none. load_balancer: for clients that come
    through the gateway, where a service does not say; absent: as edgeProxy's. secrets_dir: holds a folder for each
    credentialName with tls.crt, tls.key and ca.crt, for those that no Secret of the servicesFile has.
    """

    enable: bool = False
    nic: str = Field(default="*", max_length=4096)
    include_ip: Selection = Field(default="*", alias="includeIP")
    exclude_ip: Selection = Field(default="*", alias="excludeIP")
    load_balancer: LoadBalancer | None = None
    secrets_dir: FilePath | None = None
