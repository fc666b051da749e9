"""The words of discovery: what a node says of itself, and what this node knows of a peer.

Times are seconds since the Unix epoch, round trips are seconds. Everything is immutable, so a value may be
handed to any number of readers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum


class Source(IntEnum):
    """How this node learned of a peer; numbers as PeerSource in protos/discovery.proto."""

    CONFIG = 1
    MDNS = 2
    LOOKUP = 3
    CACHE = 4
    SELF = 5
    KUBERNETES = 6


class AddressSource(IntEnum):
    """How an address is known; numbers as AddressSource in protos/discovery.proto."""

    UNSPECIFIED = 0
    ADVERTISED = 1
    INTERFACE = 2
    OBSERVED = 3
    MDNS = 4
    MAPPED = 5


@dataclass(frozen=True, slots=True)
class Address:
    """One IP literal of a node; `tunnel_port` 0 means the record's."""

    ip: str
    source: AddressSource = AddressSource.UNSPECIFIED
    tunnel_port: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """The node can be reached through `relay`, `rtt` seconds away from it."""

    relay: str
    rtt: float = 0.0


@dataclass(frozen=True, slots=True)
class RelayRole:
    """The node serves others as a relay. `proven`: addresses at which others dialled it back; `throughput` in bytes
    per second, 0: not measured; `up_since`: reachable without interruption since then, 0: not known."""

    configured: bool = False
    load_permille: int = 0
    circuits: int = 0
    draining: bool = False
    proven: tuple[str, ...] = ()
    throughput: int = 0
    up_since: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """What a node says of itself; `revision` 0 stands for "nobody signed this"."""

    node_name: str
    cluster: str = ""
    revision: int = 0
    issued_at: float = 0.0
    expires_at: float = 0.0
    instance_id: str = ""
    addresses: tuple[Address, ...] = ()
    tunnel_port: int = 0
    relay_port: int = 0
    discovery_port: int = 0
    relay: RelayRole | None = None
    reservations: tuple[Reservation, ...] = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """A record as bytes with its proof; the bytes are kept as received and never re-encoded."""

    record: bytes
    signature: bytes
    certificate: bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.record) + len(self.signature) + len(self.certificate)


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer as this node knows it now, all sources merged."""

    record: Record
    sources: tuple[Source, ...] = ()
    verified: bool = False
    relay_rank: int = 0


def node_id(cluster: str, node_name: str) -> int:
    """The node's key in the 256-bit space in which nearness is XOR."""
    return int.from_bytes(hashlib.sha256(f"{cluster}/{node_name}".encode()).digest(), "big")
