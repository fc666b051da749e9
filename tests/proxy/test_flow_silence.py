"""Backends of UDP services that fall silent: who is judged, and what it costs. With fake time, then with frozen processes."""

import asyncio
import heapq
import itertools
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core.balancer import Balancer
from services.proxy.core.catalog import Backend
from services.proxy.core.health import EJECT_AFTER
from services.proxy.core.silence import SILENT, WAIT
from tests.datagrams import answering
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service
from tests.proxy.test_balancing import backends, balancer, spread
from tests.proxy.test_silence import route_of
from tests.proxy.test_udp import datagram_socket

LoopbackIp = Callable[[], str]


def silent(made: Balancer, backend: Backend, began: float, flows: int = EJECT_AFTER) -> bool:
    """Flows that got no answer; whether the last one ejects the backend."""
    return [made.silence.unanswered(backend, began, began + WAIT) for _ in range(flows)][-1]


def test_where_nobody_ever_answered_nobody_is_judged() -> None:
    made = balancer(backends(3))
    for backend in backends(3):
        assert not silent(made, backend, 0.0, 100)
    assert not made.silence and not made.health


def test_a_backend_that_is_silent_to_several_flows_in_a_row_is_left_out_but_for_trials() -> None:
    dead, *well = backends(3)
    made = balancer(backends(3))
    made.silence.answered(well[0], 0.0)
    assert not silent(made, dead, 0.0, EJECT_AFTER - 1)
    assert silent(made, dead, 0.0, 1)
    assert set(spread(made, 90, WAIT)) == set(well)
    now, pause = WAIT, SILENT.first
    for _ in range(4):
        now += pause
        assert spread(made, 90, now)[dead] == 1
        assert spread(made, 90, now + WAIT / 2)[dead] == 0, "the trial has no result yet"
        assert silent(made, dead, now, 1)
        now += WAIT
        pause = min(pause * 2, SILENT.last)
    now += pause
    assert spread(made, 90, now)[dead] == 1
    made.silence.answered(dead, now)
    assert spread(made, 90, now)[dead] == 30


def test_an_answer_to_anybody_is_one_to_all_who_came_before_it() -> None:
    """Who asks for what needs no answer, or loses a datagram, says nothing of a backend that answers others."""
    one, _ = backends(2)
    made = balancer(backends(2))
    for at in range(100):
        assert not silent(made, one, float(at), EJECT_AFTER - 1)
        made.silence.answered(one, at + WAIT)
        assert not silent(made, one, at + WAIT / 2, 10)
    assert not made.health


def test_a_slow_answer_clears_a_backend_and_flows_from_before_do_not_lengthen_its_rest() -> None:
    one, other = backends(2)
    made = balancer(backends(2))
    made.silence.answered(other, 0.0)
    assert silent(made, one, 0.0)
    assert not silent(made, one, WAIT / 2, 50)
    assert made.health.ejected(WAIT + SILENT.first - 0.1) == [one]
    assert made.health.ejected(WAIT + SILENT.first + 0.1) == []
    made.silence.answered(one, WAIT + 1)
    assert not made.health.ejected(WAIT + 1)


def test_when_all_are_silent_all_are_used() -> None:
    made = balancer(backends(3))
    for backend in backends(3):
        made.silence.answered(backend, 0.0)
        silent(made, backend, 1.0)
    assert len(made.health.ejected(WAIT + 1)) == 3
    assert set(spread(made, 90, WAIT + 1)) == set(backends(3))


def test_with_those_who_answered_gone_nobody_is_judged() -> None:
    """A service of the same name may be another one."""
    one, *others = backends(3)
    made = balancer(backends(3))
    made.silence.answered(one, 0.0)
    made.update(tuple(others), made.traffic)
    assert not silent(made, others[0], 1.0)


Flow = tuple[float, int, bool]  # seconds after the one before, how many of the backends live, it wants an answer


@given(st.lists(st.tuples(st.floats(0, 4), st.integers(1, 3), st.booleans()), min_size=1, max_size=150), st.booleans())
def test_whoever_answers_is_in_and_who_is_left_out_gets_no_flow(flows: list[Flow], one_way: bool) -> None:
    """Backend 0 answers at once whoever wants it; the others do while they live. A model of the proxy with fake time."""
    members = backends(3)
    made, number = balancer(members), itertools.count()
    verdicts: list[tuple[float, int, Backend, float]] = []
    now = 0.0
    for gap, living, wants in flows:
        now += gap
        while verdicts and verdicts[0][0] <= now:
            at, _, backend, began = heapq.heappop(verdicts)
            made.silence.unanswered(backend, began, at)
        out = made.health.ejected(now)
        chosen = made.pick("x", now)
        assert chosen is not None and (chosen not in out or len(out) == 3)
        if one_way:
            assert not out
        if wants and not one_way and chosen in members[:living]:
            made.silence.answered(chosen, now)
            assert chosen not in made.health.ejected(now)
        elif made.silence:
            heapq.heappush(verdicts, (now + WAIT, next(number), chosen, now))
    assert not one_way or not made.health


