"""The part of the configuration that the DNS reads: `modules.edgeDNS`."""

from typing import Annotated

from pydantic import AfterValidator, Field

from services.runtime import address
from services.runtime.section import Section, ip_or_empty


def _server(text: str) -> str:
    host, port = address.split(text, 53)
    if not address.is_ip(host):
        raise ValueError("the IP address of a name server, with :port where it is not 53 (IPv6 in brackets then)")
    return address.join(host, port)


def _domain(text: str) -> str:
    if not address.is_node_name(text):
        raise ValueError("a DNS name in lower case without the final dot, as cluster.local")
    return text


class CacheDns(Section):
    """Other name servers than those of /etc/resolv.conf. auto_detect: the cluster's own, where there is one.
    cache_ttl: seconds for which an answer is repeated at most (EdgeMesh's default); 0: no cache."""

    enable: bool = False
    auto_detect: bool = True
    upstream_servers: list[Annotated[str, AfterValidator(_server)]] = Field(default=[], max_length=16)
    cache_ttl: int = Field(default=30, ge=0, le=86_400, alias="cacheTTL")


class EdgeDns(Section):
    """Names of services, and everything else by way of other name servers. It is part of the proxy.

    listen_address: one IP; else the addresses of listen_interface, else the node's listenAddress, else 127.0.0.1.
    """

    enable: bool = False
    listen_address: Annotated[str, AfterValidator(ip_or_empty)] = ""
    listen_interface: str = Field(default="", max_length=15)  # IFNAMSIZ of linux/if.h, less the final zero
    listen_port: int = Field(default=53, ge=1, le=65_535)
    cluster_domain: Annotated[str, AfterValidator(_domain)] = "cluster.local"
    cache_dns: CacheDns = Field(default=CacheDns(), alias="cacheDNS")
