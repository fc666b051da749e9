"""The part of the configuration that the ingress gateway reads: `modules.edgeGateway`."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from services.runtime.proxy_section import LoadBalancer
from services.runtime.section import FilePath, Section


def _selection(text: str) -> str:
    for item in text.split(","):
        if item.strip() not in ("", "*"):
            try:
                ipaddress.ip_network(item.strip(), strict=False)
            except ValueError:
                raise ValueError("addresses and networks with commas between, or *") from None
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
