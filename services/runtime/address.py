"""Addresses as people write them: `host`, `host:port`, `[v6]:port`, node names.

Pure: standard library only, no IO.
"""

import ipaddress
import re

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
NODE_PATTERN = re.compile(r"[a-z0-9*]([a-z0-9.*-]*[a-z0-9*])?")
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")


def split(text: str, default_port: int = 0) -> tuple[str, int]:
    """`text` as (host, port). A bare IPv6 literal needs no brackets; ValueError says what is expected."""
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not is_ip(host):
            raise ValueError("[IPv6 address] or [IPv6 address]:port")
        port = rest[1:]
    elif text.count(":") > 1:
        host, port = text, ""
        if not is_ip(host):
            raise ValueError("an IPv6 address, or [address]:port")
    else:
        host, _, port = text.partition(":")
        if text.endswith(":"):
            raise ValueError("a port after ':'")
    if not is_ip(host) and (len(host) > 253 or not HOST.fullmatch(host) or host.replace(".", "").isdigit()):
        raise ValueError("an IP address or a DNS name, with or without :port")
    if not port:
        return host, default_port
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError("a port from 1 to 65535 after ':'")
    return host, int(port)


def join(host: str, port: int) -> str:
    """The inverse of `split`: IPv6 literals get brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 literal (an IPv6 zone such as `%eth0` included)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_node_name(text: str) -> bool:
    """Whether `text` may name a node: an RFC 1123 subdomain of at most 253 characters, as in Kubernetes."""
    return 0 < len(text) <= 253 and SUBDOMAIN.fullmatch(text) is not None


def is_node_pattern(text: str) -> bool:
    """Whether `text` may match names of nodes: what they are made of, and `*` for any part."""
    return 0 < len(text) <= 253 and NODE_PATTERN.fullmatch(text) is not None


def is_cluster_name(text: str) -> bool:
    """Whether `text` may name a cluster: an RFC 1123 label of at most 63 characters."""
    return LABEL.fullmatch(text) is not None


def is_target_pattern(text: str) -> bool:
    """Whether `text` is an `allowedTargets` entry: host, IP or CIDR, then `:port`, `:from-to` or `:*`."""
    host, colon, ports = text.rpartition(":")
    first, dash, last = ports.partition("-")
    numbers = [first, last] if dash else [first]
    if ports != "*" and not all(n.isascii() and n.isdigit() and 0 < int(n) < 65536 for n in numbers):
        return False
    if dash and int(first) > int(last):
        return False
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return False
    try:
        ipaddress.ip_network(host, strict=False)
    except ValueError:
        return bool(colon) and HOST.fullmatch(host) is not None and not host.replace(".", "").isdigit()
    return bool(colon)
