"""Calls to the discovery services of other nodes."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from protos import discovery_pb2 as pb
from protos import discovery_pb2_grpc as pb_grpc
from services.runtime import dial, serve
from services.runtime.address import is_ip
from services.runtime.identity import Identity

from .core.contacts import MAX_ENDPOINTS, Contact, Endpoint
from .core.model import Signed
from .core.round import Wish
from .core.routing import K, Node
from .core.vantage import DialOutcome
from .probe import Unreachable, identify
from .resolver import Resolver
from .wire import (
    MAX_MESSAGE,
    MAX_WHERE,
    Report,
    outcome_from_wire,
    outcome_to_wire,
    relays_from_wire,
    relays_to_wire,
    server_from_wire,
    signed_from_wire,
    signed_to_wire,
)

# Seconds between two attempts on different addresses of one contact, after a public and after a private one (250 ms is
# what RFC 8305 suggests, 30 ms what go-libp2p takes for private addresses).
STAGGER_PUBLIC, STAGGER_PRIVATE = 0.25, 0.03
# Channels kept; the least recently used is closed. And names of nodes known by their address only.
MAX_CHANNELS, MAX_NAMES = 64, 256
# Seconds that the calls under way on a channel get when it is closed: the longest takes 12.
GRACE = 15.0
# Failures after which another address, or another time, may do better.
_TRANSPORT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

_T = TypeVar("_T")


class Refused(Exception):
    """Another discovery service was reached and said no; one line."""


@dataclass(frozen=True, slots=True)
class PutAnswer:
    """What came back for a published record: the callee's own, where it answered, and what it held under our name from
    another run."""

    own: Signed
    where: Endpoint
    conflicting: Signed | None


@dataclass(frozen=True, slots=True)
class DialledBack:
    """A vantage dialled us at `ip`."""

    ip: str
    outcome: DialOutcome


@dataclass(frozen=True, slots=True)
class OfferAnswer:
    """What came back for an offer: the callee's own record, what to dial, and seconds until the next offer."""

    own: Signed
    wish: Wish | None
    again: float


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a ping: the callee's own record, where it answered, and records of relays; nothing verified."""

    own: Signed
    where: Endpoint
    relays: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a question of the DHT: where it was answered, servers near to the key, and the record, not verified."""

    where: Endpoint
    servers: tuple[Node, ...]
    record: Signed | None


class NodeClient:
    """Calls to PeerService. All raise Unreachable or Refused; `timeout` in seconds is for the whole call."""

    def __init__(self, identity: Identity, resolver: Resolver) -> None:
        self._identity = identity
        self._resolver = resolver
        self._channels: OrderedDict[tuple[Endpoint, str], tuple[int, grpc.aio.Channel]] = OrderedDict()
        self._names: OrderedDict[Endpoint, str] = OrderedDict()
        self._located: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    async def ping(self, contact: Contact, *, timeout: float) -> tuple[Signed, Endpoint]:
        """The own record of the contact, and where it answered."""
        told = await self.tell(contact, (), timeout=timeout)
        return told.own, told.where

    async def tell(self, contact: Contact, relays: Iterable[Signed], *, timeout: float) -> Told:
        """A ping that tells of relays."""
        request = pb.PingRequest(relays=relays_to_wire(relays))

        async def call(stub: pb_grpc.PeerServiceAsyncStub, endpoint: Endpoint) -> Told:
            answer = await stub.Ping(request, timeout=timeout)
            return Told(signed_from_wire(answer.record), endpoint, relays_from_wire(answer.relays))

        return await self._race(contact, call, timeout)

    async def find(
        self, contact: Contact, key: int, name: str, callback: Iterable[Endpoint], *, timeout: float
    ) -> Found:
        """The servers nearest to a key; with a `name` to that node's, and its record."""
        request = pb.FindNodeRequest(callback=[str(it) for it in callback][:MAX_WHERE])
        if name:
            request.node_name = name
        else:
            request.key = key.to_bytes(32, "big")

        async def call(stub: pb_grpc.PeerServiceAsyncStub, endpoint: Endpoint) -> Found:
            answer = await stub.FindNode(request, timeout=timeout)
            servers = tuple(server_from_wire(it, self._identity.cluster) for it in answer.servers[:K])
            return Found(endpoint, servers, signed_from_wire(answer.record) if answer.HasField("record") else None)

        return await self._race(contact, call, timeout)

    async def put(self, contact: Contact, signed: Signed, *, timeout: float) -> PutAnswer:
        """Publish a record."""
        request = pb.PutRecordRequest(record=signed_to_wire(signed))

        async def call(stub: pb_grpc.PeerServiceAsyncStub, endpoint: Endpoint) -> PutAnswer:
            answer = await stub.PutRecord(request, timeout=timeout)
            conflicting = signed_from_wire(answer.conflicting) if answer.HasField("conflicting") else None
            return PutAnswer(signed_from_wire(answer.record), endpoint, conflicting)

        return await self._race(contact, call, timeout)

    async def get(self, contact: Contact, node_name: str, *, timeout: float) -> Signed | None:
        """The record of a node; None when it is not known there."""
        request = pb.GetRecordRequest(node_name=node_name)

        async def call(stub: pb_grpc.PeerServiceAsyncStub, _: Endpoint) -> Signed | None:
            try:
                return signed_from_wire((await stub.GetRecord(request, timeout=timeout)).record)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                raise

        return await self._race(contact, call, timeout)

    async def dial_back(
        self, contact: Contact, ip: str, port: int, token: bytes, work: bytes, *, timeout: float
    ) -> DialledBack:
        """Have the contact dial us at `ip`; empty: where it sees us."""
        request = pb.DialBackRequest(ip=ip, port=port, token=token, work=work)

        async def call(stub: pb_grpc.PeerServiceAsyncStub, _: Endpoint) -> DialledBack:
            answer = await stub.DialBack(request, timeout=timeout)
            return DialledBack(answer.ip, outcome_from_wire(answer.outcome))

        return await self._race(contact, call, timeout)

    async def offer(
        self, contact: Contact, reports: Iterable[Report], *, timeout: float
    ) -> tuple[OfferAnswer, Endpoint]:
        """Offer to dial the contact, with reports of what it wished for; the answer, and where it answered."""
        request = pb.OfferDialBackRequest(
            reports=[pb.DialBackReport(token=it.token, ip=it.ip, outcome=outcome_to_wire(it.outcome)) for it in reports]
        )

        async def call(stub: pb_grpc.PeerServiceAsyncStub, endpoint: Endpoint) -> tuple[OfferAnswer, Endpoint]:
            answer = await stub.OfferDialBack(request, timeout=timeout)
            wish = Wish(answer.wish.port, answer.wish.token) if answer.HasField("wish") else None
            again = answer.again.ToNanoseconds() / 1e9
            return OfferAnswer(signed_from_wire(answer.record), wish, again), endpoint

        return await self._race(contact, call, timeout)

    async def close(self) -> None:
        """Close all channels; later calls make new ones. Connections from an address that is gone are dead."""
        closing = dict(self._closing)
        for task in closing:
            task.cancel()
        channels = [*closing.values(), *(channel for _, channel in self._channels.values())]
        self._channels.clear()
        await asyncio.gather(*closing, return_exceptions=True)
        await asyncio.gather(*(channel.close(None) for channel in channels))

    async def _race(
        self,
        contact: Contact,
        call: Callable[[pb_grpc.PeerServiceAsyncStub, Endpoint], Awaitable[_T]],
        timeout: float,
    ) -> _T:
        """Try the contact's addresses, each a moment after the one before; the first answer wins.

        Addresses that lost, or took too long, lose their channel: it may be dead without knowing, for minutes. A caller
        that gives up says nothing of that, so it leaves the channel to others.
        """
        tried: dict[asyncio.Task[_T], Endpoint] = {}
        running: set[asyncio.Task[_T]] = set()
        problems: list[str] = []
        try:
            async with asyncio.timeout(timeout):
                waiting = [found for endpoint in contact.endpoints for found in await self._locate(endpoint, problems)]
                while waiting or running:
                    pause = None
                    if waiting:
                        endpoint = waiting.pop(0)
                        attempt = asyncio.create_task(self._attempt(endpoint, contact.node_name, call))
                        tried[attempt] = endpoint
                        running.add(attempt)
                        private = ipaddress.ip_address(endpoint.host).is_private
                        pause = (STAGGER_PRIVATE if private else STAGGER_PUBLIC) if waiting else None
                    done, running = await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        if task.cancelled():  # not by us: its channel was closed
                            problems.append(f"{contact.key}: the network changed during the call")
                            continue
                        error = task.exception()
                        if not isinstance(error, Unreachable):
                            self._forsake((tried[it] for it in running), contact.node_name)
                            return task.result()
                        problems.append(str(error))
        except TimeoutError:
            self._forsake((tried[it] for it in running), contact.node_name)
            problems.append(f"no answer within {timeout:.0f} s")
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        raise Unreachable("; ".join(problems[:3]) or f"{contact.key}: no address is known")

    async def _locate(self, endpoint: Endpoint, problems: list[str]) -> list[Endpoint]:
        """The endpoint with its name resolved; the last answer stays while the name server does not answer."""
        if is_ip(endpoint.host):
            return [endpoint]
        try:
            ips = self._located[endpoint.host] = await self._resolver.resolve(endpoint.host)
            if len(self._located) > MAX_NAMES:
                self._located.popitem(last=False)
        except OSError as error:
            ips = self._located.get(endpoint.host, ())
            if not ips:
                problems.append(f"{endpoint.host} does not resolve: {error}")
        return [Endpoint(ip, endpoint.port) for ip in ips[:MAX_ENDPOINTS]]

    async def _attempt(
        self,
        endpoint: Endpoint,
        node_name: str,
        call: Callable[[pb_grpc.PeerServiceAsyncStub, Endpoint], Awaitable[_T]],
    ) -> _T:
        name = node_name or self._names.get(endpoint, "")
        if not name:
            name = self._names[endpoint] = await identify(endpoint, self._identity)
            if len(self._names) > MAX_NAMES:
                self._names.popitem(last=False)
        if name == self._identity.node_name and not node_name:
            raise Unreachable(f"{endpoint}: this is {name} itself")
        try:
            return await call(pb_grpc.PeerServiceStub(self._channel(endpoint, name)), endpoint)
        except grpc.aio.UsageError as error:
            raise Unreachable(f"{endpoint}: the network changed during the call") from error
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TRANSPORT:
                raise Refused(
                    f"{name} refused: {dial.reason(error) or error.code().name}: {error.details()}"
                ) from error
            # A channel remembers its failures and would wait; a new one dials at once.
            self._drop(endpoint, name)
            self._names.pop(endpoint, None)
            raise Unreachable(await self._explain(endpoint, name, error.details() or error.code().name)) from error

    async def _explain(self, endpoint: Endpoint, name: str, details: str) -> str:
        # pyOpenSSL is not needed as long as everybody is who they should be.
        from services.runtime.diagnosis import GOOD, diagnose

        text = await diagnose(self._identity, endpoint.host, endpoint.port, name)
        return f"{endpoint}: {details}" if text.endswith(GOOD) else text

    def _channel(self, endpoint: Endpoint, name: str) -> grpc.aio.Channel:
        key = (endpoint, name)
        if key in self._channels and self._channels[key][0] != self._identity.generation:
            self._drop(*key)
        _, channel = self._channels.get(key, (0, None))
        if channel is None:
            channel = grpc.aio.secure_channel(
                # A URI, in which the % before the interface of a link-local address has to be written so.
                f"ipv{6 if ':' in endpoint.host else 4}:{str(endpoint).replace('%', '%25')}",
                self._identity.channel_credentials(),
                options=self._options(name),
                interceptors=dial.interceptors(),
            )
            self._channels[key] = (self._identity.generation, channel)
        self._channels.move_to_end(key)
        if len(self._channels) > MAX_CHANNELS:
            self._drop(*next(iter(self._channels)))
        return channel

    def _options(self, name: str) -> list[tuple[str, Any]]:
        return [
            ("grpc.ssl_target_name_override", self._identity.target_name(name)),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.client_idle_timeout_ms", 60_000),
            serve.NO_BANDWIDTH_PROBES,
            # Else channels to one address share a connection, whoever they expect there.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
        ]

    def _forsake(self, endpoints: Iterable[Endpoint], node_name: str) -> None:
        for endpoint in endpoints:
            self._drop(endpoint, node_name or self._names.get(endpoint, ""))

    def _drop(self, endpoint: Endpoint, name: str) -> None:
        """Nobody begins a call on this channel any more; those under way may end well."""
        _, channel = self._channels.pop((endpoint, name), (0, None))
        if channel is not None:
            task = asyncio.create_task(channel.close(GRACE), name=f"close the channel to {name}")
            self._closing[task] = channel
            task.add_done_callback(self._closing.pop)
