"""Dial back: the relay connects to who asks, and cannot be made a tool against others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protos import relay_pb2 as pb
from services.relay.core import dialback
from services.relay.core.dialback import DialBacks
from tests import loopback

from .harness import PATIENCE, Client, RelayProcess, identity, relay_process


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[RelayProcess]:
    async with relay_process(tmp_path) as process:
        yield process


def listening(ip: str) -> socket.socket:
    sock = socket.create_server((ip, 0))
    sock.setblocking(False)
    return sock


@pytest.mark.slow
async def test_it_says_a_token_to_the_caller_and_tells_it_on_the_control_connection(
    relay: RelayProcess, tmp_path: Path
) -> None:
    me, loop = loopback.address(), asyncio.get_running_loop()
    client = await Client.greet(relay.ip, identity(tmp_path, "a"), source=me)
    with listening(me) as server:
        asking = asyncio.create_task(client.ask(dial_back=pb.DialBack(port=server.getsockname()[1])))
        async with asyncio.timeout(PATIENCE):
            sock, address = await loop.sock_accept(server)
        with sock:
            said = b""
            while len(said) < 20:
                said += await loop.sock_recv(sock, 20 - len(said))
        answer = (await asking).dialled_back
        assert answer.outcome == pb.DIAL_BACK_OUTCOME_CONNECTED
        assert said == b"CWP1" + answer.token and len(answer.token) == 16
        assert address[0] == relay.ip
        port = server.getsockname()[1]
    answer = (await client.ask(dial_back=pb.DialBack(port=port))).dialled_back
    assert answer.outcome == pb.DIAL_BACK_OUTCOME_RESET
    client.close()


@pytest.mark.slow
async def test_only_the_caller_itself_is_dialled(relay: RelayProcess, tmp_path: Path) -> None:
    """The protocol has no word for another address; what the caller says of itself does not matter either."""
    assert set(pb.DialBack.DESCRIPTOR.fields_by_name) == {"port"}
    client = await Client.greet(relay.ip, identity(tmp_path, "a"), source=loopback.address())
    with listening(loopback.address()) as neighbour:
        answer = (await client.ask(dial_back=pb.DialBack(port=neighbour.getsockname()[1]))).dialled_back
        assert answer.outcome == pb.DIAL_BACK_OUTCOME_RESET
        with pytest.raises(BlockingIOError):
            neighbour.accept()
    client.close()


@pytest.mark.slow
async def test_low_ports_and_nonsense_are_refused(relay: RelayProcess, tmp_path: Path) -> None:
    client = await Client.greet(relay.ip, identity(tmp_path, "a"))
    for port in (0, 22, 1023, 65536, 2**32 - 1):
        answer = await client.ask(dial_back=pb.DialBack(port=port))
        assert answer.refused.reason == pb.REFUSED_REASON_BAD_REQUEST, answer
        assert f"got port {port}" in answer.refused.message
    client.close()


@pytest.mark.slow
async def test_who_asks_too_often_is_refused_and_the_relay_goes_on(relay: RelayProcess, tmp_path: Path) -> None:
    client = await Client.greet(relay.ip, identity(tmp_path, "a"))
    port = socket.create_server((loopback.address(), 0)).getsockname()[1]
    answers = [await client.ask(dial_back=pb.DialBack(port=port)) for _ in range(2 * dialback.PEER_BURST)]
    refused = [answer.refused for answer in answers if answer.WhichOneof("body") == "refused"]
    assert len(answers) - len(refused) >= dialback.PEER_BURST
    assert refused and refused[-1].reason == pb.REFUSED_REASON_LIMIT and refused[-1].retry_after.ToNanoseconds() > 0
    # A new connection under the same name has no new credit; another node has its own.
    again = await Client.greet(relay.ip, identity(tmp_path, "a"))
    while (await again.ask(dial_back=pb.DialBack(port=port))).WhichOneof("body") != "refused":
        pass
    other = await Client.greet(relay.ip, identity(tmp_path, "b"))
    assert (await other.ask(dial_back=pb.DialBack(port=port))).WhichOneof("body") == "dialled_back"
    await client.reserve()
    for one in (client, again, other):
        one.close()


def test_dials_under_way_are_bounded() -> None:
    dials = DialBacks()
    granted = [dials.wait(f"node-{number}", 0.0) == 0.0 for number in range(2 * dialback.MAX_OPEN)]
    assert granted == [True] * dialback.MAX_OPEN + [False] * dialback.MAX_OPEN
    dials.done()
    assert dials.wait("late", 0.0) == 0.0


def test_all_together_are_bounded_and_credit_returns_with_time() -> None:
    dials, granted = DialBacks(), 0
    for number in range(3 * dialback.BURST):
        if not dials.wait(f"node-{number}", 0.0):
            dials.done()
            granted += 1
    assert granted == dialback.BURST
    wait = dials.wait("late", 0.0)
    assert wait > 0
    assert dials.wait("late", wait) == 0.0


def test_the_memory_of_peers_is_bounded() -> None:
    dials = DialBacks()
    for number in range(dialback.MAX_PEERS + 50):
        dials.wait(f"node-{number}", number / 1.0)
        dials.open = 0
    assert len(dials) == dialback.MAX_PEERS
