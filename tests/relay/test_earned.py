"""A relay that nobody named earns its role from a node that dials it back: real processes, on loopback."""

import asyncio
import random
import socket
from pathlib import Path

import pytest

from lab.node import Node, together
from lab.place import Loopback
from protos import relay_pb2 as pb
from tests.patience import until

from .harness import PATIENCE

pytestmark = pytest.mark.slow

PSK = "a secret of the tests of the earned role, long enough"


async def becomes(node: Node, active: bool, reason: str) -> pb.GetStatusResponse:
    status = pb.GetStatusResponse()
    try:
        async with asyncio.timeout(2 * PATIENCE):
            while True:
                status = await node.relay()
                if status.active is active and status.conditions[0].reason == reason:
                    return status
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not active={active} ({reason}) but\n{status}\n{node.tail('relay')}") from None


async def test_it_is_earned_and_remembered(short_path: Path) -> None:
    loopback = Loopback(random.Random())
    here, there = loopback.place("p"), loopback.place("v")
    p = Node(here, short_path / "p", psk=PSK)
    contact = {"edgeDiscovery": {"bootstrap": [f"{here.address}:20008"]}}
    v = Node(there, short_path / "v", psk=PSK, modules=contact)
    try:
        p.start("discovery", "relay")
        v.start("discovery")
        await together((p.ready("discovery", "relay"), v.ready("discovery")))
        status = await becomes(p, True, "Proven")
        assert f"v got through to {here.address}" in status.reason

        async def claimed() -> bool:
            record = (await p.discovery()).self
            return not record.relay.configured and list(record.relay.proven) == [here.address]

        await until(claimed, "its record says so")
        # Its former proofs count when it comes back, whoever is there to renew them.
        await v.stop()
        await p.kill("relay")
        p.start("relay")
        await p.ready("relay")
        await becomes(p, True, "Proven")
    finally:
        await asyncio.gather(p.stop(), v.stop())


async def test_a_flood_of_false_proofs_is_shown_the_door(short_path: Path) -> None:
    loopback = Loopback(random.Random())
    here = loopback.place("p")
    p = Node(here, short_path / "p", psk=PSK)
    loop = asyncio.get_running_loop()
    crowd: list[socket.socket] = []
    try:
        p.start("discovery", "relay")
        await p.ready("discovery", "relay")
        for number in range(600):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            crowd.append(sock)
            await loop.sock_connect(sock, (here.address, 20007))
            try:
                await loop.sock_sendall(sock, b"CWP1" + (random.randbytes(16) if number % 2 else b""))
            except OSError:
                pass  # shown the door already
        answers = await asyncio.gather(*(closed(sock) for sock in crowd[1::2]))
        assert all(answers)
        status = await p.relay()
        assert not status.active and status.conditions[0].reason == "Unproven"
    finally:
        for sock in crowd:
            sock.close()
        await p.stop()


async def closed(sock: socket.socket) -> bool:
    """Without a byte."""
    try:
        async with asyncio.timeout(PATIENCE):
            return not await asyncio.get_running_loop().sock_recv(sock, 1)
    except ConnectionError:
        return True
