"""What this node, as the exit of the mesh, may dial on behalf of other nodes.

A target is allowed when it is the address and port of an endpoint of a known service that lives on this node, or
when it matches an entry of `modules.edgeProxy.allowedTargets` that is for the node that asks (who that is, its
certificate says). Everything else is denied: a peer that can name any address would turn every node into an open proxy
of its LAN.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from services.proxy.core.catalog import Network, Service, join, local_addresses, local_pods

_Net = ipaddress.IPv4Network | ipaddress.IPv6Network


KEY = "modules.edgeProxy.allowedTargets"


class PolicyError(ValueError):
    """An entry of allowedTargets that means nothing."""


class Allowed(NamedTuple):
    """One entry of allowedTargets as it is written. `nodes`: who may ask; * stands for any part of a name."""

    target: str
    nodes: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one target. `resolve`: `host` is a name, to be looked up first."""

    allowed: bool
    why: str  # one line; on a denial it is sent to the caller
    host: str = ""
    port: int = 0
    resolve: bool = False
    service: str = ""  # "namespace/name" whose endpoint it is; the caller's word is not taken for it


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of allowedTargets: a network of addresses or one name, and a range of ports (both ends included).
    `nodes` matches the names of those who may ask; None: everybody."""

    text: str
    net: _Net | None
    name: str
    first: int
    last: int
    nodes: re.Pattern[str] | None

    @classmethod
    def parse(cls, allowed: Allowed) -> "Entry":
        """`CIDR:port`, `IP:port`, `[IPv6 or CIDR]:port` or `name:port`; the port may be `from-to` or `*`."""
        text = allowed.target
        nodes = _names(allowed.nodes)
        host, _, ports = text.strip().rpartition(":")
        low, dash, high = ("1", "-", "65535") if ports == "*" else ports.partition("-")
        try:
            first, last = _port(low), _port(high if dash else low)
            if first > last or not host:
                raise ValueError
            if host.startswith("[") and host.endswith("]"):
                return cls(text, ipaddress.ip_network(host[1:-1], strict=False), "", first, last, nodes)
            if ":" in host:
                raise ValueError
            try:
                return cls(text, ipaddress.ip_network(host, strict=False), "", first, last, nodes)
            except ValueError:
                if "/" in host or host.replace(".", "").isdigit():
                    raise
                return cls(text, None, _fold(host), first, last, nodes)
        except ValueError:
            raise PolicyError(
                f"allowedTargets: got {text!r}, expected address, CIDR or name, then :port, :from-to or :*"
                " (IPv6 in brackets)"
            ) from None

    def matches(self, host: str, ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
        if not self.first <= port <= self.last:
            return False
        if ip is None:
            return self.net is None and self.name == _fold(host)
        return self.net is not None and ip in self.net

    def serves(self, peer: str) -> bool:
        """Whether it is for that node."""
        return self.nodes is None or self.nodes.fullmatch(peer) is not None


class Policy:
    """Judges targets. Call `update` whenever services change; `judge` costs a dictionary lookup for endpoints."""

    def __init__(self, node: str, allowed_targets: Iterable[Allowed] = ()) -> None:
        """Raises PolicyError for the first entry that means nothing."""
        self._node = node
        self.allow(allowed_targets)
        self._own: dict[tuple[Network, str], Verdict] = {}

    def allow(self, targets: Iterable[Allowed]) -> None:
        """These are allowed beside the endpoints. Raises PolicyError, and changes nothing then."""
        self._entries = [Entry.parse(allowed) for allowed in targets]

    def update(self, services: Iterable[Service]) -> None:
        """These are all the services known now."""
        services = list(services)
        pods = local_pods(services, self._node)
        self._own = {}
        for (network, ip, port), service in local_addresses(services, self._node).items():
            verdict = Verdict(True, "endpoint on this node", ip, port, service=service)
            self._own[network, join(ip, port)] = verdict
            if ip in pods:
                self._own.setdefault((network, join(pods[ip], port)), verdict)

    def judge(self, network: Network, address: str, peer: str) -> Verdict:
        """May `address` ("ip:port" or "name:port") be dialled for the node `peer`? Never raises: the address comes from
        that node."""
        known = self._own.get((network, address))
        if known is not None:
            return known
        try:
            host, port = parse_target(address)
        except ValueError as error:
            return Verdict(False, f"target {address[:100]!r} for node {peer!r}: {error}")
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            ip = None
        if isinstance(ip, ipaddress.IPv6Address):
            ip = ip.ipv4_mapped or ip  # ::ffff:10.0.0.1 is 10.0.0.1: no way around an IPv4 rule, nor a surprise
        if ip is not None:
            host = str(ip)
            known = self._own.get((network, join(host, port)))
            if known is not None:
                return known
        asked = f"{network} {join(host, port)} for node {peer!r}"
        closed = ""
        for number, entry in enumerate(self._entries):
            if entry.matches(host, ip, port):
                if entry.serves(peer):
                    return Verdict(True, f"allowedTargets {entry.text}", host, port, resolve=ip is None)
                closed = closed or f"{KEY}[{number}].nodes"
        if closed:
            return Verdict(
                False, f"{asked}: node {self._node!r} allows this target, but not to that node, see {closed}"
            )
        return Verdict(False, f"{asked} is not an endpoint of a known service on node {self._node!r}, nor in its {KEY}")


def parse_target(address: str) -> tuple[str, int]:
    """ "ip:port", "[v6]:port" or "name:port" as (host, port); ValueError says what was expected."""
    host, colon, number = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("expected brackets around an IPv6 address")
    if not colon or not host or len(host) > 253 or not host.isascii() or not host.isprintable() or "%" in host:
        raise ValueError("expected ip:port or name:port")
    return host, _port(number)


def _names(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    if "*" in patterns:
        return None
    return re.compile("|".join(re.escape(pattern.lower()).replace(r"\*", ".*") for pattern in patterns))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ValueError("expected a port from 1 to 65535")
    return int(text)


def _fold(name: str) -> str:
    """DNS names compare without case and without the final dot."""
    return name.lower().rstrip(".")
