"""The services that the proxy calls, discovery and tunnel: their protobuf on one side, our shapes on the other."""

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError

from protos import discovery_pb2, discovery_pb2_grpc, tunnel_pb2, tunnel_pb2_grpc
from services.proxy import errors
from services.proxy.core.catalog import Backend, Catalog, Endpoint, Network, Port, Service
from services.proxy.core.gateway.table import Object
from services.proxy.core.plan import FILTER_LABEL
from services.proxy.core.snapshot import Snapshot
from services.proxy.core.traffic import PREFIX
from services.runtime import dial

T = TypeVar("T")

RTT_EVERY = 5.0  # s between two looks at the round trips

_NETWORKS: dict[int, Network] = {discovery_pb2.PROTOCOL_TCP: "tcp", discovery_pb2.PROTOCOL_UDP: "udp"}
_OFFERED: dict[int, Network] = {tunnel_pb2.NETWORK_TCP: "tcp", tunnel_pb2.NETWORK_UDP: "udp"}
_REFUSALS = {
    errors.DENIED: tunnel_pb2.REFUSAL_REASON_DENIED,
    errors.UNREACHABLE: tunnel_pb2.REFUSAL_REASON_UNREACHABLE,
    errors.CONNECTION_REFUSED: tunnel_pb2.REFUSAL_REASON_CONNECTION_REFUSED,
    errors.LIMIT: tunnel_pb2.REFUSAL_REASON_LIMIT,
}
_REFUSED: dict[int, str] = {code: reason for reason, code in _REFUSALS.items()}
_REFUSED[tunnel_pb2.REFUSAL_REASON_UNKNOWN_NODE] = errors.UNKNOWN_NODE


# ── tunnel: headers on tunnel.attach ──

LISTEN = tunnel_pb2.Attach(listen=tunnel_pb2.Listen()).SerializeToString()
"""The header that asks for offers."""


class Opening:
    """The header that starts a stream to one backend: made once, completed for each client."""

    def __init__(self, backend: Backend, network: Network, service: str, number: int) -> None:
        """`number`: under which clients that are not kept come back."""
        target = tunnel_pb2.Target(
            network=tunnel_pb2.NETWORK_TCP if network == "tcp" else tunnel_pb2.NETWORK_UDP,
            address=backend.address,
            service=service,
        )
        self._attach = tunnel_pb2.Attach(open=tunnel_pb2.Outbound(node=backend.node, target=target))
        if network == "tcp":
            self._attach.id, self._attach.open.give_back = number, True
        self._kept = tunnel_pb2.Attach(open=tunnel_pb2.Outbound(node=backend.node, target=target, keep=True))

    def encode(self, client: str, traceparent: str = "", head: bytes = b"") -> bytes:
        """The encoded Attach for a client at "ip:port" that the tunnel is to give back if nobody accepts it."""
        opening = self._attach.open
        opening.client = client
        opening.traceparent = traceparent
        opening.head = head
        return self._attach.SerializeToString()

    def encode_kept(
        self,
        number: int,
        client: str,
        traceparent: str,
        head: bytes,
        timeout: float,
        *,
        watch: bool,
        welcome: bytes = b"",
    ) -> bytes:
        """The same for a client that is kept, to try elsewhere or to be told why not; see Outbound.keep, timeout (0: the
        tunnel's own), watch and welcome."""
        opening = self._kept.open
        self._kept.id = number
        opening.client = client
        opening.traceparent = traceparent
        opening.head = head
        _limit(opening, timeout)
        opening.watch = watch
        opening.welcome = welcome
        return self._kept.SerializeToString()

    def encode_flow(
        self, number: int, client: str, traceparent: str, datagrams: Sequence[bytes], timeout: float
    ) -> bytes:
        """The same for a UDP flow. `number` 0: nothing shall be heard of it."""
        opening = self._attach.open
        self._attach.id, opening.watch = number, number != 0
        opening.client = client
        opening.traceparent = traceparent
        _limit(opening, timeout)
        opening.datagrams.extend(datagrams)
        encoded = self._attach.SerializeToString()
        del opening.datagrams[:]
        return encoded


def _limit(opening: tunnel_pb2.Outbound, timeout: float) -> None:
    """Seconds for a path to the node; 0: the tunnel's own."""
    if timeout:
        opening.timeout.FromMilliseconds(round(timeout * 1000))
    else:
        opening.ClearField("timeout")


