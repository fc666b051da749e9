"""A LAN without the rest of the world: cut off from the start, cut off while running, and back again."""

import asyncio
import contextlib
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from lab.manifest import service
from lab.network import Network
from lab.node import Node, together
from lab.place import Place, simulated
from lab.wire import Shape
from protos import discovery_pb2 as pb
from tests.e2e import figures
from tests.e2e.conftest import require_simulation
from tests.e2e.traffic import PORT, TARGET_PORT, Stream, Traffic, connect, echo_server, eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]

CLUSTER_IP = "127.88.0.1"
MEMBER = ("discovery", "tunnel", "proxy")
RELAY = ("discovery", "relay")
NOWHERE = "203.0.113.253"
"""An address that nobody has, beyond the LAN's router."""


class Island:
    """Nodes a and b in one LAN, c in another, the relay r between them; c offers nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network()
        self.lan = self.network.lan("island", shape=Shape(delay=0.005))
        far = self.network.lan("far", shape=Shape(delay=0.005))
        places = {name: simulated(lan.host(name)) for name, lan in (("a", self.lan), ("b", self.lan), ("c", far))}
        places["r"] = simulated(self.network.public("r"))
        psk = secrets.token_hex(32)
        self.nodes = {name: self._node(place, psk, places) for name, place in places.items()}
        self.a, self.b, self.c, self.r = self.nodes.values()
        self.cluster_ips = (CLUSTER_IP,)

    def _node(self, place: Place, psk: str, places: dict[str, Place]) -> Node:
        # The relay has a second name, which only a name server knows.
        named = {"nodeName": "r", "advertiseAddress": [places["r"].address, "relay.causeway.invalid"]}
        echo = service(
            "echo",
            cluster_ip=CLUSTER_IP,
            port=PORT,
            node="b",
            address=places["b"].address,
            target_port=TARGET_PORT,
        )
        return Node(
            place,
            self.folder / place.name,
            psk=psk,
            services=echo,
            relay_mode="auto" if place.name == "r" else "off",
            modules={"edgeTunnel": {"relayNodes": [named]}},
        )

    def cut(self) -> None:
        """Nothing goes through the router any more, and nobody is told."""
        assert self.lan.wire is not None
        self.lan.wire.cut()

    def mend(self) -> None:
        assert self.lan.wire is not None
        self.lan.wire.mend()

    async def start(self, *names: str) -> None:
        for name in names:
            self.nodes[name].start(*(RELAY if name == "r" else MEMBER))
        await together(self.nodes[name].ready(*(RELAY if name == "r" else MEMBER)) for name in names)

    async def stop(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.network.close)
            await asyncio.gather(*(node.stop(timeout=5) for node in self.nodes.values() if node.started))


@pytest.fixture
async def island(short_path: Path) -> AsyncIterator[Island]:
    require_simulation()
    made = Island(short_path)
    try:
        async with echo_server(made.b.place):
            yield made
    except BaseException:
        for node in made.nodes.values():
            for name in node.started:
                print(f"--- {node.name} {name}\n{node.tail(name)}")
        raise
    finally:
        await made.stop()


@pytest.fixture
def dead_dns(tmp_path: Path) -> Iterator[None]:
    """The only name server is at an address to which there is a route, and from which nothing comes back."""
    require_simulation()
    file = tmp_path / "resolv.conf"
    file.write_text(f"nameserver {NOWHERE}\noptions timeout:30 attempts:5\n")  # the most that glibc takes
    # The wrapper of the lab has mounts of its own; nothing outside sees this one.
    subprocess.run(["mount", "--bind", str(file), "/etc/resolv.conf"], check=True)
    yield
    subprocess.run(["umount", "/etc/resolv.conf"], check=True)


async def met(node: Node, other: str) -> bool:
    """Whether a node has found another one in its LAN, and verified it."""
    return any(
        peer.record.node_name == other and peer.verified and pb.PEER_SOURCE_MDNS in peer.sources
        for peer in (await node.discovery()).peers
    )


async def find_each_other(a: Node, b: Node) -> None:
    async def both() -> bool:
        return await met(a, "b") and await met(b, "a")

    await eventually(both, "a and b find each other in the LAN")


async def one_round_trip(place: Place) -> None:
    reader, writer = await connect(place, CLUSTER_IP)
    try:
        await asyncio.wait_for(Stream(reader, writer).say(b"hello"), 60)
    finally:
        writer.close()


@pytest.mark.parametrize("route", [True, False], ids=["dead DNS", "no route"])
async def test_f29_a_lan_that_was_never_online_works(
    island: Island, route: bool, request: pytest.FixtureRequest
) -> None:
    """FAILURES 29: a start blocks on bootstrap or on a name server that does not answer."""
    island.cut()
    if route:
        request.getfixturevalue("dead_dns")
    else:
        for node in (island.a, island.b):
            assert node.place.namespace is not None
            node.place.namespace.ip("route del default")
    began = time.monotonic()
    for node in (island.a, island.b):
        node.start(*MEMBER)
    await together(node.ready("discovery") for node in (island.a, island.b))
    serving = time.monotonic()
    await find_each_other(island.a, island.b)
    found = time.monotonic()
    await together(node.ready(*MEMBER) for node in (island.a, island.b))
    await one_round_trip(island.a.place)
    print(
        f"\ncold start offline ({'dead DNS' if route else 'no route'}): found each other {found - began:.2f} s after the "
        f"processes began, {found - serving:.2f} s after both served; a service worked after {time.monotonic() - began:.2f} s"
    )
    figures.note("island start", found - began)
    # About 2 s on an idle machine; a start that waits for the name server takes at least 30 s, for the relay 60.
    assert found - began < 30


async def test_a_lan_that_is_cut_off_goes_on_and_comes_back(island: Island) -> None:
    await island.start("r", "a", "b", "c")
    await find_each_other(island.a, island.b)

    async def instances(*names: str) -> dict[str, str]:
        return {name: (await island.nodes[name].discovery()).self.instance_id for name in names}

    async def known(node: Node) -> dict[str, str]:
        return {peer.record.node_name: peer.record.instance_id for peer in (await node.discovery()).peers}

    async def published() -> bool:
        return (await instances("a", "b", "c")).items() <= (await known(island.r)).items()

    await eventually(published, "the relay knows the records of all")
    await island.c.ping("b", timeout=60)
    async with Traffic.through(island) as traffic:  # type: ignore[arg-type]
        await traffic.flows()
        island.cut()
        await traffic.flows()
        await one_round_trip(island.a.place)
    # Both sides of the cut change while they do not hear of each other.
    former = await instances("b", "c")
    await island.b.kill()
    # What it offers is known from its state alone.
    island.b.services_file.unlink()
    await island.start("b")
    await island.c.restart("discovery")
    await find_each_other(island.a, island.b)
    await one_round_trip(island.a.place)
    assert (await known(island.r))["b"] == former["b"], "it cannot know yet"
    # Until backoffs are long.
    await asyncio.sleep(10)
    island.mend()
    began = time.monotonic()
    await eventually(published, "the relay knows the new records of all")
    relay_knows = time.monotonic() - began
    present = (await instances("c"))["c"]

    async def merged() -> bool:
        return await resolve(island.a, "c") == present and await resolve(island.b, "c") == present

    await eventually(merged, "the island knows the new record of c")
    records = time.monotonic() - began
    figures.note("island back", records)
    await island.c.ping("b", timeout=60)
    print(
        f"\nuplink back: the relay had all records after {relay_knows:.2f} s, the island too after {records:.2f} s, c "
        f"reached b after {time.monotonic() - began:.2f} s"
    )
    assert records < 60
    for node in island.nodes.values():
        assert not any("duplicate" in it for it in (await node.discovery()).warnings)


async def resolve(node: Node, name: str) -> str:
    """The instance that a node finds when it asks for a name."""
    from protos import discovery_pb2_grpc

    async with grpc.aio.insecure_channel(f"unix:{node.run_dir / 'discovery.sock'}") as channel:
        stub = discovery_pb2_grpc.DiscoveryServiceStub(channel)
        answer = await stub.ResolvePeer(pb.ResolvePeerRequest(node_name=name, fresh=True), timeout=30)
    return str(answer.peer.record.instance_id)
