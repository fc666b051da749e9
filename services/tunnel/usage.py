"""What a node's sessions make of the relays."""

from collections import Counter
from collections.abc import Collection

from services.tunnel.core import paths
from services.tunnel.core.choice import Use
from services.tunnel.pairing import Pairing

MANY = 64
"""Sessions up to which they are counted: more are even by lot, and to count them for each of them would take long."""


def of(pairings: Collection[Pairing], pairing: Pairing | None) -> Use:
    """For the choice of a relay for `pairing`, which does not count itself; None: for a session to come."""
    active = pairing.session.active if pairing is not None else None
    without = active.relay if active is not None else ""
    found: Counter[str] = Counter()
    if len(pairings) <= MANY:
        for session in (other.session for other in pairings if other is not pairing):
            link = session.active
            if link is not None and link.relay and link.relay == without:
                link = paths.standby(session.links, link)
            if link is not None and link.relay:
                found[link.relay] += 1
    return Use(without, found)
