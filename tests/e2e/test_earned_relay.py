"""The role of a relay is earned: given to who can be reached, taken from who cannot, and said why; behind real NATs."""

import asyncio
import contextlib
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.nat import Kind, Nat
from lab.network import Host, Network
from lab.node import Node, together
from lab.place import simulated
from protos import relay_pb2
from tests.e2e import figures
from tests.e2e.conftest import require_simulation
from tests.e2e.traffic import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]

PSK = "a secret of the tests of earned relays, long enough"
INTERVAL = 3.0  # seconds between two rounds of probes, where a test waits for several
PATIENCE = 60.0  # seconds for what takes about ten
SERVICES = ("discovery", "relay", "tunnel")


@pytest.fixture
def folder(short_path: Path) -> Path:
    require_simulation()
    return short_path


def make(folder: Path, host: Host, *, contact: Host | None = None, **options: Any) -> Node:
    """A node that no configuration names; it knows one discovery address, or none at all."""
    modules: dict[str, dict[str, Any]] = {}
    if not figures.asked():
        modules["edgeRelay"] = {"probeIntervalSeconds": INTERVAL}
    if contact is not None:
        modules["edgeDiscovery"] = {"bootstrap": [f"{contact.address}:20008"]}
    return Node(simulated(host), folder / host.name, psk=PSK, modules=modules, **options)


@contextlib.asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Started, and stopped in the end; what they said is printed when something fails."""
    try:
        for node in nodes:
            node.start(*SERVICES)
        await together(node.ready(*SERVICES) for node in nodes)
        yield
    except BaseException:
        for node in nodes:
            for service in SERVICES:
                print(f"--- {node.name} {service}\n{node.log(service).read_text()}")
        raise
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def condition(node: Node, kind: str = "RelayCapable") -> relay_pb2.Condition:
    return next(it for it in (await node.relay()).conditions if it.type == kind)


async def becomes(node: Node, active: bool, reason: str) -> relay_pb2.Condition:
    """Waits until the node is a relay, or is none, for this reason."""

    async def so() -> bool:
        now = await condition(node)
        return (await node.relay()).active is active and now.status is active and now.reason == reason

    await eventually(so, f"{node.name}: active={active} ({reason})", PATIENCE)
    print(f"{time.monotonic():.1f} s: {node.name} active={active}: {reason}")
    return await condition(node)


async def meet(one: Node, other: Node, relay: str) -> None:
    """Waits until two nodes talk, and do so through this relay."""

    async def talk() -> bool:
        await one.ping(other.name, timeout=5)
        active = await one.active(other.name)
        return active is not None and active.relay == relay

    await eventually(talk, f"{one.name} and {other.name} talk through {relay}", PATIENCE)


async def status(node: Node) -> str:
    """What `causeway status` prints, without line breaks."""
    argv = (sys.executable, "-m", "causeway", "status", "--config", str(node.config_file))
    process = await asyncio.create_subprocess_exec(*argv, env=os.environ | {"COLUMNS": "400"}, stdout=PIPE)
    printed, _ = await process.communicate()
    return printed.decode()


def wall(host: Host, rule: str) -> None:
    """What the host itself lets nobody do any more; `open_up` takes it back."""
    host.namespace.nft(f"table inet wall {{\nchain input {{ type filter hook input priority 0; {rule} drop; }}\n}}\n")


def open_up(host: Host) -> None:
    host.namespace.nft("delete table inet wall")


async def stays(node: Node, seconds: float) -> None:
    """Fails when the node becomes a relay within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert not (await node.relay()).active
        await asyncio.sleep(0.2)


async def test_a_public_node_that_nobody_named_becomes_the_relay_of_two_behind_nats_and_again_after_a_wall(
    folder: Path,
) -> None:
    with Network() as net:
        public = net.public("p")
        homes = [net.lan(f"{name}-lan", Nat(Kind.SYMMETRIC)).host(name) for name in ("a", "b")]
        p = make(folder, public)
        a, b = (make(folder, host, contact=public) for host in homes)
        began = time.monotonic()
        async with running(p, a, b):
            await meet(a, b, "p")
            talked = time.monotonic() - began
            figures.note("earned", talked)
            print(f"a and b talked {talked:.1f} s after the start")
            if figures.asked():
                return  # with the usual interval the rest takes long
            found = await becomes(p, True, "Proven")
            assert public.address in found.message
            assert (await condition(p, "Reachable")).status
            record = {peer.record.node_name: peer.record for peer in (await a.discovery()).peers}["p"]
            assert list(record.relay.proven) == [public.address] and not record.relay.configured
            assert record.relay.throughput > 0 and record.relay.up_since.seconds > 0
            # Those behind NATs stay ordinary, and say why.
            assert not (await a.relay()).active
            assert not (await condition(b, "Reachable")).status

            # Nobody new gets in, and those who were inside say so.
            wall(public, "tcp dport 20007 ct state new")
            found = await becomes(p, False, "Unreachable")
            assert "no answer" in found.message and public.address in found.message
            assert "relay gives up its role" in p.log("relay").read_text()
            open_up(public)
            await becomes(p, True, "Proven")
            await meet(a, b, "p")

            # Nothing at all gets in: those who came regularly do not come back.
            wall(public, "tcp dport 20006-20008")
            found = await becomes(p, False, "Unreachable")
            open_up(public)
            await becomes(p, True, "Proven")
            await meet(b, a, "p")


async def test_one_that_is_named_and_cannot_be_reached_stays_ordinary_and_says_why(folder: Path) -> None:
    with Network() as net:
        public, home = net.public("p"), net.lan("home")
        place = simulated(home.host("n"))
        named = replace(place, address=home.wan_address)  # what relayNodes says: the router's address
        p = Node(simulated(public), folder / "p", psk=PSK, relays=[named], relay_mode="off")
        n = Node(
            place,
            folder / "n",
            psk=PSK,
            relays=[named],
            modules={"edgeDiscovery": {"bootstrap": [f"{public.address}:20008"]}},
        )
        async with running(p, n):
            assert (await condition(n)).reason in ("Unproven", "Unreachable")
            found = await becomes(n, False, "Unreachable")
            assert f"stays ordinary: {home.wan_address} cannot be reached (p: " in found.message
            assert not (await condition(n, "Reachable")).status
            await stays(n, 3.0)
            shown = await status(n)
            assert "RelayCapable=False (Unreachable)" in shown and f"{home.wan_address} cannot be reached" in shown
            assert "RelayCapable=False (Unreachable)" in n.log("relay").read_text()
            record = {peer.record.node_name: peer.record for peer in (await p.discovery()).peers}["n"]
            assert not record.HasField("relay")


async def test_a_node_with_a_private_address_is_the_relay_of_two_private_subnets(folder: Path) -> None:
    with Network() as net:
        plant = net.lan("plant")
        hub = plant.host("h")
        halls = [net.lan(f"{name}-lan", Nat(Kind.SYMMETRIC), behind=plant).host(name) for name in ("a", "b")]
        h = make(folder, hub)
        a, b = (make(folder, host, contact=hub) for host in halls)
        async with running(h, a, b):
            await meet(a, b, "h")
            found = await becomes(h, True, "Proven")
            assert hub.address in found.message and hub.address.startswith("192.168.")