_ACCEPTANCE = tunnel_pb2.Attach(accept=tunnel_pb2.Accept())  # made once, as an Opening


def accept(token: bytes, service: str) -> bytes:
    """The header that answers an offer with a connection to an endpoint of `service`, "" for another target."""
    _ACCEPTANCE.accept.token, _ACCEPTANCE.accept.service = token, service
    return _ACCEPTANCE.SerializeToString()


def refuse(token: bytes, reason: str, message: str) -> bytes:
    """The header that answers an offer with no; `reason` is one of `errors`."""
    refusal = tunnel_pb2.Refusal(reason=_REFUSALS[reason], message=message)
    return tunnel_pb2.Attach(refuse=tunnel_pb2.Refuse(token=token, refusal=refusal)).SerializeToString()


@dataclass(slots=True)
class Outcome:
    """What became of a client that is kept, or comes back."""

    number: int
    accepted: bool
    answered: bool  # it was accepted before, and its backend has sent a datagram
    ended: bool  # it was accepted before, and is over
    reason: str  # why it was not accepted, or how it ended, one of `errors`; "": it was, or in order
    why: str  # one line
    head: bytes  # read from the client, for the next attempt
    rtt: float  # s to the node; 0: not measured
    relayed: bool  # the path to it goes through a relay


class TakenOver(NamedTuple):
    """Another proxy gets the offers."""


def result(message: bytes) -> "Outcome | list[Offer] | TakenOver":
    """An AttachResult. Raises ValueError when it is none."""
    try:
        result = tunnel_pb2.AttachResult.FromString(message)
    except DecodeError as error:
        raise ValueError("not an AttachResult") from error
    if result.offers:
        return [_offer(offer) for offer in result.offers]
    if result.taken_over:
        return TakenOver()
    refused = result.HasField("refusal")
    return Outcome(
        result.id,
        not refused and not result.ended and not result.answered,
        result.answered,
        result.ended,
        _REFUSED.get(result.refusal.reason, errors.NO_PATH) if refused else "",
        result.refusal.message,
        result.head,
        result.rtt.ToTimedelta().total_seconds(),
        result.path == tunnel_pb2.PATH_KIND_RELAYED,
    )


# ── tunnel: offers ──


@dataclass(slots=True)
class Offer:
    """A stream that another node asks for."""

    token: bytes
    peer: str
    network: Network | None  # None: one we do not know
    address: str
    service: str
    traceparent: str
    client: str


def _offer(offer: tunnel_pb2.Offer) -> Offer:
    target = offer.target
    return Offer(
        offer.token,
        offer.peer,
        _OFFERED.get(target.network),
        target.address,
        target.service,
        offer.traceparent,
        offer.client,
    )


# ── tunnel: how far nodes are ──


async def follow_rtts(run_dir: Path, wanted: Callable[[], bool], measured: Callable[[dict[str, float]], None]) -> None:
    """While they are `wanted`, every RTT_EVERY seconds: the round trips to the nodes with which there is a session, by the
    path in use, in seconds. For ever."""
    channel = dial.local_channel(run_dir, "tunnel")
    stub: Any = tunnel_pb2_grpc.TunnelServiceStub(channel)
    try:
        while True:
            if wanted():
                with contextlib.suppress(grpc.aio.AioRpcError):  # the tunnel is away: what was known stays
                    measured(_rtts(await stub.GetStatus(tunnel_pb2.GetStatusRequest(), timeout=RTT_EVERY)))
            await asyncio.sleep(RTT_EVERY)
    finally:
        await channel.close(None)


def _rtts(status: tunnel_pb2.GetStatusResponse) -> dict[str, float]:
    return {
        session.peer: link.rtt.ToTimedelta().total_seconds()
        for session in status.sessions
        for link in session.links
        if link.state == "active" and link.HasField("rtt")
    }


# ── discovery: services, nodes, gateways ──


async def follow_services(run_dir: Path, catalog: Catalog, changed: Callable[[], None]) -> None:
    """Keeps `catalog` equal to what discovery knows, for ever; the last state stays while discovery is away.
    `changed` is called after the first snapshot, and after every change since."""
    await _follow(
        run_dir,
        "services",
        lambda stub: stub.WatchServices,
        discovery_pb2.WatchServicesRequest,
        service,
        catalog,
        changed,
    )


