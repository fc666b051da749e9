"""The addresses on which a gateway listens, as EdgeMesh's `nic`, `includeIP` and `excludeIP` choose them."""

import ipaddress
from ipaddress import IPv4Network, IPv6Network

from services.proxy.interfaces import addresses

_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


def chosen(nic: str, include: str, exclude: str) -> list[str]:
    """IP literals. `nic`: interface names, comma-separated, "" or "*" for all. Of their addresses those in `include`, ""
    or "*" for all, and not in `exclude`, "" or "*" for none; both are lists of addresses and networks.

    EdgeMesh takes IPv4 only, we take IPv6, too, apart from link-local addresses, which need a scope. Each address is
    listened on by itself: listeners of services on other addresses may have the same port.
    """
    found = addresses(*_items(nic))
    included, excluded = _networks(include), _networks(exclude)
    if "127.0.0.1" in found:
        # All of 127.0.0.0/8 is on lo, though only 127.0.0.1 is listed.
        found += [str(one[0]) for one in included if one.num_addresses == 1 and one[0] in _LOOPBACK]
    return [
        ip
        for ip in dict.fromkeys(found)
        if not (address := ipaddress.ip_address(ip)).is_link_local
        and (not included or any(address in one for one in included))
        and not any(address in one for one in excluded)
    ]


def _items(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    return [] if "*" in items else [item for item in items if item]


def _networks(text: str) -> list[IPv4Network | IPv6Network]:
    return [ipaddress.ip_network(item, strict=False) for item in _items(text)]