# ── real sockets ──

PORTS = (5401, 5402, 5403)


@pytest.fixture
async def echoes(loopback_ip: LoopbackIp) -> AsyncIterator[tuple[str, dict[int, int]]]:
    """The address of three processes that answer each datagram with their port, and their pids by it."""
    ip = loopback_ip()
    async with answering(ip, PORTS) as running:
        yield ip, {port: process.pid for port, process in running.items()}


async def ask(ip: str, patience: float) -> int:
    """The port of who answered a new client; 0: nobody."""
    loop = asyncio.get_running_loop()
    with datagram_socket() as client:
        client.connect((ip, 53))
        client.send(b"question")
        try:
            async with asyncio.timeout(patience):
                return int(await loop.sock_recv(client, 100))
        except TimeoutError:
            return 0


@pytest.mark.slow
async def test_a_process_that_is_frozen_gets_no_new_flows_until_it_answers_again(
    node: Node, echoes: tuple[str, dict[int, int]]
) -> None:
    """Its kernel takes datagrams and refuses none: exactly what a host that is gone looks like."""
    ip, pids = echoes
    node.discovery.put(service("three", ip, *[("n", ip, port) for port in PORTS], port=53, udp=True))
    await node.listening(f"{ip}:53")

    def ejected() -> int:
        return node.status().rows[0].ejected

    assert Counter([await ask(ip, 20) for _ in range(9)]) == dict.fromkeys(PORTS, 3)
    os.kill(pids[PORTS[1]], signal.SIGSTOP)
    froze = time.monotonic()
    asked = Counter[int]()

    async def out() -> bool:
        asked[await ask(ip, 0.3)] += 1
        return bool(ejected())

    await until(out, "it is left out")
    print(f"left out {time.monotonic() - froze:.1f} s later, {asked[0]} of {asked.total()} flows without an answer")
    assert asked[0] >= EJECT_AFTER
    asked.clear()
    for _ in range(60):
        asked[await ask(ip, 1)] += 1
    assert asked[0] <= 6, "but for trials"
    assert asked.keys() - {0} == {PORTS[0], PORTS[2]}

    os.kill(pids[PORTS[1]], signal.SIGCONT)
    thawed = time.monotonic()

    async def back() -> bool:
        return await ask(ip, 1) == PORTS[1] and not ejected()

    await until(back, "a late answer, or a trial, brings it back")
    print(f"back {time.monotonic() - thawed:.1f} s after it goes on")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> float:
    """The time to wait for an answer, short where nobody measures it."""
    monkeypatch.setattr("services.proxy.outcomes.WAIT", 0.3)
    return 0.3


async def test_a_service_that_never_answers_keeps_all_of_its_backends(
    node: Node, loopback_ip: LoopbackIp, hasty: float
) -> None:
    ip = loopback_ip()
    sinks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in PORTS]
    for sink, port in zip(sinks, PORTS, strict=True):
        sink.bind((ip, port))
    node.discovery.put(service("syslog", ip, *[("n", ip, port) for port in PORTS], port=514, udp=True))
    await node.listening(f"{ip}:514")
    clients = [datagram_socket() for _ in range(9)]
    for client in clients:
        client.sendto(b"<13>all is well", (ip, 514))
    await asyncio.sleep(2 * hasty)
    assert node.proxy is not None
    assert node.status().rows[0].ejected == 0 and not node.proxy._counters.ejected
    for sink in sinks:
        assert len([sink.recv(100) for _ in range(3)]) == 3
    for sock in (*sinks, *clients):
        sock.close()


async def test_what_the_tunnel_says_of_answers_counts_for_backends_on_other_nodes(
    node: Node, loopback_ip: LoopbackIp, hasty: float
) -> None:
    ip = loopback_ip()
    node.discovery.put(service("two", ip, ("b", "10.0.0.1", 1), ("c", "10.0.0.2", 2), port=53, udp=True))
    await node.listening(f"{ip}:53")
    await node.settled()
    clients = [datagram_socket() for _ in range(2 * EJECT_AFTER)]
    for client in clients:
        client.sendto(b"question", (ip, 53))
        asked = await node.tunnel.asked()
        if asked.open.node == "b":
            asked.answer()
        asked.sock.close()
        client.close()
    health = route_of(node).balancer.health
    await until(lambda: [one.node for one in health.ejected(time.monotonic())] == ["c"], "the silent one is left out")
