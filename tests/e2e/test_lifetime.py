"""A carrier's NAT that cuts every connection at a certain age, used or not (FAILURES 18)."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import pytest

from lab.folder import short_folder
from lab.mesh import Mesh
from lab.nat import Kind, Nat
from lab.node import Node
from protos import discovery_pb2
from protos import tunnel_pb2 as pb
from tests.e2e.conftest import print_logs, require_simulation
from tests.e2e.traffic import PATIENCE, PORT, TARGET_PORT, Stream, echo_server, eventually, talk

LIFETIME = float(os.environ.get("NAT_LIFETIME", "15"))  # seconds; 60 by hand
JUDGED = "NAT_LIFETIME" in os.environ  # by hand, with nothing beside it, stalls are judged as well
ROUNDS = 5 * LIFETIME + PATIENCE  # seconds in which two cuts are seen and a connection is replaced; one more suffices
QUIET = 2.0  # seconds
NOTICED = 12.0  # seconds after which a link that was cut counts as lost, and some more
CUTS = 2 if JUDGED else 4  # of a path, until its lifetime is known; a busy host's answers may be late as well
NO_STALL = 0.3  # seconds beyond what is usual here: a cut costs 0.35 s where nothing else is to be done
TRIES = 3  # this machine may be busy just then; what a stall is due to comes again with every rotation

pytestmark = [pytest.mark.slow, pytest.mark.lab]


async def test_connections_are_replaced_before_their_nat_cuts_them() -> None:
    """FAILURES 18: from the third cut on there is none."""
    async with talking(Nat(Kind.SYMMETRIC)) as (mesh, stream):
        await _observe(mesh, stream)


async def test_a_punched_link_is_replaced_by_another_before_its_nat_cuts_it() -> None:
    """FAILURES 18: from the third cut on there is none, and the direct path stays."""
    async with talking(Nat()) as (mesh, stream):
        await _observe_punched(mesh, stream)


@contextlib.asynccontextmanager
async def talking(b_nat: Nat) -> AsyncIterator[tuple[Mesh, Stream]]:
    """A mesh in which a's NAT has a lifetime, and a stream from a to b that says something every 20 ms. Checks at the end
    that nothing was lost."""
    require_simulation()
    with short_folder() as folder:
        mesh = Mesh.simulated(folder, a_nat=Nat(lifetime=LIFETIME), b_nat=b_nat)
        mesh.publish("echo", PORT, TARGET_PORT)
        async with mesh.running(lean=True), echo_server(mesh.b.place):
            try:
                await mesh.a.ping("b", timeout=60)
                async with talk(mesh, pause=0.02) as stream:
                    yield mesh, stream
            except BaseException:
                print_logs(mesh)
                raise


async def usual(stream: Stream) -> float:
    """The longest stall while no connection is old enough to be cut or replaced: what this machine does by itself."""
    await asyncio.sleep(1.0)  # the standby is joined
    stream.stall = 0.0
    await asyncio.sleep(0.5 * LIFETIME)
    return stream.stall


async def observed(node: Node) -> set[tuple[str, int]]:
    """Where relays see a node's listen port, as its record says."""
    addresses = getattr(await node.discovery(), "self").addresses  # noqa: B009  self is its name
    return {(it.ip, it.tunnel_port) for it in addresses if it.source == discovery_pb2.ADDRESS_SOURCE_OBSERVED}


def lines(mesh: Mesh, node: str, *texts: str) -> int:
    """How many lines of a tunnel's log contain all these texts."""
    log = mesh.nodes[node].log("tunnel").read_text().splitlines()
    return sum(all(text in line for text in texts) for line in log)


