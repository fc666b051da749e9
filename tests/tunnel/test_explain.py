"""What is told of the ways to a peer."""

from pathlib import Path

from services.tunnel.core.link import DIRECT, RELAYED
from services.tunnel.peers import PeerAddress, PeerInfo
from tests.tunnel.inside import inside
from tests.tunnel.local import until


async def test_a_link_is_listed_once_with_what_its_rank_follows_from_and_how_its_address_is_known(
    short_path: Path,
) -> None:
    """Also at the end that accepted it, where it comes from another port than the one that could be dialled."""
    async with inside(short_path) as here:
        await here.relay("r")
        a, b = await here.tunnel("a"), await here.tunnel("b", listens=True)
        here.directory.publish(PeerInfo("b"))
        await until(lambda: a.reserved() == b.reserved() == {"r"}, "both have the relay")
        await a.tunnel.ping("b", 1, 30)
        before = [way for way in (await a.tunnel.explain("b")).candidates if way.state == "active"]
        assert [(way.kind, way.source) for way in before] == [(RELAYED, "")]
        assert before[0].score.startswith("relayed, ") and before[0].score.endswith(" ms")

        here.directory.publish(
            PeerInfo(
                "a",
                (PeerAddress(a.address, 20006, "interface"), PeerAddress("192.0.2.1", 20006, "mdns")),
                reservations=("r",),
                revision=99,
            )
        )
        here.directory.publish(
            PeerInfo("b", (PeerAddress(b.address, 20006, "observed"),), reservations=("r",), revision=99)
        )
        pairing = a.tunnel.sessions.preferred["b"]
        await until(lambda: pairing.session.active.kind == DIRECT, "a dials b")
        await until(lambda: b.tunnel.sessions.preferred["a"].session.active.kind == DIRECT, "b is on it, too")
        [dialled, *_] = (await a.tunnel.explain("b")).candidates
        assert (dialled.state, dialled.source) == ("active", "observed")
        assert dialled.score.startswith("direct, ")

        ways = (await b.tunnel.explain("a")).candidates
        direct = [(way.state, way.where, way.source) for way in ways if way.kind == DIRECT]
        assert direct[0][0] == "active" and direct[0][2] == "accepted"
        assert direct[1:] == [("untried", "192.0.2.1:20006", "mdns")], "the one of the link is not listed again"
        assert "not needed" in next(way.why for way in ways if way.source == "mdns")
