"""The network check of real nodes, where there is nothing to be found out: on loopback, without relays, offline."""

import asyncio
import socket
from pathlib import Path

import pytest

from lab.node import Node
from protos import tunnel_pb2 as pb
from tests.tunnel.conftest import PSK, Nodes
from tests.tunnel.local import until

pytestmark = pytest.mark.slow  # real processes, and a silent relay takes seconds


async def test_one_relay_beside_the_node(nodes: Nodes) -> None:
    async def reserved() -> bool:
        return any(relay.state == "reserved" for relay in (await nodes.a.tunnel()).relays)

    await until(reserved, "a holds its place at r")
    found = await nodes.a.netcheck()
    # A relay in the node's own network has nothing to say about a NAT.
    assert found.kind == pb.NAT_KIND_UNSPECIFIED
    assert "own network" in found.mapping_why and found.verdict.startswith("unknown")
    (relay,) = found.relays
    assert relay.relay == "r" and relay.reserved and not relay.error
    assert relay.rtt.ToNanoseconds() > 0
    assert relay.observed.rpartition(":")[0] == nodes.a.place.address
    # It dialled the listen port and said its token there.
    (address,) = [one for one in found.addresses if one.address == f"{nodes.a.place.address}:20006"]
    assert address.reachable == pb.FINDING_YES and address.why == "r got in"


async def test_a_check_leaves_nothing_behind_and_disturbs_nobody(nodes: Nodes) -> None:
    before = await nodes.a.tunnel()
    first, second = await asyncio.gather(nodes.a.netcheck(), nodes.a.netcheck())
    assert first == second, "who asks meanwhile gets the same report"
    after = await nodes.a.tunnel()
    assert [relay.observed for relay in after.relays] == [relay.observed for relay in before.relays]
    assert [session.id for session in after.sessions] == [session.id for session in before.sessions]
    assert not after.warnings

    async def gone() -> bool:
        links = [link for session in (await nodes.a.tunnel()).sessions for link in session.links if link.relay]
        return (await nodes.r.relay()).reservations[0].peer in ("a", "b") and contacts(nodes) == len(links)

    await until(gone, "the check's connections are closed")


def contacts(nodes: Nodes) -> int:
    """Connections between a and the relay beyond a's own control connection: links over it, too."""
    pairs = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == "01":
            pairs.append((local, remote))
    here = hexadecimal(nodes.a.place.address)
    relay = hexadecimal(nodes.relay_place.address) + f":{20007:04X}"
    return sum(local.startswith(here) and remote == relay for local, remote in pairs) - 1


def hexadecimal(ip: str) -> str:
    return socket.inet_aton(ip)[::-1].hex().upper()


async def test_without_relays(ground: Nodes, nodes: Nodes) -> None:
    alone = Node(ground.ground.place("alone"), ground.folder / "alone", psk=PSK, relay_mode="off")
    try:
        await ground.start(alone)
        found = await alone.netcheck()
        assert found.verdict.startswith("unknown: no relay is known")
        assert any("relayNodes" in note for note in found.notes)
        assert not found.relays
        assert [one.reachable for one in found.addresses] == [pb.FINDING_UNSPECIFIED] * len(found.addresses)
    finally:
        await alone.stop(timeout=5)


async def test_relays_that_do_not_answer(ground: Nodes, nodes: Nodes) -> None:
    closed, mute = ground.ground.place("closed"), ground.ground.place("mute")
    with socket.create_server((mute.address, 20007)):  # accepts, and never says a word
        node = Node(
            ground.ground.place("lost"), ground.folder / "lost", psk=PSK, relay_mode="off", relays=[closed, mute]
        )
        try:
            await ground.start(node)
            found = await node.netcheck()
        finally:
            await node.stop(timeout=5)
    assert found.verdict.startswith("unknown: none of 2 relays answered")
    errors = {relay.relay: relay.error for relay in found.relays}
    assert "refused" in errors["closed"] and "no answer" in errors["mute"]
    assert not any(relay.HasField("rtt") for relay in found.relays)


async def test_strangers_with_tokens_that_nobody_wants(nodes: Nodes) -> None:
    """What looks like a relay's dial back, without any check: read, and hung up."""
    for said in (b"CWP1" + bytes(16), b"C", b"CWP1"):
        with socket.create_connection((nodes.a.place.address, 20006), timeout=30) as sock:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    assert not (await nodes.a.tunnel()).warnings
