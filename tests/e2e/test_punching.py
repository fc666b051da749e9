"""Whoever can be punched gets a direct path; whoever cannot stays on the relay and leaves the routers in peace."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from lab.folder import short_folder
from protos import tunnel_pb2 as pb
from tests.e2e.conftest import require_simulation
from tests.e2e.homes import PAIRS, Homes
from tests.e2e.traffic import PATIENCE
from tests.tunnel.local import Attached, Exit, receive, send

pytestmark = [pytest.mark.lab, pytest.mark.slow]

TRIED = ["masquerade + masquerade", "masquerade + firewall", "one carrier, hairpin", "symmetric + masquerade"]
"""The whole table is `python -m tests.e2e.punch`."""


@pytest.fixture(scope="module")
def homes() -> Iterator[Homes]:
    require_simulation()
    with short_folder() as folder:
        started = Homes(folder, {name for pair in TRIED for name in PAIRS[pair].names})
        try:
            asyncio.run(started.start())
            yield started
        finally:
            asyncio.run(started.stop())


@pytest.mark.parametrize("pair", [pair for pair in TRIED if not PAIRS[pair].hopeless])
async def test_a_pair_that_can_be_punched_is(homes: Homes, pair: str) -> None:
    found = await homes.attempt(*PAIRS[pair].names, within=PATIENCE)
    assert found.kind in (pb.PATH_KIND_PUNCHED, pb.PATH_KIND_DIRECT)
    one, other = PAIRS[pair].names
    # Both ends use it, and keep a relay at hand.
    for node, peer in ((homes.nodes[one], other), (homes.nodes[other], one)):
        for _ in range(int(PATIENCE * 10)):
            links = await node.links(peer)
            kinds = {link.state: link.kind for link in links}
            if kinds.get("active") == found.kind and len(links) == (2 if found.kind == pb.PATH_KIND_PUNCHED else 1):
                break
            await asyncio.sleep(0.1)
        assert kinds["active"] == found.kind
        if found.kind == pb.PATH_KIND_PUNCHED:
            assert kinds["standby"] == pb.PATH_KIND_RELAYED


async def test_a_pair_that_cannot_be_punched_stays_on_the_relay_after_few_attempts(homes: Homes) -> None:
    one, other = PAIRS["symmetric + masquerade"].names
    found = await homes.attempt(one, other, within=6.0)
    assert found.kind == pb.PATH_KIND_RELAYED
    peer = await homes.nodes[other].explain(one)
    assert peer.punching.starter and 1 <= peer.punching.attempts <= 3
    assert peer.punching.outcome not in ("punched", "not tried")
    assert {it.kind for it in peer.candidates if it.state == "active"} == {pb.PATH_KIND_RELAYED}
    failed = [it for it in peer.candidates if it.state == "failed"]
    assert failed and all(it.why for it in failed), "what was dialled in vain is told with the reason"


@pytest.mark.parametrize("pair", ["masquerade + masquerade", "symmetric + masquerade"])
async def test_a_router_that_reboots_interrupts_no_stream(homes: Homes, pair: str) -> None:
    """FAILURES 19: it forgets every flow. The symmetric one gives each a new port, and so breaks whatever goes through
    it, both links and the control connections of both relays; the stream goes on all the same."""
    one, other = PAIRS[pair].names
    await homes.nodes[one].ping(other, timeout=PATIENCE)
    (client, accepted), (served, dialled) = socket.socketpair(), socket.socketpair()
    for end in (client, served):
        end.setblocking(False)
    caller = Attached(homes.nodes[one])

    async def decide(_: pb.Offer) -> socket.socket:
        return dialled

    try:
        async with Exit(homes.nodes[other], decide):
            number = caller.open(other, "127.0.0.1:1", accepted)
            assert not (await caller.result(number)).HasField("refusal")
            for round_trip in range(30):
                if round_trip in (10, 20):
                    homes.routers[one if round_trip == 10 else other].flush()
                began = time.monotonic()
                for near, far in ((client, served), (served, client)):
                    await send(near, b"%08d" % round_trip)
                    assert await receive(far, 8) == b"%08d" % round_trip
                stall = time.monotonic() - began
                assert stall < 20.0
                if round_trip in (10, 20):
                    print(f"{pair}: {stall:.3f} s")
    finally:
        for end in (client, served, caller):
            end.close()
