"""Neighbours by multicast DNS: on the loopback interface, and in simulated LANs without any way out."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.namespace import Namespace, connect
from lab.rootless import available, probe
from protos import discovery_pb2 as pb

from ..conftest import WriteConfig
from .nodes import Node, running, until

# Each test starts several processes.
pytestmark = pytest.mark.slow

WriteNode = Callable[..., Path]
MDNS = {"edgeDiscovery": {"mdns": {"enable": True}}}


@pytest.fixture
def cluster() -> str:
    """All tests on this machine share the loopback interface; a cluster of one's own is not disturbed."""
    return f"test-{secrets.token_hex(4)}"


async def left(node: Node, name: str) -> pb.Peer:
    """Waits until the neighbour is only remembered."""
    return await node.sees(name, lambda peer: list(peer.sources) == [pb.PEER_SOURCE_CACHE])


# On the loopback interface


@pytest.fixture
def local(node_config: WriteConfig, loopback_ip: Callable[[], str], cluster: str) -> WriteNode:
    def write(name: str, **keys: Any) -> Path:
        return node_config(name, **{"listenAddress": loopback_ip(), "cluster": cluster, "modules": MDNS, **keys})

    return write


async def test_neighbours_find_each_other_and_say_goodbye(local: WriteNode) -> None:
    async with running(local("a"), local("b")) as (a, b):
        for node, other in ((a, "b"), (b, "a")):
            peer = await node.sees(other)
            assert list(peer.sources) == [pb.PEER_SOURCE_MDNS] and peer.verified
        # What changes is known in the LAN without any relay.
        revision = await b.report(tunnel=pb.TunnelReport(port=4711))
        peer = await a.sees("b", lambda peer: peer.record.revision >= revision)
        assert peer.record.tunnel_port == 4711
        assert await b.stop() == 0
        await left(a, "b")
        await b.start()
        await a.sees("b", lambda peer: list(peer.sources) == [pb.PEER_SOURCE_MDNS])
        assert "1 interface, 1 neighbours" in (await a.status()).sources["mdns"]


async def test_strangers_in_the_lan_are_counted_or_explained(local: WriteNode, cluster: str) -> None:
    other_psk = local("p", psk="another-secret-0123456789-0123456789")
    async with running(local("a"), local("s", cluster=f"{cluster}-2"), other_psk) as (a, s, p):

        async def told(node: Node, *texts: str) -> bool:
            line = (await node.status()).sources["mdns"]
            return all(text in line for text in texts)

        await until(lambda: told(a, "of other clusters", "wrong-psk: p and a do not have the same PSK"), "a says it")
        await until(lambda: told(p, "of other clusters", "wrong-psk: a and p do not have the same PSK"), "p says it")
        await until(lambda: told(s, " of other clusters"), "s says it")
        for node in (a, s, p):
            assert not (await node.status()).peers


async def test_a_duplicate_in_the_lan_raises_an_alarm(
    local: WriteNode, short_path: Path, loopback_ip: Callable[[], str]
) -> None:
    first = local("a")
    twin = short_path / "twin"
    twin.mkdir()
    (twin / "psk").write_text((first.parent / "psk").read_text())
    lines = first.read_text().splitlines()
    lines = [f"listenAddress: {loopback_ip()}" if line.startswith("listenAddress") else line for line in lines]
    (twin / "c.yaml").write_text("\n".join(lines))
    async with running(first, twin / "c.yaml") as nodes:
        for node in nodes:

            async def alarmed(node: Node = node) -> bool:
                return any("duplicate identity" in text for text in (await node.status()).warnings)

            await until(alarmed, "both raise an alarm")
            assert not (await node.status()).peers


# In simulated LANs


@pytest.fixture
def switch() -> Iterator[Namespace]:
    why = probe()
    if why is not None:
        refuse = pytest.fail if os.environ.get("NATLAB_REQUIRED") == "1" else pytest.skip
        refuse(f"{available() or 'run the tests under `python -m lab.rootless`'}: {why}")
    made = Namespace("switch")
    made.ip("link add br0 type bridge", "link set br0 up")
    for family in ("ip", "ip6", "arp"):
        made.sysctl(f"bridge/bridge-nf-call-{family}tables", 0)
    yield made
    made.close()


