"""What discovery keeps of peers and of its own record on disk: JSON in an envelope (runtime/core/envelope.py).

Records are kept as signed, so that they are verified again when they are read.
"""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.runtime.core.envelope import BadSnapshot, unwrap, wrap

from .memory import Remembered
from .model import Address, AddressSource, RelayRole, Reservation, Signed
from .own import RelayReport, TunnelReport

FORMAT = "causeway-registry"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State that outlives a run. `saved_at` in seconds since the Unix epoch."""

    saved_at: float = 0.0
    revision: int = 0
    tunnel: TunnelReport | None = None
    relay: RelayReport | None = None
    peers: tuple[Signed, ...] = ()
    # Servers of the DHT.
    servers: tuple[Remembered, ...] = ()


def encode(snapshot: Snapshot) -> bytes:
    """The inverse of `decode`."""
    body = json.dumps(
        {
            "savedAt": snapshot.saved_at,
            "revision": snapshot.revision,
            "tunnel": _tunnel_out(snapshot.tunnel),
            "relay": _relay_out(snapshot.relay),
            "peers": [[_text(part) for part in (s.record, s.signature, s.certificate)] for s in snapshot.peers],
            "servers": [[it.name, it.where, it.seen] for it in snapshot.servers],
        },
        separators=(",", ":"),
    ).encode()
    return wrap(FORMAT, VERSION, body)


def decode(data: bytes) -> Snapshot:
    """A snapshot from its bytes; raises BadSnapshot with what is wrong."""
    body = unwrap(FORMAT, VERSION, data)
    try:
        values = json.loads(body)
        return Snapshot(
            saved_at=float(values["savedAt"]),
            revision=int(values["revision"]),
            tunnel=_tunnel_in(values["tunnel"]),
            relay=_relay_in(values["relay"]),
            peers=tuple(_peers_in(values["peers"])),
            servers=tuple(_servers_in(values.get("servers", ()), float(values["savedAt"]))),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadSnapshot(f"it cannot be read ({type(error).__name__}: {error})") from error


def _peers_in(values: list[list[str]]) -> Iterator[Signed]:
    for record, signature, certificate in values:
        yield Signed(_bytes(record), _bytes(signature), _bytes(certificate))


def _servers_in(values: list[list[Any]], saved_at: float) -> Iterator[Remembered]:
    """Files of versions before 0.3 have none, and the first of 0.3 do not say when they were there."""
    for name, where, *seen in values:
        yield Remembered(str(name), _where(where), float(seen[0]) if seen else saved_at)


def _where(text: str) -> str:
    """Raises ValueError for what is no list of addresses."""
    for part in text.split(","):
        host, _, port = part.rpartition(":")
        ipaddress.ip_address(host.strip("[]"))
        if not 0 < int(port) <= 65_535:
            raise ValueError(f"{part!r} has no port")
    return text


def _tunnel_out(report: TunnelReport | None) -> Any:
    if report is None:
        return None
    return {
        "port": report.port,
        "reservations": [[r.relay, r.rtt] for r in report.reservations],
        "observed": [[a.ip, a.tunnel_port] for a in report.observed],
        "mapped": [[a.ip, a.tunnel_port] for a in report.mapped],
    }


def _tunnel_in(values: Any) -> TunnelReport | None:
    if values is None:
        return None
    return TunnelReport(
        int(values["port"]),
        tuple(Reservation(str(relay), float(rtt)) for relay, rtt in values["reservations"]),
        tuple(Address(str(ip), AddressSource.OBSERVED, int(port)) for ip, port in values["observed"]),
        # Files of versions before 0.2 have none.
        tuple(Address(str(ip), AddressSource.MAPPED, int(port)) for ip, port in values.get("mapped", ())),
    )


def _relay_out(report: RelayReport | None) -> Any:
    if report is None:
        return None
    role = report.role
    return {
        "port": report.port,
        "role": None if role is None else [role.configured, role.load_permille, role.circuits],
        "claim": None if role is None else [list(role.proven), role.throughput, role.up_since],
    }


def _relay_in(values: Any) -> RelayReport | None:
    if values is None:
        return None
    role = None
    if values["role"] is not None:
        configured, load, circuits = values["role"]
        # Files of versions before 0.3 have no claim.
        proven, throughput, up_since = values.get("claim") or ([], 0, 0.0)
        role = RelayRole(
            bool(configured),
            int(load),
            int(circuits),
            proven=tuple(map(str, proven)),
            throughput=int(throughput),
            up_since=float(up_since),
        )
    return RelayReport(int(values["port"]), role)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
