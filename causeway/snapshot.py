"""What the four services of a node say of themselves now, merged into one dictionary: the keys of `status -o json`.

Keys are only ever added. Times are in seconds or, where the name says `_ms`, in milliseconds; sizes in bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from causeway import place
from causeway.wording import milliseconds, path_kind, peer_source, seconds
from protos import (
    discovery_pb2,
    discovery_pb2_grpc,
    proxy_pb2,
    proxy_pb2_grpc,
    relay_pb2,
    relay_pb2_grpc,
    tunnel_pb2,
    tunnel_pb2_grpc,
)
from services.runtime.dial import local_channel

_DEADLINE = 3.0  # seconds for a local call: a healthy service answers in milliseconds

_ASK: dict[str, Callable[[grpc.aio.Channel], Awaitable[Any]]] = {
    "discovery": lambda channel: discovery_pb2_grpc.DiscoveryServiceStub(channel).GetStatus(
        discovery_pb2.GetStatusRequest(), timeout=_DEADLINE
    ),
    "tunnel": lambda channel: tunnel_pb2_grpc.TunnelServiceStub(channel).GetStatus(
        tunnel_pb2.GetStatusRequest(), timeout=_DEADLINE
    ),
    "relay": lambda channel: relay_pb2_grpc.RelayServiceStub(channel).GetStatus(
        relay_pb2.GetStatusRequest(), timeout=_DEADLINE
    ),
    "proxy": lambda channel: proxy_pb2_grpc.ProxyServiceStub(channel).GetStatus(
        proxy_pb2.GetStatusRequest(), timeout=_DEADLINE
    ),
}


async def take(run_dir: Path) -> dict[str, Any]:
    """Asks the four sockets at once. A service that does not answer is in `services` with its error."""
    answers = await asyncio.gather(*(_ask(run_dir, name) for name in _ASK))
    services: dict[str, Any] = {}
    replies: dict[str, Any] = {}
    for name, (reply, error) in zip(_ASK, answers, strict=True):
        services[name] = {"up": not error, "error": error}
        if reply is not None:
            replies[name] = reply
    return merge(run_dir, services, **replies)


async def _ask(run_dir: Path, name: str) -> tuple[Any, str]:
    path = run_dir / f"{name}.sock"
    if not path.exists():
        return None, place.not_running(name, path)
    async with local_channel(run_dir, name) as channel:
        try:
            return await _ASK[name](channel), ""
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                return None, place.not_running(name, path)
            return None, f"{name} answered {error.code().name}: {error.details()}"


def merge(
    run_dir: Path,
    services: dict[str, Any],
    discovery: discovery_pb2.GetStatusResponse | None = None,
    tunnel: tunnel_pb2.GetStatusResponse | None = None,
    relay: relay_pb2.GetStatusResponse | None = None,
    proxy: proxy_pb2.GetStatusResponse | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """One dictionary with all keys always present; what an absent service would say is empty, null or 0. `now`: seconds
    since the Unix epoch, by default the clock's."""
    now = time.time() if now is None else now
    known = {peer.record.node_name: peer for peer in discovery.peers} if discovery else {}
    sessions = {session.peer: session for session in tunnel.sessions} if tunnel else {}
    node = next((reply.node_name for reply in (discovery, tunnel, relay, proxy) if reply), "")
    return {
        "node": node,
        "cluster": discovery.cluster if discovery else "",
        "zone": proxy.zone if proxy else "",
        "run_dir": str(run_dir),
        "services": services,
        "roles": {"relay": _relay_role(relay), "tunnel": _tunnel_role(tunnel)},
        "self": _self(discovery.self, now) if discovery else None,
        "peers": [
            _peer(name, known.get(name), sessions.get(name), now) for name in sorted({*known, *sessions} - {node})
        ],
        "relays": [_control(control) for control in tunnel.relays] if tunnel else [],
        "listeners": [_listener(listener) for listener in proxy.listeners] if proxy else [],
        "known_services": discovery.services if discovery else 0,
        "sources": dict(sorted(discovery.sources.items())) if discovery else {},
        "dht": _dht(discovery.dht if discovery and discovery.HasField("dht") else discovery_pb2.DhtStatus()),
        "streams": {"open": tunnel.streams if tunnel else 0, "total": tunnel.streams_total if tunnel else 0},
        "migrations": dict(tunnel.migrations) if tunnel else {},
        "connections": {
            "accepted_total": proxy.accepted_total if proxy else 0,
            "dialled_total": proxy.dialled_total if proxy else 0,
            "refused": dict(sorted(proxy.refused.items())) if proxy else {},
        },
        "warnings": [
            {"service": name, "message": message}
            for name, reply in (("discovery", discovery), ("tunnel", tunnel), ("relay", relay), ("proxy", proxy))
            if reply is not None
            for message in reply.warnings
        ],
    }


def _self(record: discovery_pb2.PeerRecord, now: float) -> dict[str, Any]:
    return {
        "revision": record.revision,
        "addresses": [address.ip for address in record.addresses],
        "tunnel_port": record.tunnel_port,
        "relay_port": record.relay_port,
        "discovery_port": record.discovery_port,
        "reservations": [{"relay": held.relay, "rtt_ms": milliseconds(held.rtt)} for held in record.reservations],
        "claim": _claim(record, now),
    }


