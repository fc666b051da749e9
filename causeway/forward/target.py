"""Where a forward leads: what the person wrote, and the backends behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from causeway.errors import USAGE, CommandError
from services.runtime.address import join

if TYPE_CHECKING:
    from protos.discovery_pb2 import Service


@dataclass(frozen=True, slots=True)
class Backend:
    """One place to go: an address as a node sees it. host: IP literal or name."""

    node: str
    host: str
    port: int

    @property
    def address(self) -> str:
        return join(self.host, self.port)


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """A port of a service, by the service's key "namespace/name". port: its number or its name."""

    key: str
    port: str

    def __str__(self) -> str:
        return f"{self.key}:{self.port}"


@dataclass(frozen=True, slots=True)
class NodeTarget:
    """An address at a node."""

    backend: Backend

    def __str__(self) -> str:
        return f"{self.backend.address} at {self.backend.node}"


def parse(text: str) -> ServiceTarget | NodeTarget:
    """SERVICE:PORT or NODE:HOST:PORT. Raises CommandError."""
    first, colon, rest = text.partition(":")
    if colon and ":" in rest:
        host, _, port = rest.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""
        if first and host and _is_port(port):
            return NodeTarget(Backend(first.lower(), host, int(port)))
    else:
        labels = first.lower().rstrip(".").removesuffix(".cluster.local").removesuffix(".svc").split(".")
        if rest and all(labels) and len(labels) <= 2:
            name, namespace = labels if len(labels) == 2 else (labels[0], "default")
            return ServiceTarget(f"{namespace}/{name}", rest)
    raise CommandError(
        f"'{text}' is neither SERVICE:PORT, such as web.default:80, nor NODE:HOST:PORT, such as edge-b:127.0.0.1:22",
        code=USAGE,
    )


def parse_local(text: str) -> tuple[str, int]:
    """[IP:]PORT, on 127.0.0.1 where no IP is given. Raises CommandError."""
    import ipaddress

    ip, _, port = text.rpartition(":")
    if ip.startswith("[") and ip.endswith("]"):
        ip = ip[1:-1]
    elif ":" in ip:
        ip = "?"
    try:
        ip = str(ipaddress.ip_address(ip or "127.0.0.1"))
        if port == "0" or _is_port(port):
            return ip, int(port)
    except ValueError:
        pass
    raise CommandError(f"'{text}' is not [IP:]PORT, such as 8080, 0.0.0.0:8080 or [::1]:8080", code=USAGE)


def backends(service: Service, port: str, *, udp: bool) -> list[Backend]:
    """Those of the service's port that are ready, on known nodes; where there is none, those that go away but answer
    still. Raises CommandError when it has no such port."""
    from protos import discovery_pb2

    protocol = discovery_pb2.PROTOCOL_UDP if udp else discovery_pb2.PROTOCOL_TCP
    ports = [one for one in service.ports if one.protocol == protocol]
    chosen = next((one for one in ports if port in (str(one.port), one.name)), None)
    if chosen is None:
        have = ", ".join(f"{one.port}{f' ({one.name})' if one.name else ''}" for one in ports) or "none"
        kind = "UDP" if udp else "TCP"
        raise CommandError(f"{service.namespace}/{service.name} has no {kind} port {port}; it has {have}", code=USAGE)
    found = [
        (endpoint.ready, Backend(endpoint.node_name.lower(), endpoint.addresses[0], own.port))
        for endpoint in service.endpoints
        if (endpoint.ready or endpoint.leaving) and endpoint.node_name and endpoint.addresses
        for own in endpoint.ports
        if own.name == chosen.name and own.protocol == protocol
    ]
    return [backend for ready, backend in found if ready] or [backend for _, backend in found]


class Turns:
    """Backends by turns."""

    def __init__(self, members: Sequence[Backend] = ()) -> None:
        self._members = list(members)
        self._next = 0

    def __len__(self) -> int:
        return len(self._members)

    def replace(self, members: Sequence[Backend]) -> None:
        """From now on these."""
        self._members = list(members)

    def order(self) -> list[Backend]:
        """For one client: all of them, beginning with the one whose turn it is."""
        if not self._members:
            return []
        self._next = (self._next + 1) % len(self._members)
        return self._members[self._next :] + self._members[: self._next]


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536
