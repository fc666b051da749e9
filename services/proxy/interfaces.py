"""The addresses of this host's network interfaces, without IPv6's link-local ones, which need a scope to be used."""

import ifaddr


def addresses(*names: str) -> list[str]:
    """IP literals, each once: of these interfaces, or of all when none is named."""
    adapters = [adapter for adapter in ifaddr.get_adapters() if not names or adapter.name in names]
    found = (ip.ip if isinstance(ip.ip, str) else ip.ip[0] for adapter in adapters for ip in adapter.ips)
    return [ip for ip in dict.fromkeys(found) if not ip.startswith("fe80")]
