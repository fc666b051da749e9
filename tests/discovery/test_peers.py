"""Calls to other nodes: several addresses, dead ones among them, channels that die."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import psutil
import pytest

from protos import discovery_pb2 as pb
from services.discovery import wire
from services.discovery.core.contacts import Contact, Endpoint
from services.discovery.core.model import Record, Signed, node_id
from services.discovery.peers import NodeClient
from services.discovery.probe import Unreachable, identify
from services.discovery.resolver import Resolver
from services.discovery.wire import unseal
from services.runtime import config as configuration
from services.runtime.identity import Identity

from ..conftest import WriteConfig
from .nodes import PATIENCE, Node, running, until

# Most tests start a process.
pytestmark = pytest.mark.slow


@pytest.fixture
async def node(node_config: WriteConfig, loopback_ip: Callable[[], str]) -> AsyncIterator[Node]:
    """A running discovery service of the node "r"."""
    async with running(node_config("r", listenAddress=loopback_ip())) as (node,):

        async def listens() -> bool:
            return "listening" in (await node.status()).sources["public"]

        await until(listens, "the public port is served", node)
        yield node


@pytest.fixture
async def relay(node: Node) -> str:
    """Its address."""
    return (await node.status()).self.addresses[0].ip


@pytest.fixture
def identity(node_config: WriteConfig) -> Identity:
    return Identity.load(configuration.load(node_config("me")))


@pytest.fixture
async def client(identity: Identity) -> AsyncIterator[NodeClient]:
    made = NodeClient(identity, Resolver())
    yield made
    await made.close()


@pytest.fixture
async def silent(loopback_ip: Callable[[], str]) -> AsyncIterator[str]:
    """An address where connections are accepted and nothing is ever said."""
    ip = loopback_ip()
    writers: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(accept, ip, 20008)
    yield ip
    server.close()
    for writer in writers:
        writer.transport.abort()


def contact(*hosts: str, name: str = "r") -> Contact:
    return Contact(name, tuple(Endpoint(host, 20008) for host in hosts))


async def test_the_living_address_is_found_among_dead_and_silent_ones(
    client: NodeClient, identity: Identity, relay: str, silent: str, loopback_ip: Callable[[], str]
) -> None:
    signed, answered = await client.ping(contact(loopback_ip(), silent, relay), timeout=PATIENCE)
    assert unseal(identity, signed, "r").node_name == "r" and answered.host == relay
    # What lost the race is not kept: it may be a connection that hangs.
    assert [endpoint.host for endpoint, _ in client._channels] == [relay]


async def test_a_name_counts_as_all_its_addresses(client: NodeClient, relay: str) -> None:
    class Names(Resolver):
        known = True

        async def resolve(self, host: str) -> tuple[str, ...]:
            if host == "relay.example" and self.known:
                return (relay,)
            raise OSError("no such name")

    client._resolver = Names()
    _, answered = await client.ping(contact("nowhere.example", "relay.example"), timeout=PATIENCE)
    assert answered.host == relay
    # The last answer stays while the name server does not answer.
    Names.known = False
    assert (await client.ping(contact("relay.example"), timeout=PATIENCE))[1].host == relay
    with pytest.raises(Unreachable, match=r"nowhere\.example does not resolve: no such name"):
        await client.ping(contact("nowhere.example"), timeout=PATIENCE)


async def test_all_problems_are_told(client: NodeClient, silent: str, loopback_ip: Callable[[], str]) -> None:
    dead = loopback_ip()
    with pytest.raises(Unreachable) as caught:
        await client.ping(contact(dead, silent), timeout=1.0)
    assert f"{dead}:20008: Connection refused" in str(caught.value) and "no answer within 1 s" in str(caught.value)
    with pytest.raises(Unreachable, match="r: no address is known"):
        await client.ping(contact(), timeout=1.0)


async def test_a_change_of_the_network_ends_calls_without_ending_their_callers(client: NodeClient, silent: str) -> None:
    calling = asyncio.create_task(client.ping(contact(silent), timeout=PATIENCE))

    async def started() -> bool:
        return bool(client._channels)

    await until(started, "the call has a channel")
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises(Unreachable):
        await calling
    assert not calling.cancelled()


async def test_a_caller_that_gives_up_leaves_the_channel_to_others(
    client: NodeClient, identity: Identity, node: Node, relay: str
) -> None:
    """As each lookup does to the relays that another one was quicker than."""
    await client.ping(contact(relay), timeout=PATIENCE)
    kept = client._channels[Endpoint(relay, 20008), "r"]
    process = psutil.Process(node.pid)
    process.suspend()
    try:
        publishing = asyncio.create_task(client.put(contact(relay), own(identity), timeout=PATIENCE))
        asking = asyncio.create_task(client.get(contact(relay), "x", timeout=PATIENCE))
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert client._channels[Endpoint(relay, 20008), "r"] is kept
        # One that waited in vain: the connection may be dead, and for all others it may not.
        with pytest.raises(Unreachable, match="no answer within"):
            await client.get(contact(relay), "x", timeout=0.1)
        assert not client._channels
    finally:
        process.resume()
    assert unseal(identity, (await publishing).own, "r").node_name == "r"
    await until(_closed(client), "the channel that nobody uses any more is closed")


def own(identity: Identity) -> Signed:
    now = time.time()
    return wire.seal(identity, Record("me", identity.cluster, 1, now, now + 600, instance_id="1"))


def _closed(client: NodeClient) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return not client._closing

    return look


async def test_the_number_of_channels_is_bounded(
    client: NodeClient, relay: str, monkeypatch: pytest.MonkeyPatch, loopback_ip: Callable[[], str]
) -> None:
    monkeypatch.setattr("services.discovery.peers.MAX_CHANNELS", 4)
    for _ in range(8):
        with pytest.raises(Unreachable):
            await client.ping(contact(loopback_ip()), timeout=PATIENCE)
    made = [client._channel(Endpoint(relay, 20008), name) for name in "abcdefgh"]
    assert len(client._channels) == 4
    await until(_closed(client), "those that make room are closed")
    assert made[0].get_state() is grpc.ChannelConnectivity.SHUTDOWN
    await client.ping(contact(relay), timeout=PATIENCE)
    assert len(client._channels) == 4


async def test_renewed_credentials_are_used(client: NodeClient, identity: Identity, relay: str) -> None:
    await client.ping(contact(relay), timeout=PATIENCE)
    first = client._channels[Endpoint(relay, 20008), "r"][1]
    identity.generation += 1
    await client.ping(contact(relay), timeout=PATIENCE)
    assert client._channels[Endpoint(relay, 20008), "r"][1] is not first
    await until(_closed(client), "the former channel is closed")
    assert first.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_an_unknown_node_is_identified_by_its_certificate(identity: Identity, relay: str, silent: str) -> None:
    assert await identify(Endpoint(relay, 20008), identity) == "r"
    with pytest.raises(Unreachable, match=r"no answer within 3 s"):
        await identify(Endpoint(silent, 20008), identity)


def test_the_resolver_does_not_hold_up_the_interpreter(tmp_path: Path) -> None:
    """A name server that never answers: the caller is told in time, and the process ends at once."""
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        """
import asyncio, socket, time
from services.discovery import resolver
resolver.TIMEOUT = 0.2
socket.getaddrinfo = lambda *a, **k: time.sleep(3600)
async def main():
    names = resolver.Resolver()
    for index in range(resolver.MAX_THREADS):
        try:
            await names.resolve("x")
        except TimeoutError as error:
            assert "name server" in str(error), error
    try:
        await names.resolve("x")
    except TimeoutError as error:
        assert "still waiting" in str(error), error
asyncio.run(main())
print("ended")
"""
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=PATIENCE, cwd=Path.cwd())
    assert done.stdout == "ended\n", done.stderr


def test_what_others_say_of_servers_is_cut_to_what_makes_sense() -> None:
    wheres = ["1.2.3.4:5", "host:5", "[2001:db8::1]:7", "1.2.3.4:0", "9.9.9.9:9"]
    node = wire.server_from_wire(pb.Server(node_name="n" * 1000, addresses=wheres), "c")
    assert node.where == "1.2.3.4:5,[2001:db8::1]:7" and len(node.name) == 253
    assert node.id == node_id("c", node.name), "nobody chooses an id"
    assert not wire.server_from_wire(pb.Server(node_name="n"), "c").where
    large = [Signed(b"r" * 15_000, b"", b"")] * 4
    assert len(wire.relays_to_wire(large)) == 2
    assert len(wire.relays_from_wire([pb.SignedRecord()] * 100)) == 4
