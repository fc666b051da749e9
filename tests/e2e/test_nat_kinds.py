"""`netcheck` behind real NATs: every kind is told for what it is."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.folder import short_folder
from lab.nat import Kind, Nat
from lab.network import Lan, Network
from lab.node import Node, together
from lab.place import simulated
from protos import tunnel_pb2 as pb
from tests.e2e.conftest import require_simulation
from tests.e2e.traffic import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]

PSK = "a secret of the tests of NAT kinds, long enough"
NONE, INDEPENDENT, DEPENDENT = (
    pb.NAT_MAPPING_NONE,
    pb.NAT_MAPPING_ENDPOINT_INDEPENDENT,
    pb.NAT_MAPPING_ENDPOINT_DEPENDENT,
)
ANYBODY, ADDRESS, PORT = (
    pb.NAT_FILTERING_ENDPOINT_INDEPENDENT,
    pb.NAT_FILTERING_ADDRESS_DEPENDENT,
    pb.NAT_FILTERING_ADDRESS_AND_PORT_DEPENDENT,
)
YES, NO, UNKNOWN = pb.FINDING_YES, pb.FINDING_NO, pb.FINDING_UNSPECIFIED


@dataclass
class Scene:
    """r1 and r2 are public relays; `home` is behind a router whose rules a test exchanges; `office` behind a firewall;
    `flat` behind its own router and the carrier's."""

    r1: Node
    r2: Node
    home: Node
    office: Node
    flat: Node
    router: Lan

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.r1, self.r2, self.home, self.office, self.flat)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    require_simulation()
    with short_folder() as folder, Network() as net:
        relays = [simulated(net.public(name, ipv6=True)) for name in ("r1", "r2")]
        router = net.lan("home")
        places = [
            router.host("home"),
            net.lan("office", Nat(Kind.FIREWALL), ipv6=True).host("office"),
            net.lan("flat", behind=net.lan("carrier", carrier=True)).host("flat"),
        ]
        r1, r2 = (Node(it, folder / it.name, psk=PSK, relays=relays) for it in relays)
        home, office, flat = (
            Node(simulated(it), folder / it.name, psk=PSK, relays=relays, relay_mode="off") for it in places
        )
        made = Scene(r1, r2, home, office, flat, router)
        try:
            for node in made.nodes:
                services = ("discovery", "tunnel") + (("relay",) if node in (r1, r2) else ())
                node.start(*services)
            asyncio.run(together(node.ready(*node.started) for node in made.nodes))
            yield made
        finally:
            asyncio.run(together(_stop(node) for node in made.nodes))


async def _stop(node: Node) -> None:
    await node.stop(timeout=5)


async def exchange(scene: Scene, nat: Nat) -> None:
    """Another router in the same place. The tunnel starts anew: a router that has forgotten a connection learns it
    again only when the connection is used, and heartbeats are seconds apart."""
    scene.router.nat = nat
    scene.router.flush()
    await scene.home.restart("tunnel")
    await reserved(scene.home)


async def reserved(node: Node) -> None:
    async def both() -> bool:
        return [relay.state for relay in (await node.tunnel()).relays] == ["reserved"] * 2

    await eventually(both, f"{node.name} has reservations on both relays")


async def knows_ipv6(node: Node) -> None:
    """The relays' own addresses of both families came in their records: the configuration has only IPv4."""

    async def known() -> bool:
        peers = [peer for peer in (await node.discovery()).peers if peer.record.node_name in {"r1", "r2"} - {node.name}]
        return all(any(":" in address.ip for address in peer.record.addresses) for peer in peers)

    await eventually(known, f"{node.name} knows the relays' IPv6 addresses")


def listen_port(found: pb.NetCheckResponse, ip: str) -> pb.CheckedAddress:
    shown = f"[{ip}]:20006" if ":" in ip else f"{ip}:20006"
    return next(address for address in found.addresses if address.address == shown)


