"""Protobuf ↔ domain, server side: TunnelService."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.duration_pb2 import Duration

from protos import tunnel_pb2 as pb
from protos import tunnel_pb2_grpc
from services.runtime import serve
from services.tunnel.core.natkind import show
from services.tunnel.errors import UNKNOWN_NODE, Refused
from services.tunnel.netreport import Report
from services.tunnel.offers import Listener
from services.tunnel.status import LinkStatus, PeerStatus, TunnelStatus
from services.tunnel.wire import Offer, add_offers

FULL_NAME = "causeway.tunnel.v1.TunnelService"
add_to_server: Callable[..., Any] = tunnel_pb2_grpc.add_TunnelServiceServicer_to_server

AT_ONCE = 256
"""Offers in one response, of 4 MiB at most (gRPC's default): each has four texts of up to 1 KiB and a name."""
FINDING = {None: pb.FINDING_UNSPECIFIED, True: pb.FINDING_YES, False: pb.FINDING_NO}


class Tunnel(Protocol):
    """What the servicer needs of the driver."""

    async def ping(self, node: str, count: int, timeout: float) -> tuple[list[float], LinkStatus]: ...
    async def explain(self, node: str) -> PeerStatus: ...
    def status(self) -> TunnelStatus: ...
    async def check_network(self) -> Report: ...


class Offers(Protocol):
    """Where `Listen` takes its offers."""

    def listen(self, listener: Listener) -> None: ...
    def take(self, listener: Listener, most: int) -> list[Offer]: ...
    def unlisten(self, listener: Listener) -> None: ...


class Call:
    """A call of `Listen`."""

    def __init__(self) -> None:
        self.awake = asyncio.Event()
        self.over = False

    def news(self) -> None:
        """There are offers to take."""
        self.awake.set()

    def replaced(self) -> None:
        """Another listener took over."""
        self.over = True
        self.awake.set()


class TunnelServicer(tunnel_pb2_grpc.TunnelServiceServicer):
    """gRPC on tunnel.sock."""

    def __init__(self, tunnel: Tunnel, offers: Offers, more_warnings: Callable[[], list[str]] = list) -> None:
        self._tunnel = tunnel
        self._offers = offers
        self._more_warnings = more_warnings

    async def Listen(self, request: pb.ListenRequest, context: Any) -> AsyncIterator[pb.ListenResponse]:
        """See protos/tunnel.proto."""
        call = Call()
        self._offers.listen(call)
        try:
            while not call.over:
                await call.awake.wait()
                call.awake.clear()
                while offers := self._offers.take(call, AT_ONCE):
                    response = pb.ListenResponse()
                    add_offers(response, offers)
                    yield response
            await context.abort(grpc.StatusCode.ABORTED, "another listener took over")
        finally:
            self._offers.unlisten(call)

    async def PingPeer(self, request: pb.PingPeerRequest, context: Any) -> pb.PingPeerResponse:
        """See protos/tunnel.proto."""
        count = min(max(request.count, 1), 100)
        timeout = request.timeout.ToTimedelta().total_seconds() if request.HasField("timeout") else 15.0
        try:
            rtts, link = await self._tunnel.ping(request.node_name, count, timeout)
        except Refused as error:
            await _refuse(context, error)
        return pb.PingPeerResponse(rtts=[_duration(rtt) for rtt in rtts], link=_link(link))

    async def ExplainPeer(self, request: pb.ExplainPeerRequest, context: Any) -> pb.ExplainPeerResponse:
        """See protos/tunnel.proto."""
        try:
            peer = await self._tunnel.explain(request.node_name)
        except Refused as error:
            await _refuse(context, error)
        punch = peer.punch
        return pb.ExplainPeerResponse(
            state=peer.state,
            candidates=[
                pb.Candidate(
                    kind=candidate.kind,  # type: ignore[arg-type]
                    where=candidate.where,
                    relay=candidate.relay,
                    state=candidate.state,
                    rtt=_optional(candidate.rtt),
                    behind=_optional(candidate.behind),
                    retry_in=_optional(candidate.retry_in),
                    why=candidate.why,
                    score=candidate.score,
                    source=candidate.source,
                )
                for candidate in peer.candidates
            ],
            punching=pb.Punching(
                starter=punch.starter,
                attempts=punch.attempts,
                outcome=punch.outcome,
                next_in=_optional(punch.next_in),
            )
            if punch is not None
            else None,
        )

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """See protos/tunnel.proto."""
        await asyncio.sleep(0)
        status = self._tunnel.status()
        return pb.GetStatusResponse(
            node_name=status.node_name,
            listen_port=status.listen_port,
            sessions=[
                pb.Session(
                    id=session.id,
                    peer=session.peer,
                    state=session.state,
                    links=[_link(link) for link in session.links],
                    streams=session.streams,
                    age=_duration(session.age),
                    bytes_sent=session.bytes_sent,
                    bytes_received=session.bytes_received,
                    unacked_bytes=session.unacked_bytes,
                    records_resent=session.records_resent,
                    records_duplicate=session.records_duplicate,
                    switches=session.switches,
                )
                for session in status.sessions
            ],
            relays=[
                pb.RelayControl(
                    relay=relay.relay,
                    address=relay.address,
                    state=relay.state,
                    rtt=_optional(relay.rtt),
                    observed=relay.observed,
                    expires_in=_optional(relay.expires_in),
                )
                for relay in status.relays
            ],
            streams=status.streams,
            streams_total=status.streams_total,
            migrations=status.migrations,
            compiled=status.compiled,
            warnings=[*status.warnings, *self._more_warnings()],
        )

    async def NetCheck(self, request: pb.NetCheckRequest, context: Any) -> pb.NetCheckResponse:
        """See protos/tunnel.proto."""
        report = await self._tunnel.check_network()
        return pb.NetCheckResponse(
            node_name=report.node_name,
            verdict=report.verdict,
            kind=report.kind.value,  # type: ignore[arg-type]
            mapping=report.mapping.value,  # type: ignore[arg-type]
            mapping_why=report.mapping_why,
            filtering=report.filtering.value,  # type: ignore[arg-type]
            filtering_why=report.filtering_why,
            port_preserved=FINDING[report.port_preserved],
            hairpin=FINDING[report.hairpin],
            hairpin_why=report.hairpin_why,
            addresses=[
                pb.CheckedAddress(
                    address=item.address, source=item.source, reachable=FINDING[item.reachable], why=item.why
                )
                for item in report.addresses
            ],
            relays=[
                pb.CheckedRelay(
                    relay=item.relay,
                    address=item.address,
                    rtt=_optional(item.rtt),
                    observed=item.observed,
                    reserved=item.reserved,
                    error=item.error,
                )
                for item in report.relays
            ],
            notes=report.notes,
            took=_duration(report.took),
            port_mapping=pb.PortMapping(
                protocol=report.port_mapping.protocol,
                gateway=report.port_mapping.gateway,
                external=show(report.port_mapping.external) if report.port_mapping.external else "",
                why=report.port_mapping.why,
            ),
        )


async def _refuse(context: Any, error: Refused) -> NoReturn:
    unknown = error.reason.code == UNKNOWN_NODE
    code = grpc.StatusCode.NOT_FOUND if unknown else grpc.StatusCode.UNAVAILABLE
    await serve.abort(context, code, "UNKNOWN_NODE" if unknown else "NO_PATH", str(error))


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def _optional(seconds: float | None) -> Duration | None:
    return None if seconds is None else _duration(seconds)


def _link(link: LinkStatus) -> pb.Link:
    return pb.Link(
        kind=link.kind,  # type: ignore[arg-type]
        relay=link.relay,
        remote=link.remote,
        state=link.state,
        rtt=_duration(link.rtt),
        age=_duration(link.age),
        bytes_sent=link.bytes_sent,
        bytes_received=link.bytes_received,
        why=link.why,
    )
