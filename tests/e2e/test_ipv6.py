"""Paths over IPv6: through two firewalls, with nothing else, and after a roam from IPv4."""

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lab.nat import Kind, Nat
from lab.network import Host, Lan, Network
from lab.node import WITHOUT_RELAY, Node, together
from lab.place import simulated
from lab.wire import Shape
from protos import tunnel_pb2 as pb
from tests.e2e.conftest import require_simulation
from tests.e2e.traffic import eventually
from tests.tunnel.local import Attached, Exit, receive, send

pytestmark = [pytest.mark.slow, pytest.mark.lab]

PSK = "a secret of the tests of IPv6, long enough"
HOME = Shape(delay=0.010)  # one way, seconds
SERVICES = ("discovery", "tunnel")
GENEROUS = 20.0  # seconds in which a stream goes on after a roam; measured: 0.6 to 0.7


class Scene:
    """Two nodes, a and b, each behind a router of its own with IPv6 behind a stateful firewall, and a relay r with an
    address of either family. Its IPv4 is translated by symmetric NATs, through which nobody can punch."""

    def __init__(self, folder: Path) -> None:
        self.network = Network()
        try:
            relay = self.network.public("r", shape=Shape(delay=0.005), ipv6=True)
            self.homes = {name: self._home(name) for name in "ab"}
            self.hosts = {name: home.host(name) for name, home in self.homes.items()}
            named = {"nodeName": relay.name, "advertiseAddress": [relay.address, relay.address6]}
            modules = {"edgeTunnel": {"relayNodes": [named]}}
            self.relay = Node(simulated(relay), folder / "r", psk=PSK, modules=modules)
            self.a, self.b = (
                Node(simulated(host), folder / host.name, psk=PSK, relay_mode="off", modules=modules)
                for host in self.hosts.values()
            )
        except BaseException:
            self.network.close()
            raise

    def _home(self, name: str) -> Lan:
        return self.network.lan(f"home-{name}", Nat(Kind.SYMMETRIC), shape=HOME, ipv6=True)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """For the length of a block; both nodes can be called when it begins."""
        nodes = {self.relay: ("discovery", "relay"), self.a: SERVICES, self.b: SERVICES}
        try:
            for node, services in nodes.items():
                node.start(*services)
            await together(node.ready(*services) for node, services in nodes.items())
            for node in (self.a, self.b):
                await eventually(lambda node=node: reserved(node), f"{node.name} has its reservation")
            yield
        except BaseException:
            for node in nodes:
                print(node.name, node.tail("tunnel"), node.tail("discovery"), await node.status())
            raise
        finally:
            with contextlib.ExitStack() as stack:
                stack.callback(self.network.close)
                await asyncio.gather(*(node.stop(timeout=5) for node in nodes))


def without_ipv4(host: Host) -> None:
    """The host loses its IPv4 addresses, and the routes go with them."""
    host.namespace.run(["ip", "-4", "address", "flush", "dev", "eth0"])


def without_ipv6(host: Host) -> None:
    """The same for IPv6, apart from the link-local address that every interface has."""
    host.namespace.run(["ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"])


def with_ipv6(host: Host, home: Lan) -> None:
    """It gets its IPv6 address and its way out."""
    router = home.network6.removesuffix("/64") + "1"
    host.namespace.ip(f"addr add {host.address6}/64 dev eth0 nodad", f"route replace default via {router}")


def family(remote: str) -> int:
    """4 or 6, of "ip:port"."""
    return ipaddress.ip_address(remote.rpartition(":")[0].strip("[]")).version


async def reserved(node: Node) -> bool:
    return [relay.state for relay in (await node.tunnel()).relays] == ["reserved"]


async def direct_over_ipv6(scene: Scene) -> bool:
    """Both ends use a path without a relay, from one firewalled address to the other."""
    for node, peer in ((scene.a, "b"), (scene.b, "a")):
        link = await node.active(peer)
        if link is None or link.kind not in WITHOUT_RELAY or family(link.remote) != 6:
            return False
        if scene.hosts[peer].address6 != link.remote.rpartition(":")[0].strip("[]"):
            return False
    return True


@contextlib.asynccontextmanager
async def stream(one: Node, other: Node) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A stream; what is yielded checks that it works both ways, and that nothing was lost or came twice."""
    (client, accepted), (served, dialled) = socket.socketpair(), socket.socketpair()
    for end in (client, served):
        end.setblocking(False)
    caller, number = Attached(one), 0

    async def decide(_: pb.Offer) -> socket.socket:
        return dialled

    async def works() -> None:
        nonlocal number
        for near, far in ((client, served), (served, client)):
            number += 1
            await send(near, b"%08d" % number)
            assert await receive(far, 8) == b"%08d" % number

    try:
        async with Exit(other, decide):
            opened = caller.open(other.name, "127.0.0.1:1", accepted)
            assert not (await caller.result(opened)).HasField("refusal")
            yield works
    finally:
        for end in (client, served, caller):
            end.close()


@pytest.fixture
def scene(short_path: Path) -> Scene:
    require_simulation()
    return Scene(short_path)


async def test_two_firewalls_are_punched_over_ipv6(scene: Scene) -> None:
    """Where both IPv4 NATs are symmetric, IPv6 is the only direct path."""
    async with scene.running(), stream(scene.a, scene.b) as works:
        await works()
        await eventually(lambda: direct_over_ipv6(scene), "a direct path over IPv6")
        await works()


async def test_a_pair_that_has_ipv6_only(scene: Scene) -> None:
    """FAILURES 17: nothing of IPv4 on either host; relay and path are reached over IPv6."""
    for host in scene.hosts.values():
        without_ipv4(host)
    async with scene.running():
        for node in (scene.a, scene.b):
            (control,) = (await node.tunnel()).relays
            assert family(control.address) == family(control.observed) == 6
        async with stream(scene.a, scene.b) as works:
            await works()
            await eventually(lambda: direct_over_ipv6(scene), "a direct path over IPv6")
            await works()


async def test_a_roam_from_ipv4_to_ipv6_under_a_stream(scene: Scene) -> None:
    """FAILURES 17: a node leaves a network that has IPv4 for one that has IPv6, and must not keep to the old family."""
    for host in scene.hosts.values():
        without_ipv6(host)
    async with scene.running(), stream(scene.a, scene.b) as works:
        await works()
        assert {family(link.remote) for link in await scene.a.links("b")} == {4}
        without_ipv4(scene.hosts["a"])
        with_ipv6(scene.hosts["a"], scene.homes["a"])
        roamed = time.monotonic()
        await works()
        print(f"the stream went on after {time.monotonic() - roamed:.1f} s")
        assert time.monotonic() - roamed < GENEROUS

        async def over_ipv6() -> bool:
            status = await scene.a.tunnel()
            places = [it.address for it in status.relays if it.state == "reserved"]
            places += [link.remote for it in status.sessions for link in it.links]
            return len(places) >= 2 and {family(it) for it in places} == {6}

        await eventually(over_ipv6, "control connection and links are those of the new network")
        await works()
