"""Clients of the tunnel: the local discovery service, and the control protocol of relays. Protobuf ends here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from protos import discovery_pb2, discovery_pb2_grpc, relay_pb2
from services.runtime import dial
from services.tunnel.errors import UnknownPeer

log = logging.getLogger("causeway.tunnel")

RESOLVE_TIMEOUT = 6.0
REPORT_TIMEOUT = 3.0
MAX_ALTERNATIVES = 8
"""Relays that a refusal may name; ours names as many at most."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a node may be dialled. `port`: its tunnel seen there. `source`: see OwnAddress."""

    ip: str
    port: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A node as far as the tunnel cares."""

    name: str
    addresses: tuple[PeerAddress, ...] = ()
    """Empty ports left out: a node that does not listen has none."""
    relay_addresses: tuple[tuple[str, int], ...] = ()
    """Where its relay listens; empty when it offers none."""
    relay_rank: int = 0
    """Position in relayNodes, 0: not named there."""
    relay_draining: bool = False
    relay_load: int = 0
    """Share of its tightest limit in use, permille; signed, as all of the record."""
    reservations: tuple[str, ...] = ()
    """Relays on which it can be reached, best first."""
    rtts: tuple[float, ...] = ()
    """Seconds between the node and each of `reservations`, 0: not known; may be shorter than those."""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class ReservationReport:
    """A reservation of this node; round trip in seconds."""

    relay: str
    rtt: float


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """An address in this node's own record. `port` 0: the listen port. `source`: "advertised", "interface", …"""

    ip: str
    port: int
    source: str


def _peer(peer: discovery_pb2.Peer) -> PeerInfo:
    record = peer.record
    # A relay named in relayNodes is tried whatever its record says: the copy at hand may be older than the start of
    # its relay service, and nobody knows better than the relay itself.
    # Else one is used that its owner names a relay, or that others have proven to be one, and where they have.
    earned = record.HasField("relay") and not record.relay.configured and not peer.relay_rank
    offers_relay = record.HasField("relay") or peer.relay_rank > 0
    relay_ips = record.relay.proven if earned else [address.ip for address in record.addresses]
    return PeerInfo(
        name=record.node_name,
        addresses=tuple(
            PeerAddress(address.ip, address.tunnel_port or record.tunnel_port, _source(address))
            for address in record.addresses
            if address.tunnel_port or record.tunnel_port
        ),
        relay_addresses=tuple((ip, record.relay_port or 20007) for ip in relay_ips) if offers_relay else (),
        relay_rank=peer.relay_rank,
        relay_draining=record.relay.draining,
        relay_load=min(record.relay.load_permille, 1000),
        reservations=tuple(reservation.relay for reservation in record.reservations),
        rtts=tuple(reservation.rtt.ToNanoseconds() / 1e9 for reservation in record.reservations),
        revision=record.revision,
    )


def _source(address: discovery_pb2.Address) -> str:
    """In a word; empty where it is not said, or is one that this version does not know."""
    if address.source not in discovery_pb2.AddressSource.values()[1:]:
        return ""
    return discovery_pb2.AddressSource.Name(address.source).removeprefix("ADDRESS_SOURCE_").lower()


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=max(seconds, 0.0)))
    return duration


