"""Neighbours by multicast DNS: on the loopback interface, and in simulated LANs without any way out."""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab.namespace import Namespace, connect
from lab.rootless import available, probe
from protos import discovery_pb2 as pb
from services.discovery.peers import NodeClient
from services.discovery.resolver import Resolver
from services.discovery.sources import mdns
from services.discovery.sources.mdns import Mdns

from ..conftest import WriteConfig
from .nodes import Node, part, running, until

# Each test starts several processes.
pytestmark = pytest.mark.slow

WriteNode = Callable[..., Path]
MDNS = {"edgeDiscovery": {"mdns": {"enable": True}}}
# With the DHT neighbours publish at each other, sooner or later, and are known from there, too.
ONLY_MDNS = {"edgeDiscovery": {"mdns": {"enable": True}, "dht": {"enable": False}}}


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
    async with running(local("a", modules=ONLY_MDNS), local("b", modules=ONLY_MDNS)) as (a, b):
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


async def test_who_found_no_room_gets_the_place_of_one_that_leaves(
    local: WriteNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdns, "MAX_NEIGHBOURS", 2)
    home = part(local("a"))
    made = Mdns(home.directory, NodeClient(home.identity, Resolver()), random.Random(1))
    made._station = cast("Any", SimpleNamespace(zeroconf=None))  # it asks nobody, so nobody answers

    def heard(name: str, change: str = "Added") -> None:
        made._heard(None, mdns.TYPE, f"{name}.{mdns.TYPE}", SimpleNamespace(name=change))

    def followed() -> set[str]:
        return {name.partition(".")[0] for name in made._followers}

    try:
        for name in "bcdefg":
            heard(name)
        assert followed() == {"b", "c"} and len(made._missed) == 2, "bounded, too"
        heard("d", "Removed")
        heard("b", "Removed")
        assert followed() == {"c", "e"} and not made._missed
    finally:
        await made.close()


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


async def test_f28_a_duplicate_in_the_lan_raises_an_alarm(
    local: WriteNode, short_path: Path, loopback_ip: Callable[[], str]
) -> None:
    """FAILURES 28: two machines with one identity, found by mDNS."""
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

    def plug(name: str, *addresses: str, first: str = "", **keys: Any) -> Node:
        """first: address on another network, which the node's first interface is in."""
        space = Namespace(name)
        spaces.append(space)
        if first:
            space.ip(
                "link add lonely type veth peer name nobody",
                "link set nobody addrgenmode none up",  # without an address
                "link set lonely up",
                f"addr add {first} dev lonely",
                "route add default dev lonely",
            )
        connect(space, "eth0", switch, f"p{len(spaces)}")
        switch.ip(f"link set p{len(spaces)} master br0", f"link set p{len(spaces)} up")
        space.ip(
            "link set lo up",
            "link set eth0 up",
            *(f"addr add {a} dev eth0" for a in addresses),
        )
        return Node(node_config(name, **{"cluster": cluster, "modules": MDNS, **keys}), space)

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
    # Right after the addresses were given: the kernel still looks for duplicates, and they cannot be used.
    async with running(lan("a", "fd00:5::1/64"), lan("b", "fd00:5::2/64")) as (a, _):
        peer = await a.sees("b")
        assert ips(peer) == ["fd00:5::2"] and peer.verified


@pytest.mark.lab
async def test_link_local_addresses_only(lan: Callable[..., Node]) -> None:
    async with running(lan("a"), lan("b")) as (a, b):
        for node, other in ((a, "b"), (b, "a")):
            peer = await node.sees(other)
            (ip,) = ips(peer)
            assert ip.startswith("fe80::") and "%" in ip and peer.verified
        # What means something on this network only is not told to the world.
        assert not (await a.status()).self.addresses
        assert "%eth0" in (await a.status()).sources["interfaces"]


@pytest.mark.lab
async def test_an_address_that_changes_is_followed(lan: Callable[..., Node]) -> None:
    one, other = (lan(name, ip, modules=ONLY_MDNS) for name, ip in (("a", "192.168.5.1/24"), ("b", "192.168.5.2/24")))
    async with running(one, other) as (a, b):
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
    assert late.namespace is not None
    late.namespace.sysctl("ipv6/conf/eth0/disable_ipv6", 1)
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
async def test_f25_container_bridges_are_left_out_and_all_else_is_used(lan: Callable[..., Node]) -> None:
    """FAILURES 25: mDNS on docker bridges; and 17: more than 16 interfaces."""
    node = lan("a", "192.168.5.1/24")
    assert node.namespace is not None
    for number in range(20):
        node.namespace.ip(
            f"link add net{number} type veth peer name other{number}",
            f"link set other{number} addrgenmode none up",  # without an address
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


@pytest.mark.lab
async def test_f25_the_lan_is_not_on_the_first_interface(lan: Callable[..., Node]) -> None:
    """FAILURES 25: mDNS on the wrong or only the first interface, here the one with the default route."""
    one = lan("a", "192.168.5.1/24", first="10.66.0.1/24")
    other = lan("b", "192.168.5.2/24", first="10.77.0.1/24")
    async with running(one, other) as (a, b):
        for node, name, ip in ((a, "b", "192.168.5.2"), (b, "a", "192.168.5.1")):
            peer = await node.sees(name, lambda peer: pb.PEER_SOURCE_MDNS in peer.sources)
            assert ip in ips(peer)
        assert "2 interfaces" in (await a.status()).sources["mdns"]


@pytest.mark.lab
async def test_f25_announcements_fit_a_packet(lan: Callable[..., Node]) -> None:
    """FAILURES 25: records over 1,500 bytes, which need fragments that many networks drop."""
    long = f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 60}"
    addresses = [f"192.168.5.{number}/24" for number in range(1, 40)]
    addresses += [f"fd00:5:{number:x}::1/64" for number in range(1, 20)]
    node = lan("a", *addresses, nodeName=long)
    other = lan("b", "192.168.5.100/24")
    assert other.namespace is not None
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("192.168.5.100")
    with other.namespace.socket(socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        listener.setblocking(False)
        listener.bind(("224.0.0.251", 5353))
        async with running(node, other) as (_, b):
            assert (await b.sees(long)).verified
            sizes = []
            while True:
                try:
                    async with asyncio.timeout(2):
                        sizes.append(len(await asyncio.get_running_loop().sock_recv(listener, 65536)))
                except TimeoutError:
                    break
    # 1,500 bytes without the headers of IP and UDP.
    assert sizes and max(sizes) <= 1472, sizes


@pytest.mark.lab
async def test_f25_mdns_that_cannot_start_is_a_warning_and_tried_again(lan: Callable[..., Node]) -> None:
    """FAILURES 25: mDNS failing to start kills the process."""
    node = lan("a", "192.168.5.1/24")
    assert node.namespace is not None
    holder = node.namespace.socket(socket.SOCK_DGRAM)
    try:
        holder.bind(("", 5353))  # as a program that does not share the port
        async with running(node, lan("b", "192.168.5.2/24")) as (a, b):

            async def said() -> bool:
                status = await a.status()
                return "in use" in status.sources["mdns"] and any("mDNS does not work" in it for it in status.warnings)

            await until(said, "a says why there is no mDNS")
            assert not (await b.status()).peers
            assert a.process is not None and a.process.code is None
            holder.close()
            await asyncio.gather(a.sees("b"), b.sees("a"))
            assert not (await a.status()).warnings
    finally:
        holder.close()
