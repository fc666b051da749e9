"""Crowds of clients between two nodes: nothing leaks, nobody hangs, and nobody is harmed by another.

The numbers of the requirement (5,000 flows ten times, 10,000 connections) are those of `python -m tests.e2e.scale`.
"""

import asyncio
import socket

import pytest
import yaml

from tests.e2e import scale
from tests.e2e.many import crowd
from tests.e2e.scale import Two, Use
from tests.e2e.traffic import eventually

pytestmark = pytest.mark.slow


async def test_flows_come_and_go(two_nodes: Two) -> None:
    """FAILURES 31: UDP flows leave nothing behind, whatever their number."""
    await scale.flows(two_nodes, 1000, 2)


async def test_the_idle_time_changes_under_open_flows(two_nodes: Two) -> None:
    """Those that go to another node, and those that stay on theirs."""

    def configure(seconds: float) -> None:
        for node in two_nodes.nodes:
            config = yaml.safe_load(node.config_file.read_text())
            config["modules"]["edgeProxy"]["udpIdleSeconds"] = seconds
            node.configure(config)

    async def applied() -> bool:
        logs = [node.log(name).read_text() for node in two_nodes.nodes for name in ("tunnel", "proxy")]
        return all("edgeProxy.udpIdleSeconds" in log for log in logs)

    configure(600)
    try:
        await eventually(applied, "all four know the new time")
        before = two_nodes.uses()  # not sooner: connections of those that looked before are closed by now
        with (
            crowd(two_nodes.addresses[0], socket.SOCK_DGRAM) as far,
            crowd(two_nodes.addresses[1], socket.SOCK_DGRAM) as near,
        ):
            far.grow(20)
            near.grow(20)
            await asyncio.sleep(2 * scale.IDLE)
            full = two_nodes.uses()
            assert full["a tunnel"].descriptors >= before["a tunnel"].descriptors + 20, "they would be over by now"
            assert full["b proxy"].descriptors >= before["b proxy"].descriptors + 40
    finally:
        configure(scale.IDLE)
    await two_nodes.quiet()

    async def closed() -> bool:
        return two_nodes.uses()["b proxy"].descriptors < before["b proxy"].descriptors + 20

    await eventually(closed, "flows that stay on their node end, too")


async def test_connections_stay_open(two_nodes: Two) -> None:
    await scale.connections(two_nodes, 3000)


async def test_an_accept_storm(two_nodes: Two) -> None:
    """FAILURES 32: each is answered with its own word, thousands on their way at a time."""
    await scale.storm(two_nodes, 2500)


async def test_clients_that_vanish(two_nodes: Two) -> None:
    await scale.vanish(two_nodes, 500)


async def test_slow_senders(two_nodes: Two) -> None:
    await scale.drip(two_nodes, 500)


@pytest.mark.parametrize("where", ["entry", "exit", "same node"])
async def test_hardly_any_descriptors_left(two_nodes: Two, where: str) -> None:
    name, node, address = {
        "entry": ("tunnel", two_nodes.a, two_nodes.addresses[0]),
        "exit": ("tunnel", two_nodes.b, two_nodes.addresses[0]),
        "same node": ("proxy", two_nodes.b, two_nodes.addresses[1]),
    }[where]
    await scale.limit(two_nodes, name, node, address)


def test_a_leak_is_seen() -> None:
    """If it were not, these tests would say nothing."""
    before = {"a tunnel": Use(20, 70 << 20)}
    scale.no_leak(before, {"a tunnel": Use(22, 80 << 20)})
    with pytest.raises(AssertionError, match="a tunnel"):
        scale.no_leak(before, {"a tunnel": Use(200, 70 << 20)})
    with pytest.raises(AssertionError, match="a tunnel"):
        scale.no_leak(before, {"a tunnel": Use(20, 170 << 20)})


def test_a_client_that_hangs_is_seen(loopback_ip, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tests.e2e.many.PATIENCE", 0.5)
    with (
        socket.create_server((loopback_ip(), 0)) as mute,
        crowd(mute.getsockname()) as clients,
        pytest.raises(TimeoutError, match="3 of 3 clients hang"),
    ):
        clients.grow(3)