class Discovery:
    """The local discovery service as seen by the tunnel."""

    def __init__(self, run_dir: Path) -> None:
        self._channel = dial.local_channel(run_dir, "discovery")
        self._stub = discovery_pb2_grpc.DiscoveryServiceStub(self._channel)
        self.synced = asyncio.Event()
        """All that discovery knew was told once."""

    async def close(self) -> None:
        await self._channel.close(None)

    async def follow(
        self, on_peer: Callable[[PeerInfo], None], on_removed: Callable[[str], None], on_synced: Callable[[], None]
    ) -> None:
        """Watches peers for ever. `on_synced` after every (re)connection, when the snapshot is complete."""

        def open_watch(revision: int) -> AsyncIterator[discovery_pb2.WatchPeersResponse]:
            call = self._stub.WatchPeers(discovery_pb2.WatchPeersRequest(resume_revision=revision))
            return aiter(call)

        def on_event(response: discovery_pb2.WatchPeersResponse) -> None:
            match response.WhichOneof("event"):
                case "added":
                    on_peer(_peer(response.added))
                case "removed":
                    on_removed(response.removed)
                case "synced":
                    on_synced()
                    self.synced.set()

        await dial.follow(open_watch, on_event, name="peers")

    async def resolve(self, name: str, *, fresh: bool, traceparent: str = "") -> PeerInfo | None:
        """The peer as discovery knows it or can find it out; None when it cannot, or is away. UnknownPeer when
        nobody knows it."""
        request = discovery_pb2.ResolvePeerRequest(node_name=name, fresh=fresh)
        try:
            metadata = (("traceparent", traceparent),) if traceparent else None
            response = await self._stub.ResolvePeer(request, timeout=RESOLVE_TIMEOUT, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise UnknownPeer(name) from None
            log.debug("resolve failed", extra={"peer": name, "error": error.details()})
            return None
        return _peer(response.peer)

    async def own_addresses(self) -> list[OwnAddress] | None:
        """What this node's record says of its addresses. None when discovery is away."""
        try:
            status = await self._stub.GetStatus(discovery_pb2.GetStatusRequest(), timeout=REPORT_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            log.debug("own record not known", extra={"error": error.details()})
            return None
        return [OwnAddress(it.ip, it.tunnel_port, _source(it)) for it in status.self.addresses]

    async def report(
        self,
        port: int,
        reservations: list[ReservationReport],
        observed: list[tuple[str, int]],
        mapped: tuple[str, int] | None = None,
    ) -> bool:
        """Says what this node's record shall hold of the tunnel. False when discovery is away."""
        report = discovery_pb2.TunnelReport(
            port=port,
            reservations=[
                discovery_pb2.Reservation(relay=item.relay, rtt=_duration(item.rtt)) for item in reservations
            ],
            observed=[
                discovery_pb2.Address(ip=ip, source=discovery_pb2.ADDRESS_SOURCE_OBSERVED, tunnel_port=port_seen)
                for ip, port_seen in observed
            ],
        )
        if mapped is not None:
            source = discovery_pb2.ADDRESS_SOURCE_MAPPED
            report.mapped.add(ip=mapped[0], source=source, tunnel_port=mapped[1])
        try:
            await self._stub.ReportSelf(discovery_pb2.ReportSelfRequest(tunnel=report), timeout=REPORT_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            log.debug("report failed", extra={"error": error.details()})
            return False
        return True


# ---------------------------------------------------------------- the relay's control protocol


@dataclass(frozen=True, slots=True)
class Welcomed:
    relay: str
    observed: str


@dataclass(frozen=True, slots=True)
class Granted:
    """A reservation; seconds to live."""

    ttl: float


@dataclass(frozen=True, slots=True)
class LegOffer:
    """Open a leg with this token. `peer`: who wants us; empty when we asked."""

    token: bytes
    peer: str
    timeout: float
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Denied:
    """`reason` as in RefusedReason, e.g. "no-reservation"."""

    reason: str
    message: str
    retry_after: float
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    permille: int


@dataclass(frozen=True, slots=True)
class Draining:
    """Move away by the deadline; begin at a random time within `spread` (seconds)."""

    deadline: float
    spread: float


@dataclass(frozen=True, slots=True)
class RejectedBy:
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DialledBack:
    """How the relay's connection to us went ("connected", "reset", "silence", "unreachable"), and what it said on it."""

    outcome: str
    token: bytes


RelayMessage = Welcomed | Granted | LegOffer | Denied | Load | Draining | RejectedBy | DialledBack | None


def encode_hello(cluster: str, node: str, relay: str) -> bytes:
    hello = relay_pb2.Hello(version=1, cluster=cluster, node_name=node, expected_relay=relay)
    return relay_pb2.ControlMessage(hello=hello).SerializeToString()


def encode_reserve(number: int) -> bytes:
    return relay_pb2.ControlMessage(id=number, reserve=relay_pb2.Reserve()).SerializeToString()


def encode_connect(number: int, peer: str, traceparent: str) -> bytes:
    connect = relay_pb2.Connect(peer=peer, traceparent=traceparent)
    return relay_pb2.ControlMessage(id=number, connect=connect).SerializeToString()


def encode_withdraw(token: bytes) -> bytes:
    return relay_pb2.ControlMessage(withdraw=relay_pb2.Withdraw(token=token)).SerializeToString()


def encode_heartbeat(number: int) -> bytes:
    return relay_pb2.ControlMessage(id=number, heartbeat=relay_pb2.Heartbeat()).SerializeToString()


def encode_dial_back(number: int, port: int) -> bytes:
    return relay_pb2.ControlMessage(id=number, dial_back=relay_pb2.DialBack(port=port)).SerializeToString()


def encode_reject(reason: str, message: str) -> bytes:
    return relay_pb2.ControlMessage(reject=relay_pb2.Reject(reason=reason, message=message)).SerializeToString()


def decode_relay(data: bytes) -> tuple[int, RelayMessage]:
    """A control message of a relay: the request's number, and what it says (None: nothing we know)."""
    message = relay_pb2.ControlMessage.FromString(data)
    decoded: RelayMessage = None
    match message.WhichOneof("body"):
        case "welcome":
            decoded = Welcomed(message.welcome.node_name, message.welcome.observed)
        case "reserved":
            decoded = Granted(message.reserved.ttl.ToTimedelta().total_seconds())
        case "circuit":
            decoded = LegOffer(message.circuit.token, "", message.circuit.timeout.ToTimedelta().total_seconds())
        case "incoming":
            incoming = message.incoming
            timeout = incoming.timeout.ToTimedelta().total_seconds()
            decoded = LegOffer(incoming.token, incoming.peer, timeout, incoming.traceparent)
        case "refused":
            reason = relay_pb2.RefusedReason.Name(message.refused.reason).removeprefix("REFUSED_REASON_")
            retry = message.refused.retry_after.ToTimedelta().total_seconds()
            others = tuple(message.refused.alternatives[:MAX_ALTERNATIVES])
            decoded = Denied(reason.lower().replace("_", "-"), message.refused.message, retry, others)
        case "heartbeat":
            decoded = Load(message.heartbeat.load_permille)
        case "drain":
            drain = message.drain
            decoded = Draining(drain.deadline.ToTimedelta().total_seconds(), drain.spread.ToTimedelta().total_seconds())
        case "dialled_back":
            outcome = relay_pb2.DialBackOutcome.Name(message.dialled_back.outcome).removeprefix("DIAL_BACK_OUTCOME_")
            decoded = DialledBack(outcome.lower(), message.dialled_back.token)
        case "reject":
            decoded = RejectedBy(message.reject.reason, message.reject.message)
    return message.id, decoded