def _dht(dht: discovery_pb2.DhtStatus) -> dict[str, Any]:
    return {
        "server": dht.server,
        "servers": dht.servers,
        "estimated": dht.estimated,
        "records": dht.records,
        "record_bytes": dht.record_bytes,
        "relays": dht.relays,
        "holders": list(dht.holders),
        "refreshed": seconds(dht.refreshed) if dht.HasField("refreshed") else None,
    }


def _tunnel_role(tunnel: tunnel_pb2.GetStatusResponse | None) -> dict[str, Any]:
    if tunnel is None:
        tunnel = tunnel_pb2.GetStatusResponse()
    return {"listen_port": tunnel.listen_port, "compiled": tunnel.compiled}


def _relay_role(relay: relay_pb2.GetStatusResponse | None) -> dict[str, Any]:
    if relay is None:
        relay = relay_pb2.GetStatusResponse()
    return {
        "active": relay.active,
        "reason": relay.reason,
        "draining": relay.draining,
        "listen_port": relay.listen_port,
        "load_permille": relay.load_permille,
        "conditions": [
            {"type": item.type, "status": item.status, "reason": item.reason, "message": item.message}
            for item in relay.conditions
        ],
        "reservations": [
            {"peer": item.peer, "observed": item.observed, "expires_in": seconds(item.expires_in)}
            for item in relay.reservations
        ],
        "circuits": [
            {
                "caller": item.caller,
                "callee": item.callee,
                "age": seconds(item.age),
                "bytes_from_caller": item.bytes_from_caller,
                "bytes_from_callee": item.bytes_from_callee,
            }
            for item in relay.circuits
        ],
        "bytes_total": relay.bytes_total,
        "circuits_total": relay.circuits_total,
        "refused_total": relay.refused_total,
    }


def _peer(name: str, peer: discovery_pb2.Peer | None, session: tunnel_pb2.Session | None, now: float) -> dict[str, Any]:
    links = [_link(link) for link in session.links] if session else []
    active = next((link for link in links if link["state"] == "active"), None)
    return {
        "name": name,
        "sources": [peer_source(source) for source in peer.sources] if peer else [],
        "verified": peer.verified if peer else False,
        "record_age": _age(peer.record, now) if peer else None,
        "addresses": [address.ip for address in peer.record.addresses] if peer else [],
        "is_relay": peer.record.HasField("relay") if peer else False,
        "relay_rank": peer.relay_rank if peer else 0,
        "claim": _claim(peer.record, now) if peer else None,
        "reservations": [held.relay for held in peer.record.reservations] if peer else [],
        "path": active["kind"] if active else "",
        "relay": active["relay"] if active else "",
        "rtt_ms": active["rtt_ms"] if active else None,
        "why": active["why"] if active else "",
        "session": _session(session) if session else None,
        "links": links,
    }


def _claim(record: discovery_pb2.PeerRecord, now: float) -> dict[str, Any] | None:
    """What a relay says that others found of it; None for a node that is no relay, or was not proven to be one."""
    role = record.relay
    if not role.proven:
        return None
    since = role.up_since.ToMilliseconds() / 1000 if role.HasField("up_since") else now
    return {
        "proven": list(role.proven),
        "bytes_per_second": role.throughput or None,
        "uptime": round(max(0.0, now - since), 3),
    }


def _age(record: discovery_pb2.PeerRecord, now: float) -> float | None:
    """Seconds since the peer signed its record, by its own clock; None for one that only the configuration names."""
    return round(max(0.0, now - record.issued_at.ToMilliseconds() / 1000), 3) if record.HasField("issued_at") else None


def _session(session: tunnel_pb2.Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "state": session.state,
        "streams": session.streams,
        "age": seconds(session.age),
        "bytes_sent": session.bytes_sent,
        "bytes_received": session.bytes_received,
        "unacked_bytes": session.unacked_bytes,
        "records_resent": session.records_resent,
        "records_duplicate": session.records_duplicate,
        "switches": session.switches,
    }


def _link(link: tunnel_pb2.Link) -> dict[str, Any]:
    return {
        "kind": path_kind(link.kind),
        "relay": link.relay,
        "remote": link.remote,
        "state": link.state,
        "rtt_ms": milliseconds(link.rtt),
        "age": seconds(link.age),
        "bytes_sent": link.bytes_sent,
        "bytes_received": link.bytes_received,
        "why": link.why,
    }


def _control(control: tunnel_pb2.RelayControl) -> dict[str, Any]:
    return {
        "relay": control.relay,
        "address": control.address,
        "state": control.state,
        "rtt_ms": milliseconds(control.rtt),
        "observed": control.observed,
        "expires_in": seconds(control.expires_in),
    }


def _listener(listener: proxy_pb2.Listener) -> dict[str, Any]:
    return {
        "address": listener.address,
        "network": listener.network,
        "service": listener.service,
        "endpoints": listener.endpoints,
        "error": listener.error,
        "preferred": listener.preferred,
        "intercepted": listener.intercepted,
    }