@pytest.mark.parametrize(
    ("nat", "kind", "mapping", "filtering", "reachable", "hairpin"),
    [
        (Nat(Kind.FULL_CONE, hairpin=True), pb.NAT_KIND_FULL_CONE, INDEPENDENT, ANYBODY, YES, YES),
        (Nat(Kind.RESTRICTED), pb.NAT_KIND_RESTRICTED, INDEPENDENT, ADDRESS, UNKNOWN, NO),
        (Nat(Kind.PORT_RESTRICTED), pb.NAT_KIND_PORT_RESTRICTED, INDEPENDENT, PORT, NO, NO),
        (Nat(Kind.PORT_RESTRICTED, answers_rst=True), pb.NAT_KIND_PORT_RESTRICTED, INDEPENDENT, PORT, NO, NO),
        (Nat(Kind.SYMMETRIC), pb.NAT_KIND_SYMMETRIC, DEPENDENT, PORT, NO, NO),
    ],
    ids=["full-cone", "restricted", "port-restricted", "port-restricted-resets", "symmetric"],
)
async def test_a_router(
    scene: Scene, nat: Nat, kind: int, mapping: int, filtering: int, reachable: int, hairpin: int
) -> None:
    await exchange(scene, nat)
    found = await scene.home.netcheck()
    assert (found.kind, found.mapping, found.filtering) == (kind, mapping, filtering), found
    assert found.hairpin == hairpin, found
    assert found.port_preserved == (NO if nat.kind is Kind.SYMMETRIC else YES)
    assert listen_port(found, scene.router.wan_address).reachable == reachable, found
    assert listen_port(found, scene.home.place.address).reachable == UNKNOWN
    assert sorted(relay.relay for relay in found.relays if relay.HasField("rtt")) == ["r1", "r2"]
    assert not found.notes


async def test_no_router_a_firewall_and_a_carrier(scene: Scene) -> None:
    await together(reserved(node) for node in (scene.office, scene.flat))
    await together(knows_ipv6(node) for node in (scene.r1, scene.office))
    public, office, flat = await asyncio.gather(*(node.netcheck() for node in (scene.r1, scene.office, scene.flat)))

    # With a single relay: nothing is translated, so that one is a stranger to a port that never sent anything.
    assert (public.kind, public.mapping, public.filtering) == (pb.NAT_KIND_PUBLIC, NONE, ANYBODY), public
    assert {address.address: address.reachable for address in public.addresses} == {
        "203.0.113.1:20006": YES,
        "[2001:db8::1]:20006": YES,
    }, public
    assert not public.hairpin

    assert (office.kind, office.mapping, office.filtering) == (pb.NAT_KIND_FIREWALL, NONE, PORT), office
    assert listen_port(office, scene.office.place.address).reachable == NO
    assert [it.reachable for it in office.addresses if it.address.startswith("[2001:")] == [NO], office

    assert (flat.kind, flat.mapping, flat.filtering) == (pb.NAT_KIND_PORT_RESTRICTED, INDEPENDENT, PORT), flat
    assert flat.addresses[0].reachable == NO


async def test_the_command(scene: Scene) -> None:
    """In words and as JSON; a relay that is silent is named with the reason."""
    await exchange(scene, Nat(Kind.PORT_RESTRICTED))
    text = await command(scene.home)
    assert "behind a port-restricted NAT (easy): two such nodes can punch" in text
    assert "203.0.113.1:20007" in text and "203.0.113.2:20007" in text

    scene.r2.silence()
    try:
        found = json.loads(await command(scene.home, "-o", "json"))
    finally:
        scene.r2.unsilence()
    assert found["nat"]["mapping"] == "" and "second relay" in found["nat"]["mapping_why"]
    assert found["nat"]["filtering"] == "address-and-port-dependent"
    dead = next(relay for relay in found["relays"] if relay["relay"] == "r2" and relay["address"].startswith("203."))
    assert dead["rtt_ms"] is None and "no answer" in dead["error"]
    assert found["took"] < 60


async def command(node: Node, *arguments: str) -> str:
    argv = [sys.executable, "-m", "causeway", "netcheck", "--config", str(node.config_file), *arguments]
    run: Any = asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=120)
    done = await run
    assert done.returncode == 0, done.stderr
    return str(done.stdout)
