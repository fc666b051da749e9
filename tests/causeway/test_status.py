"""The merged status: stable keys whatever runs, and what a person sees of it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from causeway import snapshot, view
from causeway.status import status
from protos import discovery_pb2, proxy_pb2, relay_pb2, tunnel_pb2

UP = {"up": True, "error": ""}
SERVICES = dict.fromkeys(("discovery", "tunnel", "relay", "proxy"), UP)


def discovery() -> discovery_pb2.GetStatusResponse:
    status = discovery_pb2.GetStatusResponse(node_name="edge-a", cluster="lab", services=2, warnings=["clock is off"])
    status.sources["mdns"] = "2 interfaces"
    status.dht.servers = 3
    status.dht.holders.extend(["r1", "r2"])
    status.dht.refreshed.FromSeconds(12)
    status.self.node_name = "edge-a"
    status.self.tunnel_port = 20006
    status.self.addresses.add(ip="10.0.0.1")
    for name, source in (("edge-a", "SELF"), ("edge-b", "LOOKUP"), ("r1", "CONFIG")):
        peer = status.peers.add(
            sources=[discovery_pb2.PeerSource.Value(f"PEER_SOURCE_{source}")], verified=name != "r1"
        )
        peer.record.node_name = name
    status.peers[2].record.relay.configured = True
    status.peers[2].relay_rank = 1
    return status


def tunnel() -> tunnel_pb2.GetStatusResponse:
    status = tunnel_pb2.GetStatusResponse(node_name="edge-a", listen_port=20006, streams=3, streams_total=70)
    session = status.sessions.add(id="0a1b2c3d", peer="edge-b", state="up", streams=3, bytes_sent=2**40, switches=1)
    active = session.links.add(kind=tunnel_pb2.PATH_KIND_RELAYED, relay="r2", state="active", why="only path")
    active.rtt.FromMicroseconds(40_123)
    session.links.add(kind=tunnel_pb2.PATH_KIND_RELAYED, relay="r1", state="standby")
    control = status.relays.add(
        relay="r2", address="203.0.113.2:20007", state="reserved", observed="198.51.100.1:20006"
    )
    control.expires_in.FromSeconds(1800)
    return status


def relay() -> relay_pb2.GetStatusResponse:
    status = relay_pb2.GetStatusResponse(
        node_name="edge-a", active=True, reason="named in relayNodes", listen_port=20007
    )
    status.conditions.add(type="RelayCapable", status=True, reason="Configured", message="named")
    status.circuits.add(caller="x", callee="y", bytes_from_caller=1536)
    return status


def proxy() -> proxy_pb2.GetStatusResponse:
    status = proxy_pb2.GetStatusResponse(node_name="edge-a", zone="eu-1", accepted_total=5)
    status.listeners.add(address="127.0.9.1:80", network="tcp", service="default/web:80", endpoints=2, preferred=1)
    status.listeners.add(address="127.0.9.1:53", network="udp", service="default/dns:53", error="address in use")
    status.refused["denied"] = 4
    return status


def full() -> dict[str, Any]:
    return snapshot.merge(Path("/run/c"), SERVICES, discovery(), tunnel(), relay(), proxy())


def test_it_is_json_with_all_numbers_as_numbers() -> None:
    found = json.loads(json.dumps(full()))
    assert found["peers"][0]["session"]["bytes_sent"] == 2**40
    assert found["peers"][0]["rtt_ms"] == 40.123


def test_peers_are_joined_with_their_sessions_and_without_the_node_itself() -> None:
    edge_b, r1 = full()["peers"]
    assert (edge_b["name"], edge_b["path"], edge_b["relay"], edge_b["why"]) == ("edge-b", "relayed", "r2", "only path")
    assert edge_b["sources"] == ["lookup"] and edge_b["verified"]
    assert (r1["name"], r1["path"], r1["rtt_ms"], r1["session"]) == ("r1", "", None, None)
    assert (r1["is_relay"], r1["relay_rank"], r1["verified"]) == (True, 1, False)


def test_what_is_remembered_of_a_peer_has_an_age() -> None:
    reply = discovery()
    reply.peers[1].sources[:] = [discovery_pb2.PEER_SOURCE_CACHE]
    reply.peers[1].record.issued_at.FromSeconds(1_800_000_000)
    found = snapshot.merge(Path("/run/c"), SERVICES, reply, now=1_800_010_000.0)
    edge_b, r1 = found["peers"]
    assert (edge_b["record_age"], r1["record_age"]) == (10_000, None)
    assert "cache (2 h old)" in text_of(found)
    # Somebody vouches for it now.
    reply.peers[1].sources[:] = [discovery_pb2.PEER_SOURCE_MDNS]
    found = snapshot.merge(Path("/run/c"), SERVICES, reply, now=1_800_010_000.0)
    assert found["peers"][0]["record_age"] == 10_000 and " old)" not in text_of(found)


def test_what_an_earned_relay_claims_is_shown() -> None:
    reply = discovery()
    reply.self.relay.proven.append("203.0.113.7")
    role = reply.peers[2].record.relay
    role.proven.append("203.0.113.1")
    role.throughput = 3 << 20
    role.up_since.FromSeconds(1_800_000_000)
    found = snapshot.merge(Path("/run/c"), SERVICES, reply, now=1_800_010_000.0)
    edge_b, r1 = found["peers"]
    assert r1["claim"] == {"proven": ["203.0.113.1"], "bytes_per_second": 3 << 20, "uptime": 10_000}
    assert edge_b["claim"] is None
    assert found["self"]["claim"] == {"proven": ["203.0.113.7"], "bytes_per_second": None, "uptime": 0}
    assert "r1 (relay, 3.0 MiB/s, up 2 h)" in text_of(found)


def text_of(found: dict[str, Any]) -> str:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(view.render(found))
    return console.export_text()


def test_the_dht_is_shown() -> None:
    found = full()["dht"]
    assert (found["servers"], found["holders"], found["refreshed"]) == (3, ["r1", "r2"], 12)


def test_a_data_path_that_is_not_compiled_is_told() -> None:
    reply = tunnel()
    for compiled in (False, True):
        reply.compiled = compiled
        found = snapshot.merge(Path("/run/c"), SERVICES, tunnel=reply)
        assert found["roles"]["tunnel"] == {"listen_port": 20006, "compiled": compiled}
        assert ("3 open, 70 since the start; the data path is interpreted" in text_of(found)) is not compiled
    away = SERVICES | {"tunnel": {"up": False, "error": "down"}}
    assert "interpreted" not in text_of(snapshot.merge(Path("/run/c"), away)), "nobody knows"


def test_a_session_with_a_node_that_discovery_does_not_know_is_shown() -> None:
    found = snapshot.merge(Path("/run/c"), SERVICES, tunnel=tunnel())
    assert [peer["name"] for peer in found["peers"]] == ["edge-b"]
    assert found["node"] == "edge-a"


def test_the_keys_do_not_depend_on_what_runs() -> None:
    none = snapshot.merge(Path("/run/c"), {name: {"up": False, "error": "down"} for name in SERVICES})
    everything = full()
    assert none.keys() == everything.keys()
    for part in ("roles", "streams", "connections", "dht"):
        assert none[part].keys() == everything[part].keys()
    assert none["roles"]["relay"].keys() == everything["roles"]["relay"].keys()


def test_the_help_names_every_key() -> None:
    text = status.get_help(status.make_context("status", [], resilient_parsing=True))

    def names(found: Any) -> set[str]:
        if isinstance(found, list):
            return names(found[0]) if found else set()
        return set(found).union(*map(names, found.values())) if isinstance(found, dict) else set()

    found = full()
    # The insides of sessions, links, circuits, … are told by the .proto; what a script starts from is told here.
    outer = set(found) | names(found["services"]["tunnel"]) | set(found["peers"][0]) | set(found["roles"]["relay"])
    outer |= names(found["relays"]) | names(found["listeners"]) | names(found["warnings"]) | set(found["self"])
    assert {name for name in outer if name not in text} == set()


@pytest.mark.parametrize("width", [80, 400])
def test_a_person_sees_who_how_and_why(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view.render(full()))
    text = " ".join(console.export_text().split())
    for word in (
        "edge-a",
        "lab",
        "edge-b",
        "standby",
        "40.1 ms",
        "1.0 TiB",
        "default/web:80",
        "denied 4",
        "clock is off",
    ):
        assert word in text, word
    if width == 400:
        assert "relayed via r2 (standby r1)" in text
        assert "named in relayNodes; port 20007" in text
        assert "config (unverified)" in text
        assert "address in use" in text
        assert "zone eu-1" in text and "2, 1 preferred" in text


def test_what_peers_say_of_themselves_is_no_markup() -> None:
    reply = tunnel()
    reply.sessions[0].peer = "[red]evil[/red]"
    reply.sessions[0].links[0].why = "[/]"
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(view.render(snapshot.merge(Path("/run/c"), SERVICES, tunnel=reply)))
    assert "[red]evil[/red]" in console.export_text()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**60, "1048576.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert view.size(count) == text
