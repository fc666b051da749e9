"""Streams to a node that falls silent, and flows to a port at which nobody is: who waits is told soon, and only then."""

import asyncio
import signal
import socket
import time
from typing import Any

import pytest

from protos import tunnel_pb2 as pb
from services.tunnel.opener import FIRST_CONTACT
from tests.patience import until
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import TCP, UDP, Attached, Backend, Exit, dial, receive, send, tcp_pair, udp_pair

pytestmark = pytest.mark.slow  # real processes: two nodes and a relay


def half_a_second() -> dict[str, Any]:
    wanted = pb.Outbound()
    wanted.timeout.FromMilliseconds(500)
    return {"timeout": wanted.timeout}


async def test_who_is_in_a_hurry_still_waits_for_the_first_session_with_a_node(
    nodes: Nodes, attached: Attached
) -> None:
    client, accepted = tcp_pair()
    begun = time.monotonic()
    number = attached.open("c", "10.0.0.1:80", accepted, keep=True, **half_a_second())
    assert (await attached.result(number)).HasField("refusal")
    assert time.monotonic() - begun > 0.9 * FIRST_CONTACT
    client.close()


@pytest.mark.parametrize("network", [TCP, UDP])
async def test_a_silent_node_has_no_path_as_soon_as_the_time_for_one_is_over(
    nodes: Nodes, exit_b: Exit, attached: Attached, network: int
) -> None:
    client, accepted = tcp_pair() if network == TCP else udp_pair()
    what: dict[str, Any] = (
        {"keep": True, "head": b"head"} if network == TCP else {"watch": True, "datagrams": [b"head"]}
    )
    nodes.b.signal(signal.SIGSTOP, "tunnel")
    try:
        begun = time.monotonic()
        number = attached.open("b", "10.0.0.1:80", accepted, network=network, **what, **half_a_second())
        result = await attached.result(number)
        took = time.monotonic() - begun
        print(f"given up after {took:.2f} s")
        assert result.refusal.reason == pb.REFUSAL_REASON_NO_PATH
        assert result.head == what.get("head", b"")
        assert took < 8  # its links live on for 10 s
    finally:
        nodes.b.signal(signal.SIGCONT, "tunnel")
        client.close()
    await until(lambda: nodes.a.ping("b"), "it is back")


async def test_a_flow_has_patience_with_a_slow_exit_too(nodes: Nodes, exit_b: Exit, attached: Attached) -> None:
    async def slow(offer: pb.Offer) -> socket.socket | pb.Refusal:
        await asyncio.sleep(2.0)
        return await dial(offer)

    exit_b.decide = slow
    backend, (client, accepted) = bound("127.0.0.1", 0), udp_pair()
    ip, port = backend.getsockname()
    number = attached.open(
        "b", f"{ip}:{port}", accepted, network=UDP, watch=True, datagrams=[b"one"], **half_a_second()
    )
    assert not (await attached.result(number)).HasField("refusal")
    assert await receive(backend, 3) == b"one"
    for sock in (backend, client):
        sock.close()


async def test_a_slow_exit_has_all_the_time_while_its_node_answers(
    nodes: Nodes, exit_b: Exit, attached: Attached, backend: Backend
) -> None:
    async def slow(offer: pb.Offer) -> socket.socket | pb.Refusal:
        await asyncio.sleep(2.0)
        return await dial(offer)

    exit_b.decide = slow
    client, accepted = tcp_pair()
    number = attached.open("b", backend.address, accepted, keep=True, head=b"head", **half_a_second())
    result = await attached.result(number)
    assert not result.HasField("refusal"), result
    served = await backend.accept()
    assert await receive(served, 4) == b"head"
    served.close()
    client.close()


async def test_a_flow_to_a_port_where_nobody_is_ends_with_the_reason(
    nodes: Nodes, exit_b: Exit, attached: Attached
) -> None:
    with bound("127.0.0.1", 0) as nobody:
        ip, port = nobody.getsockname()
    client, accepted = udp_pair()
    number = attached.open("b", f"{ip}:{port}", accepted, network=UDP, watch=True, datagrams=[b"anybody?"])
    assert not (await attached.result(number)).HasField("refusal")
    result = await attached.result(number)
    assert (result.ended, result.refusal.reason) == (True, pb.REFUSAL_REASON_CONNECTION_REFUSED)

    def closed() -> bool:
        try:
            client.send(b"anybody else?")
        except ConnectionRefusedError:
            return True
        return False

    await until(closed, "the client's next datagram begins another flow")
    client.close()


async def test_a_backend_that_was_there_may_come_back_to_its_flow(
    nodes: Nodes, exit_b: Exit, attached: Attached
) -> None:
    loop = asyncio.get_running_loop()
    backend = bound("127.0.0.1", 0)
    ip, port = backend.getsockname()
    client, accepted = udp_pair()
    number = attached.open("b", f"{ip}:{port}", accepted, network=UDP, watch=True, datagrams=[b"one"])
    async with asyncio.timeout(20):
        _, flow = await loop.sock_recvfrom(backend, 100)
    backend.sendto(b"two", flow)
    assert await receive(client, 3) == b"two"
    assert not (await attached.result(number)).HasField("refusal")
    result = await attached.result(number)
    assert result.answered and not result.ended
    backend.sendto(b"three", flow)
    assert await receive(client, 5) == b"three"
    backend.close()
    for _ in range(5):
        await send(client, b"lost")
        await asyncio.sleep(0.05)
    backend = bound(ip, port)
    await send(client, b"again")
    async with asyncio.timeout(20):
        assert await loop.sock_recv(backend, 100) == b"again"
    assert attached.silent()
    backend.close()  # for good
    for _ in range(100):
        if not attached.silent():
            break
        client.send(b"lost")
        await asyncio.sleep(0.05)
    result = await attached.result(number)
    assert (result.ended, result.refusal.reason) == (True, pb.REFUSAL_REASON_CONNECTION_REFUSED)
    client.close()


def bound(ip: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((ip, port))
    return sock
