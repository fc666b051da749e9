"""Protobuf ↔ domain, server side: DiscoveryService for this node's components, PeerService for other nodes."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from protos import discovery_pb2 as pb
from protos import discovery_pb2_grpc as pb_grpc
from services.runtime.core.allowance import Allowance
from services.runtime.identity import Rejection
from services.runtime.serve import abort

from . import dialback, wire
from .bell import Bell
from .core.contacts import Contact
from .core.errors import BadTarget, DiscoveryError, LimitReached, TooManyCalls, UnknownNode
from .core.gateways import GatewayObject
from .core.model import Peer, Signed
from .core.own import MAX_ADDRESSES, MAX_RESERVATIONS, RelayReport, TunnelReport
from .core.service import Service
from .core.standing import Standing
from .core.store import Store
from .core.vantage import Guard, check, target
from .core.watch import Reader
from .directory import Directory
from .errors import code_of
from .gate import visitor_ip
from .prober import MAX_REPORTS, Addresses, Prober
from .sources.dht import Dht
from .sources.lookup import Lookup

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

DISCOVERY_SERVICE = pb.DESCRIPTOR.services_by_name["DiscoveryService"].full_name
add_discovery = pb_grpc.add_DiscoveryServiceServicer_to_server
add_peer = pb_grpc.add_PeerServiceServicer_to_server

# Watches at once; components of one node need a handful.
MAX_WATCHERS = 128
# Tokens of one round of probing.
MAX_TOKENS = 64
# Offers to dial of one caller, a second and at once; an honest one comes when it was told to.
OFFER_RATE, OFFER_BURST = 1.0, 30.0
# Calls of one node a second, and at once. In a mesh of 10,000 a node makes less than one call in 5 s to everybody
# together; the relay of 500 restarting nodes gets one from each.
CALL_RATE, CALL_BURST = 10.0, 100.0
# Of the DHT's space (SHA-256).
KEY_BYTES = 32

_V = TypeVar("_V")
_Response = TypeVar("_Response")


class DiscoveryServicer(pb_grpc.DiscoveryServiceServicer):
    """What the components of this node call."""

    def __init__(
        self, directory: Directory, lookup: Lookup, dht: Dht, prober: Prober, more_warnings: Callable[[], list[str]]
    ) -> None:
        self._directory = directory
        self._lookup = lookup
        self._dht = dht
        self._prober = prober
        self._more_warnings = more_warnings

    async def WatchPeers(self, request: pb.WatchPeersRequest, context: Context) -> AsyncIterator[pb.WatchPeersResponse]:
        store, bell = self._directory.peers, self._directory.peers_bell
        watch = self._watch(store, bell, request.resume_revision, pb.WatchPeersResponse, _peer, context)
        async with aclosing(watch) as responses:
            async for response in responses:
                yield response

    async def WatchServices(
        self, request: pb.WatchServicesRequest, context: Context
    ) -> AsyncIterator[pb.WatchServicesResponse]:
        store, bell = self._directory.services, self._directory.services_bell
        watch = self._watch(store, bell, request.resume_revision, pb.WatchServicesResponse, _service, context)
        async with aclosing(watch) as responses:
            async for response in responses:
                yield response

    async def WatchGateways(
        self, request: pb.WatchGatewaysRequest, context: Context
    ) -> AsyncIterator[pb.WatchGatewaysResponse]:
        store, bell = self._directory.gateways, self._directory.gateways_bell
        watch = self._watch(store, bell, request.resume_revision, pb.WatchGatewaysResponse, _gateway, context)
        async with aclosing(watch) as responses:
            async for response in responses:
                yield response

    async def _watch(
        self,
        store: Store[_V],
        bell: Bell,
        resume: int,
        response: Callable[..., _Response],
        encode: Callable[[_V], Any],
        context: Context,
    ) -> AsyncGenerator[_Response, None]:
        """A resumed watch begins with `progress`, so that the reader knows it was accepted. `encode`: of what is added."""
        directory = self._directory
        if directory.watchers >= MAX_WATCHERS:
            text = f"{MAX_WATCHERS} watches are open, which is the limit; close some"
            await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "TABLE_FULL", text)
        directory.watchers += 1
        try:
            reader = Reader(store, resume)
            if resume:
                yield response(revision=resume, progress=True)
            while not directory.closing:
                seen = bell.count
                for event in reader.take():
                    if event.synced:
                        yield response(revision=event.revision, synced=True)
                    elif event.value is None:
                        yield response(revision=event.revision, removed=event.key)
                    else:
                        yield response(revision=event.revision, added=encode(event.value))
                await bell.wait(seen)
        except DiscoveryError as error:
            await abort(context, code_of(error), error.reason, error.message)
        finally:
            directory.watchers -= 1

    async def ResolvePeer(self, request: pb.ResolvePeerRequest, context: Context) -> pb.ResolvePeerResponse:
        try:
            peer = await self._lookup.resolve(request.node_name, fresh=request.fresh)
        except DiscoveryError as error:
            await abort(context, code_of(error), error.reason, error.message)
        return pb.ResolvePeerResponse(peer=_peer(peer))

    async def ReportSelf(self, request: pb.ReportSelfRequest, context: Context) -> pb.ReportSelfResponse:
        try:
            report = _report(request)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.ReportSelfResponse(revision=self._directory.report(report))

    async def ProbePort(self, request: pb.ProbePortRequest, context: Context) -> AsyncIterator[pb.ProbePortResponse]:
        pace = request.pace.ToNanoseconds() / 1e9
        try:
            for token in request.tokens:
                check(request.port, token)
        except DiscoveryError as error:
            await abort(context, code_of(error), error.reason, error.message)
        async with aclosing(self._prober.probe(request.port, list(request.tokens[:MAX_TOKENS]), pace)) as events:
            async for event in events:
                if isinstance(event, Addresses):
                    yield pb.ProbePortResponse(addresses=pb.ProbeAddresses(ips=event.ips))
                else:
                    yield pb.ProbePortResponse(
                        outcome=pb.ProbeOutcome(
                            vantage=event.vantage,
                            ip=event.ip,
                            token=event.token,
                            outcome=pb.DialBackOutcome.ValueType(event.outcome),
                        )
                    )

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        directory = self._directory
        standing = self._dht.standing() if self._dht.enabled else None
        return pb.GetStatusResponse(
            node_name=directory.settings.node_name,
            cluster=directory.settings.cluster,
            self=wire.record_to_wire(directory.record()),
            peers=[_peer(peer) for peer in sorted(directory.peers.values(), key=lambda peer: peer.record.node_name)],
            services=len(directory.services),
            sources={**directory.board.sources, "dht": str(standing or "off: dht.enable is false")},
            warnings=[*directory.board.warnings, *self._more_warnings()],
            dht=_standing(standing) if standing is not None else None,
        )


class PeerServicer(pb_grpc.PeerServiceServicer):
    """What other nodes call. A node speaks only for the name in its certificate."""

    def __init__(self, directory: Directory, dht: Dht, prober: Prober, guard: Guard) -> None:
        self._directory = directory
        self._dht = dht
        self._prober = prober
        self._guard = guard
        self._allowance = Allowance(CALL_RATE, CALL_BURST)
        self._offers = Allowance(OFFER_RATE, OFFER_BURST)

    async def Ping(self, request: pb.PingRequest, context: Context) -> pb.PingResponse:
        self._dht.pinged(await self._caller(context))
        told = wire.relays_to_wire(self._dht.told())
        for signed in wire.relays_from_wire(request.relays):
            self._dht.meet_relay(signed)
        return pb.PingResponse(record=wire.signed_to_wire(self._directory.signed()), relays=told)

    async def FindNode(self, request: pb.FindNodeRequest, context: Context) -> pb.FindNodeResponse:
        caller = await self._caller(context)
        name = request.node_name
        if not name and len(request.key) != KEY_BYTES:
            text = f"the key has {len(request.key)} bytes, expected {KEY_BYTES}, or a node_name"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        target = self._dht.key(name) if name else int.from_bytes(request.key, "big")
        response = pb.FindNodeResponse(servers=map(wire.server_to_wire, self._dht.named(target, caller)))
        held = self._held(name) if name else None
        if held is not None:
            response.record.CopyFrom(wire.signed_to_wire(held))
        callback = Contact(caller, tuple(wire.endpoints_from_wire(request.callback)))
        self._dht.invite(callback, visitor_ip(context.peer()))
        return response

    async def PutRecord(self, request: pb.PutRecordRequest, context: Context) -> pb.PutRecordResponse:
        caller = await self._caller(context)
        directory = self._directory
        former = self._dht.held(caller)
        conflicting: Signed | None = None
        try:
            signed = wire.signed_from_wire(request.record)
            record = directory.check(signed, expected=caller)
            if caller != directory.settings.node_name:
                self._dht.keep(record, signed, visitor_ip(context.peer()))
        except DiscoveryError as error:
            directory.counts["refused", error.reason] += 1
            await abort(context, code_of(error), error.reason, error.message)
        if caller == directory.settings.node_name:
            directory.meet_double(record, "publishing here")
            conflicting = directory.signed()
        elif former is not None and _instance(former) != record.instance_id:
            conflicting = former
        response = pb.PutRecordResponse(record=wire.signed_to_wire(directory.signed()))
        if conflicting is not None:
            response.conflicting.CopyFrom(wire.signed_to_wire(conflicting))
        return response

    async def GetRecord(self, request: pb.GetRecordRequest, context: Context) -> pb.GetRecordResponse:
        await self._caller(context)
        signed = self._held(request.node_name)
        if signed is None:
            text = f"{self._directory.settings.node_name} knows no node {request.node_name[:253]}"
            await abort(context, grpc.StatusCode.NOT_FOUND, UnknownNode.reason, text)
        return pb.GetRecordResponse(record=wire.signed_to_wire(signed))

    def _held(self, name: str) -> Signed | None:
        own = name == self._directory.settings.node_name
        return self._directory.signed() if own else self._dht.held(name)

    async def DialBack(self, request: pb.DialBackRequest, context: Context) -> pb.DialBackResponse:
        caller = await self._caller(context)
        settings, counts = self._directory.settings, self._directory.counts
        try:
            check(request.port, request.token)
            seen = visitor_ip(context.peer())
            ip = target(request.ip, seen, len(request.work), loopback=settings.loopback)
            self._guard.enter(caller, monotonic())
        except DiscoveryError as refusal:
            counts["dials", refusal.reason.lower()] += 1
            await abort(context, code_of(refusal), refusal.reason, refusal.message)
        try:
            outcome = await dialback.dial(ip, request.port, request.token, source=settings.listen_address)
        finally:
            self._guard.done(caller)
        if outcome is None:
            error = BadTarget(f"there is no way from here to {ip}")
            await abort(context, code_of(error), error.reason, error.message)
        counts["dials", outcome.name.lower()] += 1
        return pb.DialBackResponse(ip=ip, outcome=pb.DialBackOutcome.ValueType(outcome))

    async def OfferDialBack(self, request: pb.OfferDialBackRequest, context: Context) -> pb.OfferDialBackResponse:
        caller = await self._caller(context)
        if not self._offers.spend(caller, monotonic()):
            error = LimitReached(f"{caller} offers too often; come again when it is said")
            await abort(context, code_of(error), error.reason, error.message)
        try:
            reports = [wire.report_from_wire(report) for report in request.reports[:MAX_REPORTS]]
        except ValueError as problem:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(problem))
        wish, again = self._prober.offered(caller, visitor_ip(context.peer()), reports)
        response = pb.OfferDialBackResponse(record=wire.signed_to_wire(self._directory.signed()))
        response.again.FromMilliseconds(round(again * 1000))
        if wish is not None:
            response.wish.CopyFrom(pb.DialBackWish(port=wish.port, token=wish.token))
        return response

    async def _caller(self, context: Context) -> str:
        directory = self._directory
        try:
            caller = directory.identity.caller(context.auth_context())
        except Rejection as error:
            directory.log.warning("caller refused", extra={"reason": error.reason, "error": error.message})
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, error.reason, error.message)
        self._dht.called()
        if not self._allowance.spend(caller, asyncio.get_running_loop().time()):
            directory.counts["refused", TooManyCalls.reason] += 1
            text = f"{caller} calls more than {CALL_RATE:.0f} times a second; ask again later"
            await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, TooManyCalls.reason, text)
        return caller


def _standing(standing: Standing) -> pb.DhtStatus:
    message = pb.DhtStatus(
        server=standing.server,
        servers=standing.servers,
        estimated=standing.estimated,
        records=standing.records,
        record_bytes=standing.record_bytes,
        relays=standing.relays,
        holders=standing.holders,
    )
    if standing.refreshed is not None:
        message.refreshed.FromMilliseconds(round(standing.refreshed * 1000))
    return message


def _instance(signed: Signed) -> str:
    """The run of the node that signed a record, which was verified when it came."""
    return pb.PeerRecord.FromString(signed.record).instance_id


def _peer(peer: Peer) -> pb.Peer:
    return pb.Peer(
        record=wire.record_to_wire(peer.record),
        sources=[pb.PeerSource.ValueType(source) for source in peer.sources],
        verified=peer.verified,
        relay_rank=peer.relay_rank,
    )


def _report(request: pb.ReportSelfRequest) -> TunnelReport | RelayReport:
    """Raises ValueError for what is no report."""
    match request.WhichOneof("component"):
        case "tunnel":
            for address in (*request.tunnel.observed, *request.tunnel.mapped):
                ipaddress.ip_address(address.ip)
            return TunnelReport(
                request.tunnel.port,
                tuple(map(wire.reservation_from_wire, request.tunnel.reservations[:MAX_RESERVATIONS])),
                tuple(map(wire.address_from_wire, request.tunnel.observed[:MAX_ADDRESSES])),
                tuple(map(wire.address_from_wire, request.tunnel.mapped[:MAX_ADDRESSES])),
            )
        case "relay":
            role = request.relay.role if request.relay.HasField("role") else None
            return RelayReport(request.relay.port, wire.role_from_wire(role) if role is not None else None)
        case _:
            raise ValueError("the report is empty; expected tunnel or relay")


def _service(service: Service) -> pb.Service:
    message = pb.Service(
        namespace=service.namespace,
        name=service.name,
        cluster_ips=service.cluster_ips,
        labels=dict(service.labels),
        annotations=dict(service.annotations),
        session_affinity=service.session_affinity,
        external_ips=service.external_ips,
        traffic_distribution=service.traffic_distribution,
        traffic_policy=service.traffic_policy,
        internal_traffic_policy=service.internal_traffic_policy,
        external_traffic_policy=service.external_traffic_policy,
        external_name=service.external_name,
    )
    if service.affinity_timeout:
        message.affinity_timeout.FromSeconds(round(service.affinity_timeout))
    for port in service.ports:
        message.ports.add(
            name=port.name,
            protocol=pb.Protocol.ValueType(port.protocol),
            port=port.port,
            node_port=port.node_port,
            app_protocol=port.app_protocol,
        )
    for endpoint in service.endpoints:
        added = message.endpoints.add(
            addresses=endpoint.addresses,
            node_name=endpoint.node_name,
            ready=endpoint.ready,
            hostname=endpoint.hostname,
            leaving=endpoint.leaving,
            pod=endpoint.pod,
            zone=endpoint.zone,
            for_zones=endpoint.for_zones,
            for_nodes=endpoint.for_nodes,
        )
        for backend in endpoint.ports:
            added.ports.add(name=backend.name, protocol=pb.Protocol.ValueType(backend.protocol), port=backend.port)
    return message


def _gateway(one: GatewayObject) -> pb.GatewayObject:
    return pb.GatewayObject(kind=one.kind, namespace=one.namespace, name=one.name, body=one.body)