@pytest.fixture
async def lan(switch: Namespace, node_config: WriteConfig, cluster: str) -> AsyncIterator[Callable[..., Node]]:
    """`lan("a", "192.168.5.1/24")`: a node in a network of its own, with a cable to the switch and no route out."""
    spaces: list[Namespace] = []

    def plug(name: str, *addresses: str) -> Node:
        space = Namespace(name)
        spaces.append(space)
        connect(space, "eth0", switch, f"p{len(spaces)}")
        switch.ip(f"link set p{len(spaces)} master br0", f"link set p{len(spaces)} up")
        space.ip(
            "link set lo up",
            "link set eth0 up",
            *(f"addr add {a} dev eth0 nodad" if ":" in a else f"addr add {a} dev eth0" for a in addresses),
        )
        return Node(node_config(name, cluster=cluster, modules=MDNS), space)

    yield plug
    for space in spaces:
        space.close()


def ips(peer: pb.Peer) -> list[str]:
    return [address.ip for address in peer.record.addresses]


@pytest.mark.lab
async def test_a_lan_without_a_way_out(lan: Callable[..., Node]) -> None:
    async with running(lan("a", "192.168.5.1/24"), lan("b", "192.168.5.2/24"), lan("c", "192.168.5.3/24")) as nodes:
        for node in nodes:
            others = [other for other in nodes if other is not node]
            for other in others:
                peer = await node.sees(other.config.parent.name)
                assert peer.verified and len(ips(peer)) == 1
        a, b, _ = nodes
        b.kill()
        await b.start()
        instance = (await b.status()).self.instance_id
        await a.sees("b", lambda peer: peer.record.instance_id == instance)
        assert not (await b.status()).warnings  # its former self, still announced, is no duplicate


@pytest.mark.lab
async def test_ipv6_only(lan: Callable[..., Node]) -> None:
    async with running(lan("a", "fd00:5::1/64"), lan("b", "fd00:5::2/64")) as (a, _):
        peer = await a.sees("b")
        assert ips(peer) == ["fd00:5::2"] and peer.verified


@pytest.mark.lab
async def test_an_address_that_changes_is_followed(lan: Callable[..., Node]) -> None:
    async with running(lan("a", "192.168.5.1/24"), lan("b", "192.168.5.2/24")) as (a, b):
        await asyncio.gather(a.sees("b"), b.sees("a"))
        assert b.namespace is not None
        b.namespace.ip("addr del 192.168.5.2/24 dev eth0", "addr add 192.168.5.77/24 dev eth0")
        peer = await a.sees("b", lambda peer: "192.168.5.77" in ips(peer) and "192.168.5.2" not in ips(peer))
        assert list(peer.sources) == [pb.PEER_SOURCE_MDNS]
        assert (await b.status()).sources["interfaces"] == "192.168.5.77"
        # And b goes on hearing a, on its new sockets.
        revision = await a.report(tunnel=pb.TunnelReport(port=1))
        await b.sees("a", lambda peer: peer.record.revision >= revision)


@pytest.mark.lab
async def test_no_network_at_first(lan: Callable[..., Node]) -> None:
    late = lan("b")
    async with running(lan("a", "192.168.5.1/24"), late) as (a, b):
        status = await b.status()
        assert status.sources["interfaces"] == "no address but loopback"

        async def said() -> bool:
            return "no interface but loopback is up" in (await b.status()).sources["mdns"]

        await until(said, "b says why there is no mDNS")
        assert b.namespace is not None
        b.namespace.ip("addr add 192.168.5.2/24 dev eth0")
        await asyncio.gather(a.sees("b"), b.sees("a"))
        assert not (await b.status()).warnings


@pytest.mark.lab
async def test_container_bridges_are_left_out_and_all_else_is_used(lan: Callable[..., Node]) -> None:
    node = lan("a", "192.168.5.1/24")
    assert node.namespace is not None
    for number in range(20):
        node.namespace.ip(
            f"link add net{number} type veth peer name other{number}",
            f"link set other{number} up",
            f"addr add 10.1.{number}.1/24 dev net{number}",
            f"link set net{number} up",
        )
    for name in ("docker0", "br-0123", "cni0", "virbr0"):
        node.namespace.ip(f"link add {name} type bridge", f"addr add 172.17.0.1/16 dev {name}", f"link set {name} up")
    node.namespace.ip("link add downed type veth peer name other", "addr add 10.2.0.1/24 dev downed")
    async with running(node, lan("b", "192.168.5.2/24")) as (a, b):
        found = ips(await b.sees("a"))
        assert sorted(found) == sorted(["192.168.5.1", *(f"10.1.{number}.1" for number in range(20))])
        assert "21 interfaces" in (await a.status()).sources["mdns"]