async def _observe(mesh: Mesh, stream: Stream) -> None:
    def said(node: str, text: str) -> int:
        return lines(mesh, node, text)

    async def rotated() -> bool:
        words = ("link rotated peer=b relay=r1", "link rotated peer=b relay=r2")
        return all(said("a", text) for text in (*words, "relay control rotated relay=r1", "control rotated relay=r2"))

    seen = await eventually(lambda: observed(mesh.a), "relays see the listen port")
    began, normal = time.monotonic(), await usual(stream)
    await eventually(
        rotated, "the lifetime is known, and links and relays are rotated", timeout=5 * LIFETIME + PATIENCE
    )
    print(f"known and rotated after {time.monotonic() - began:.1f} s, longest stall {stream.stall:.3f} s")
    await asyncio.sleep(NOTICED)  # what was cut before is lost only when somebody misses it
    lost = [said(node, "link lost") for node in "ab"]
    failed, rotations = said("a", "relay control failed"), said("a", "rotated")
    for relay in ("r1", "r2"):
        cuts = [lines(mesh, "a", what, f"relay={relay}", "answer") for what in ("link lost", "relay control failed")]
        print(f"{relay}: {cuts} links and control connections were cut")
        assert max(cuts) <= CUTS
    # Long enough for whatever is alive now to be rotated, or else to be cut and missed.
    hidden = 0
    for seconds in (LIFETIME + NOTICED, *[LIFETIME] * (TRIES - 1)):
        stream.stall, until = 0.0, time.monotonic() + seconds
        while time.monotonic() < until:
            hidden += not await observed(mesh.a)
            await asyncio.sleep(0.5)
        print(f"then, for {seconds:.0f} s, longest stall {stream.stall:.3f} s, usual {normal:.3f} s")
        if not JUDGED or stream.stall < normal + NO_STALL:
            break
    assert [said(node, "link lost") for node in "ab"] == lost, "no link was cut any more"
    assert said("a", "relay control failed") == failed
    assert said("a", "rotated") >= rotations + 4
    assert not hidden, "where a is seen from outside is known all the time"
    assert not JUDGED or stream.stall < normal + NO_STALL
    await eventually(mesh.warm, "there are an active link and a standby")
    assert any("rotated" in link.why for link in await mesh.a.links("b"))
    assert await observed(mesh.a) == seen, "and it is the listen port that is seen"
    assert not said("b", "rotated"), "b's own NAT cuts nothing, and b does not think so"


async def _observe_punched(mesh: Mesh, stream: Stream) -> None:
    def count(*texts: str) -> int:
        return sum(lines(mesh, node, *texts) for node in "ab")

    def replaced() -> int:
        return count("link rotated", "path=punched") + count("link left")

    async def direct() -> bool:
        active = [await node.active(peer) for node, peer in ((mesh.a, "b"), (mesh.b, "a"))]
        return all(link is not None and link.kind == pb.PATH_KIND_PUNCHED for link in active)

    async def more(than: int) -> bool:
        return replaced() > than

    await eventually(direct, "a hole is punched")
    began, normal = time.monotonic(), await usual(stream)
    await eventually(lambda: more(0), "the lifetime is known, and a punched link replaced", timeout=ROUNDS)
    print(f"known and replaced after {time.monotonic() - began:.1f} s, longest stall {stream.stall:.3f} s")
    await asyncio.sleep(NOTICED)  # what was cut before is lost only when somebody misses it
    await eventually(direct, "the path is direct")
    lost = count("link lost", 'relay=""')
    cuts = {node: lines(mesh, node, "link lost", 'relay=""', "answer") for node in "ab"}
    print(f"{cuts} punched links were cut")
    assert 1 <= cuts["a"] <= CUTS
    calm = 0
    for _ in range(TRIES + 1 if JUDGED else 2):
        stream.stall = 0.0
        await asyncio.sleep(QUIET)
        before, stream.stall, already = stream.stall, 0.0, replaced()
        await eventually(lambda already=already: more(already), "the next one is replaced", timeout=ROUNDS)
        await eventually(direct, "the path is direct again")
        await asyncio.sleep(QUIET)
        print(f"replaced: longest stall {stream.stall:.3f} s, {before:.3f} s just before, usual {normal:.3f} s")
        calm += stream.stall < max(before, normal) + NO_STALL
        if calm == 2:
            break
    assert not JUDGED or calm == 2, "a replacement is not noticed"
    assert count("link lost", 'relay=""') == lost, "no punched link was cut any more"
    print(f"{count('link left')} were left for the standby")
    for node, peer in ((mesh.a, "b"), (mesh.b, "a")):
        kinds = {link.kind for link in await node.links(peer)}
        assert kinds == {pb.PATH_KIND_PUNCHED, pb.PATH_KIND_RELAYED}, "and the standby stays"
