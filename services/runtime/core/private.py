"""Addresses that many networks use, each for other machines."""

from __future__ import annotations

import ipaddress

_NETWORKS = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
"""RFC 1918, 6598, 4193. (`is_private` of ipaddress also counts networks for documentation, which laboratories use as
public ones.)"""


def private(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """It means another machine in another network."""
    return any(ip in network for network in _NETWORKS)
