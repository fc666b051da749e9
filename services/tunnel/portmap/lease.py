"""What a gateway granted, and what can be asked of it in any of the protocols."""

from dataclasses import dataclass
from typing import Protocol

from services.tunnel.core.natkind import Endpoint

LIFETIME = 7200
"""Seconds asked for (RFC 6886 section 3.3); renewed at half of what is granted."""


class MappingFailed(Exception):
    """The gateway does not speak the protocol, or does not want: one line."""


@dataclass(frozen=True, slots=True)
class Lease:
    """`external` leads to our port for `lifetime` seconds."""

    external: Endpoint
    lifetime: float


class Client(Protocol):
    """One gateway in one protocol."""

    name: str
    """ "PCP", "NAT-PMP" or "UPnP"."""

    async def map(self, port: int, wish: Endpoint | None) -> Lease:
        """Maps a TCP port, or renews its mapping. `wish`: what was granted before. MappingFailed."""

    async def holds(self) -> bool:
        """Whether the mapping is still there as far as can be told; also when the gateway does not answer."""

    async def unmap(self, port: int) -> None:
        """Gives it back. MappingFailed."""

    async def close(self) -> None: ...
