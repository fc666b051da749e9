"""What the tunnel tells about itself. Times in seconds."""

import time
from dataclasses import dataclass, field

from services.tunnel.core import paths
from services.tunnel.core.link import Link
from services.tunnel.core.session import Session
from services.tunnel.pairing import Pairing
from services.tunnel.relay_client import RelayClient


@dataclass(frozen=True, slots=True)
class LinkStatus:
    kind: int
    relay: str
    remote: str
    state: str
    rtt: float
    age: float
    bytes_sent: int
    bytes_received: int
    why: str


@dataclass(frozen=True, slots=True)
class SessionStatus:
    id: str
    peer: str
    state: str
    links: list[LinkStatus]
    streams: int
    age: float
    bytes_sent: int
    bytes_received: int
    unacked_bytes: int
    records_resent: int
    records_duplicate: int
    switches: int


@dataclass(frozen=True, slots=True)
class RelayStatus:
    relay: str
    address: str
    state: str
    rtt: float | None
    observed: str
    expires_in: float | None


@dataclass(frozen=True, slots=True)
class CandidateStatus:
    kind: int
    where: str
    relay: str
    state: str
    rtt: float | None
    behind: float | None
    retry_in: float | None
    why: str
    score: str
    source: str


@dataclass(frozen=True, slots=True)
class PunchStatus:
    starter: bool
    attempts: int
    outcome: str
    next_in: float | None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """All ways to one peer."""

    state: str
    candidates: list[CandidateStatus]
    punch: PunchStatus | None


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    node_name: str
    listen_port: int
    sessions: list[SessionStatus]
    relays: list[RelayStatus]
    streams: int
    streams_total: int
    migrations: dict[str, int]
    compiled: bool
    warnings: list[str] = field(default_factory=list)


def of_link(link: Link, active: Link | None) -> LinkStatus:
    """One link, seen beside the active one."""
    if link.closing:
        state = "closing"
    elif link.suspect_since is not None or link.distrusted:
        state = "suspect"
    else:
        state = "active" if link is active else "standby"
    return LinkStatus(
        kind=link.kind,
        relay=link.relay,
        remote=link.remote,
        state=state,
        rtt=link.path_rtt.smoothed or 0.0,
        age=time.monotonic() - link.started,
        bytes_sent=link.bytes_out,
        bytes_received=link.bytes_in,
        why=paths.explain(link, active),
    )


def state_of(pairing: Pairing) -> str:
    """One word for a session."""
    return "closing" if pairing.ended else "up" if pairing.session.active is not None else "resuming"


def of_pairing(pairing: Pairing) -> SessionStatus:
    """One session with its links, the active one first."""
    session = pairing.session
    links = by_preference(session)
    return SessionStatus(
        id=pairing.keys.session_id[:4].hex(),
        peer=pairing.peer,
        state=state_of(pairing),
        links=[of_link(link, session.active) for link in links],
        streams=len(session.streams),
        age=time.monotonic() - session.started,
        bytes_sent=session.bytes_out,
        bytes_received=session.bytes_in,
        unacked_bytes=session.outbox.bytes,
        records_resent=session.resent,
        records_duplicate=session.inbox.duplicates,
        switches=session.switches,
    )


def by_preference(session: Session) -> list[Link]:
    """Links of a session, the active one first."""
    return sorted(session.links, key=lambda link: (link is not session.active, *paths.rank(link)))


def of_relay(client: RelayClient, now: float) -> RelayStatus:
    """This node's dealings with one relay."""
    return RelayStatus(
        relay=client.name,
        address=client.address,
        state=client.state,
        rtt=client.rtt.smoothed,
        observed=client.observed,
        expires_in=client.reserved_until - now if client.reserved_until is not None else None,
    )
