"""Dialling back over real sockets: vantages are real processes, and those who abuse them are ours."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from protos import discovery_pb2 as pb
from services.discovery.core.vantage import MAX_OPEN, PEER_PER_MINUTE, PER_MINUTE, WORK
from services.runtime import dial

from ..conftest import WriteConfig
from .caller import Caller
from .nodes import PATIENCE, Node, running, until
from .test_public import callers, victim

__all__ = ["callers", "victim"]

# Each test starts processes.
pytestmark = pytest.mark.slow

TOKEN = bytes(range(16))


class Target:
    """A port that counts who comes, and what they say; `answer` is sent to each."""

    def __init__(self, ip: str, answer: bytes = b"") -> None:
        self.said: list[bytes] = []
        self.open = self.most = 0
        self._answer = answer
        self._sock = socket.create_server((ip, 0), backlog=1024)
        self.port: int = self._sock.getsockname()[1]

    async def __aenter__(self) -> "Target":
        self._server = await asyncio.start_server(self._accept, sock=self._sock)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.said.append(await reader.readexactly(20))
            writer.write(self._answer)
            await writer.drain()
        await reader.read()
        self.open -= 1
        writer.close()


async def ask(caller: Caller, port: int, ip: str = "", work: int = 0, token: bytes = TOKEN) -> pb.DialBackResponse:
    request = pb.DialBackRequest(ip=ip, port=port, token=token, work=bytes(work))
    return await caller.stub.DialBack(request, timeout=PATIENCE)  # type: ignore[no-any-return]


async def refusal(caller: Caller, *arguments: Any, **more: Any) -> str:
    """The reason, "" when it was not refused."""
    try:
        await ask(caller, *arguments, **more)
    except grpc.aio.AioRpcError as error:
        return dial.reason(error)
    return ""


async def test_the_callers_own_address_is_dialled_and_the_token_said(
    victim: tuple[Node, str], callers: Callable[[str], Caller]
) -> None:
    a = callers("a")
    async with Target("127.0.0.1", answer=bytes(256 * 1024)) as target:
        answer = await ask(a, target.port)
        assert (answer.ip, answer.outcome) == ("127.0.0.1", pb.DIAL_BACK_OUTCOME_CONNECTED)
        assert target.said == [b"CWP1" + TOKEN]
    answer = await ask(a, target.port)
    assert answer.outcome == pb.DIAL_BACK_OUTCOME_RESET


async def test_others_are_not_dialled(victim: tuple[Node, str], callers: Callable[[str], Caller]) -> None:
    a = callers("a")
    for ip in ("10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "nonsense"):
        assert await refusal(a, 20007, ip, WORK) == "BAD_TARGET"
    assert await refusal(a, 20007, "203.0.113.1", WORK - 1) == "WORK_REQUIRED"
    assert await refusal(a, 22) == await refusal(a, 20007, token=b"short") == "BAD_TARGET"


async def test_a_flood_of_requests_makes_few_dials_and_costs_bounded_memory(
    victim: tuple[Node, str], callers: Callable[[str], Caller]
) -> None:
    node, _ = victim
    process = psutil.Process(node.pid)
    crowd = [callers(f"node-{number}") for number in range(8)]
    async with Target("127.0.0.1", answer=b"") as target:
        # Who holds the connections open as long as it can has as little of it.
        first = await asyncio.gather(*(refusal(crowd[0], target.port) for _ in range(5)))
        assert Counter(first) == {"": 1, "LIMIT": 4}
        before, descriptors = process.memory_info().rss, process.num_fds()
        reasons: Counter[str] = Counter()
        for _ in range(2):
            work = [refusal(caller, target.port, work=WORK) for caller in crowd for _ in range(20)]
            reasons.update(await asyncio.gather(*work))
        assert set(reasons) == {"", "LIMIT"} and sum(reasons.values()) == 320
        assert len(target.said) == reasons[""] + 1
        assert target.most <= MAX_OPEN
        # What was saved up, and what a minute that all this may take brings; each node has its own share.
        assert reasons[""] <= 2 * PER_MINUTE
        assert process.memory_info().rss - before < 64 << 20
        assert process.num_fds() - descriptors < 100
        assert PEER_PER_MINUTE < PER_MINUTE
    # A node that asks for something else is served.
    late = callers("late")
    await late.put(late.seal())


async def test_a_flood_of_offers_is_refused(victim: tuple[Node, str], callers: Callable[[str], Caller]) -> None:
    a, b = callers("a"), callers("b")
    offer = pb.OfferDialBackRequest(reports=[pb.DialBackReport(token=TOKEN, ip="127.0.0.1") for _ in range(50)])

    async def once(caller: Caller) -> str:
        try:
            answer = await caller.stub.OfferDialBack(offer, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return dial.reason(error)
        assert answer.record.certificate and not answer.HasField("wish") and answer.again.ToNanoseconds() > 0
        return ""

    answers = Counter(await asyncio.gather(*(once(a) for _ in range(500))))
    assert answers[""] and answers["LIMIT"]
    assert answers["LIMIT"] + answers["TOO_MANY_CALLS"] == 500 - answers[""] > answers[""]
    assert await once(b) == ""


@pytest.mark.parametrize("caller_offers", [True, False])
async def test_a_round_finds_vantages_that_can_be_called_and_such_that_offer(
    node_config: WriteConfig, loopback_ip: Callable[[], str], caller_offers: bool
) -> None:
    mine, other = loopback_ip(), loopback_ip()
    contact = {"edgeDiscovery": {"bootstrap": [f"{mine if caller_offers else other}:20008"], "mdns": {"enable": False}}}
    p = node_config("p", listenAddress=mine, **({} if caller_offers else {"modules": contact}))
    v = node_config("v", listenAddress=other, **({"modules": contact} if caller_offers else {}))
    async with running(p, v) as (node, _), Target(mine, answer=bytes(1000)) as target:
        tokens = [bytes([number]) * 16 for number in range(8)]
        request = pb.ProbePortRequest(port=target.port, tokens=tokens)
        request.pace.FromSeconds(1)
        async with contextlib.aclosing(events(node, request)) as round_:
            assert mine in (await anext(round_)).addresses.ips
            outcome = (await anext(round_)).outcome
            assert (outcome.vantage, outcome.ip, outcome.outcome) == ("v", mine, pb.DIAL_BACK_OUTCOME_CONNECTED)
            assert target.said == [b"CWP1" + outcome.token] and outcome.token in tokens
        # Nobody listens there any more, and the next round says so.
        await target.__aexit__()
        async with contextlib.aclosing(events(node, request)) as round_:
            await anext(round_)
            outcome = (await anext(round_)).outcome
            assert (outcome.vantage, outcome.outcome) == ("v", pb.DIAL_BACK_OUTCOME_RESET)


async def test_a_round_that_began_before_its_only_vantage_served_finds_it(
    node_config: WriteConfig, loopback_ip: Callable[[], str]
) -> None:
    mine, other = loopback_ip(), loopback_ip()
    contact = {"edgeDiscovery": {"bootstrap": [f"{other}:20008"], "mdns": {"enable": False}}}
    p = node_config("p", listenAddress=mine, modules=contact)
    v = node_config("v", listenAddress=other)
    async with running(p) as (node,), Target(mine, answer=bytes(1000)) as target:
        request = pb.ProbePortRequest(port=target.port, tokens=[TOKEN])
        request.pace.FromSeconds(1)
        async with contextlib.aclosing(events(node, request)) as round_:
            assert mine in (await anext(round_)).addresses.ips
            await until(lambda: said(node, "not dialled back"), "it has tried", node)
            async with running(v):
                assert (await anext(round_)).outcome.vantage == "v"


async def said(node: Node, words: str) -> bool:
    return words in node.said()


async def events(node: Node, request: pb.ProbePortRequest) -> AsyncIterator[pb.ProbePortResponse]:
    """What a round brings; discovery may still be on its way to its contacts."""
    async with asyncio.timeout(PATIENCE):
        async for event in node.stub.ProbePort(request, wait_for_ready=True):
            yield event
