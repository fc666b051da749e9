"""Clients that no exit accepted: kept by their proxy, or given back to it, with what was read of them."""

import asyncio
import socket

import pytest

from protos import tunnel_pb2 as pb
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import (
    UDP,
    Attached,
    Backend,
    Exit,
    descriptors,
    receive,
    send,
    tcp_pair,
    udp_pair,
    until,
    was_reset,
)

pytestmark = pytest.mark.slow  # real processes: two nodes and a relay

DENIED = pb.Refusal(reason=pb.REFUSAL_REASON_DENIED, message="not here")


class Decision:
    """An exit that answers when it is told to."""

    def __init__(self, exit_b: Exit) -> None:
        self.asked, self.told = asyncio.Event(), asyncio.Event()
        exit_b.decide = self

    async def __call__(self, _: pb.Offer) -> pb.Refusal:
        self.asked.set()
        await self.told.wait()
        return DENIED


async def whole(client: socket.socket, given: socket.socket) -> None:
    """The socket that came back is the client's, and nobody else reads from it."""
    given.setblocking(False)
    await send(client, b"more")
    assert await receive(given, 4) == b"more"
    await send(given, b"answer")
    given.close()
    assert await receive(client, 10) == b"answer"  # and its end: no other descriptor is left
    client.close()


async def test_a_client_that_is_refused_comes_back_with_what_was_read(
    nodes: Nodes, exit_b: Exit, attached: Attached
) -> None:
    decision = Decision(exit_b)
    client, accepted = tcp_pair()
    number = attached.open("b", "10.0.0.1:80", accepted, give_back=True, head=b"head, ")
    await send(client, b"early")
    await decision.asked.wait()
    await asyncio.sleep(0.2)  # what the tunnel has read meanwhile comes back; the rest is still in the socket
    decision.told.set()
    result, given = await attached.result_with(number)
    assert result.refusal == DENIED
    assert given is not None
    given.setblocking(False)
    rest = b"head, early"[len(result.head) :]
    assert result.head + await receive(given, len(rest)) == b"head, early"
    await whole(client, given)


async def test_of_many_bytes_the_first_come_back_and_the_others_wait_in_the_socket(
    nodes: Nodes, exit_b: Exit, attached: Attached
) -> None:
    decision = Decision(exit_b)
    client, accepted = tcp_pair()
    sent = bytes(range(256)) * 800
    number = attached.open("b", "10.0.0.1:80", accepted, give_back=True, head=sent[:1000])
    sending = asyncio.create_task(send(client, sent[1000:]))
    await decision.asked.wait()
    decision.told.set()
    result, given = await attached.result_with(number)
    assert given is not None
    given.setblocking(False)
    assert len(result.head) <= 48 * 1024
    assert result.head + await receive(given, len(sent) - len(result.head)) == sent
    await sending
    await whole(client, given)


async def test_without_a_path_too(nodes: Nodes, attached: Attached) -> None:
    client, accepted = tcp_pair()
    number = attached.open("nobody", "10.0.0.1:80", accepted, give_back=True, head=b"x", timeout={"seconds": 1})
    result, given = await attached.result_with(number)
    assert result.refusal.reason in (pb.REFUSAL_REASON_UNKNOWN_NODE, pb.REFUSAL_REASON_NO_PATH)
    assert result.head == b"x"
    assert given is not None
    await whole(client, given)


async def test_of_those_that_are_accepted_nothing_is_said(
    nodes: Nodes, exit_b: Exit, attached: Attached, backend: Backend
) -> None:
    for _ in range(5):
        client, accepted = tcp_pair()
        attached.open("b", backend.address, accepted, give_back=True)
        served = await backend.accept()
        await send(client, b"x")
        assert await receive(served, 1) == b"x"
        client.close()
        assert await receive(served, 1) == b""
        served.close()
    assert attached.silent()


async def test_a_client_that_goes_away_does_not_come_back(nodes: Nodes, exit_b: Exit, attached: Attached) -> None:
    decision = Decision(exit_b)
    client, accepted = tcp_pair()
    before = (await nodes.a.tunnel()).streams
    attached.open("b", "10.0.0.1:80", accepted, give_back=True)
    await decision.asked.wait()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()

    async def gone() -> bool:
        return (await nodes.a.tunnel()).streams == before

    await until(gone, "its stream is gone")
    decision.told.set()
    assert attached.silent()


@pytest.mark.parametrize("how", ["give_back", "keep"])
async def test_nobody_is_left_hanging_when_the_proxy_is_gone(nodes: Nodes, exit_b: Exit, how: str) -> None:
    decision = Decision(exit_b)
    pid = nodes.a.pid("tunnel")
    before = descriptors(pid)
    one = Attached(nodes.a)
    client, accepted = tcp_pair()
    one.open("b", "10.0.0.1:80", accepted, **{how: True})
    await decision.asked.wait()
    one.close()
    await asyncio.sleep(0.2)
    decision.told.set()
    assert await was_reset(client)
    client.close()
    await until(lambda: descriptors(pid) <= before, "no descriptor stays behind")


async def test_a_client_that_is_kept_stays_its_proxys(nodes: Nodes, exit_b: Exit, attached: Attached) -> None:
    decision = Decision(exit_b)
    client, accepted = tcp_pair()
    kept = accepted.dup()
    number = attached.open("b", "10.0.0.1:80", accepted, keep=True, give_back=True)
    await decision.asked.wait()
    decision.told.set()
    assert (await attached.result(number)).refusal == DENIED  # keep wins: no second descriptor
    await whole(client, kept)


async def test_flows_do_not_come_back(nodes: Nodes, exit_b: Exit, attached: Attached) -> None:
    decision = Decision(exit_b)
    decision.told.set()
    kept, given = udp_pair()
    number = attached.open("b", "10.0.0.1:53", given, network=UDP, give_back=True, datagrams=[b"x"])
    assert (await attached.result(number)).refusal == DENIED
    kept.close()