async def follow_nodes(run_dir: Path, nodes: set[str]) -> None:
    """Keeps `nodes` equal to the names of those that discovery knows, in the same way."""
    known = Snapshot[str](str)

    def changed() -> None:
        nodes.clear()
        nodes.update(known)

    await _follow(
        run_dir,
        "nodes",
        lambda stub: stub.WatchPeers,
        discovery_pb2.WatchPeersRequest,
        lambda peer: peer.record.node_name,
        known,
        changed,
    )


async def follow_gateways(run_dir: Path, objects: Snapshot[Object], changed: Callable[[], None]) -> None:
    """Keeps `objects` equal to what discovery knows of ingress gateways, in the same way."""
    await _follow(
        run_dir,
        "gateways",
        lambda stub: stub.WatchGateways,
        discovery_pb2.WatchGatewaysRequest,
        lambda one: Object(one.kind, one.namespace, one.name, one.body),
        objects,
        changed,
    )


async def _follow(
    run_dir: Path,
    name: str,
    call: Callable[[Any], Any],
    request: Callable[..., Any],
    decode: Callable[[Any], T],
    known: Snapshot[T],
    changed: Callable[[], None],
) -> None:
    """`call`: of a stub, the watch, which takes a `request`. `decode`: of what is added."""
    channel = dial.local_channel(run_dir, "discovery")
    watch = call(discovery_pb2_grpc.DiscoveryServiceStub(channel))

    def open_watch(revision: int) -> Any:
        return watch(request(resume_revision=revision), wait_for_ready=True)

    def apply(response: Any) -> None:
        synced = known.synced
        match response.WhichOneof("event"):
            case "added":
                news = known.put(decode(response.added))
            case "removed":
                news = known.remove(response.removed)
            case "synced":
                news = known.complete() or not synced
            case _:
                news = False
        if news and known.synced:
            changed()

    try:
        await dial.follow(open_watch, apply, name=name, on_relist=known.begin)
    finally:
        await channel.close(None)


def service(message: discovery_pb2.Service) -> Service:
    """Addresses in canonical form; what is no IP literal or has an unknown protocol is left out."""
    return Service(
        key=f"{message.namespace}/{message.name}",
        cluster_ips=tuple(dict.fromkeys(_literals(message.cluster_ips))),
        ports=tuple(
            Port(
                port.name,
                _NETWORKS[port.protocol],
                port.port,
                port.node_port if port.node_port < 65536 else 0,
                port.app_protocol,
            )
            for port in message.ports
            if port.protocol in _NETWORKS and 0 < port.port < 65536
        ),
        endpoints=tuple(
            Endpoint(
                addresses=tuple(_literals(endpoint.addresses)),
                ports=tuple(
                    Port(port.name, _NETWORKS[port.protocol], port.port)
                    for port in endpoint.ports
                    if port.protocol in _NETWORKS and 0 < port.port < 65536
                ),
                node=endpoint.node_name.lower(),  # node names are lower case, as the kubelet makes them
                ready=endpoint.ready,
                hostname=endpoint.hostname.lower(),
                leaving=endpoint.leaving,
                pod=endpoint.pod,
                zone=endpoint.zone,
                for_zones=tuple(endpoint.for_zones),
                for_nodes=tuple(name.lower() for name in endpoint.for_nodes),
            )
            for endpoint in message.endpoints
        ),
        sticky=message.affinity_timeout.ToTimedelta().total_seconds()
        if message.session_affinity == "ClientIP"
        else 0.0,
        distribution=message.traffic_distribution,
        internal_policy=message.internal_traffic_policy,
        annotations={
            name.removeprefix(PREFIX): value for name, value in message.annotations.items() if name.startswith(PREFIX)
        },
        traffic_policy=message.traffic_policy,
        external_ips=tuple(dict.fromkeys(_literals(message.external_ips))),
        external_policy=message.external_traffic_policy,
        external_name=message.external_name.lower().removesuffix("."),
        labelled=FILTER_LABEL in message.labels,
    )


def _literals(texts: Sequence[str]) -> list[str]:
    literals = []
    for text in texts:
        try:
            literals.append(str(ipaddress.ip_address(text)))
        except ValueError:
            continue
    return literals
