"""The ways to a peer that may be tried, best first."""

from collections.abc import Collection
from dataclasses import dataclass

from services.tunnel import dialling
from services.tunnel.core.choice import LOAD_LIMIT, Use
from services.tunnel.core.gaps import BETTER, STANDBY
from services.tunnel.core.link import DIRECT, RELAYED
from services.tunnel.peers import PeerInfo
from services.tunnel.relays import RelayPool

MAX_DIRECT, MAX_RELAYED = 16, 8
"""Addresses of a peer, and relays, that are tried."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to the peer."""

    kind: int
    where: str
    """ "ip:port", or the relay's name."""
    ip: str = ""
    port: int = 0
    relay: str = ""
    source: str = ""
    """How the address is known, see OwnAddress; empty for a relay."""
    full: bool = False
    """The relay is over its limit: asked when no other has answered for a while."""

    @property
    def fills(self) -> str:
        """The gap that it closes in a session that has a link already."""
        return BETTER if self.kind == DIRECT else STANDBY


def find(
    relays: RelayPool, peer: str, info: PeerInfo | None, use: Use, suggested: Collection[str] = ()
) -> list[Candidate]:
    """All that we know of. `use`: of relays by this node's sessions; `suggested`: by relays that refused a circuit."""
    found: dict[str, Candidate] = {}
    for address in info.addresses[:MAX_DIRECT] if info is not None else ():
        where = dialling.join(address.ip, address.port)
        found.setdefault(where, Candidate(DIRECT, where, address.ip, address.port, source=address.source))
    for name in relays.ranked(peer, use, suggested)[:MAX_RELAYED]:
        if name not in (peer, relays.settings.node_name) and not relays.draining(name):
            found.setdefault(name, Candidate(RELAYED, name, relay=name, full=relays.load(name) >= LOAD_LIMIT))
    return list(found.values())
