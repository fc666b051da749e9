"""When each of several ways to a peer is tried, so that the better ones may answer first."""

import random
from collections.abc import Iterable, Iterator

from services.tunnel import dialling
from services.tunnel.candidates import Candidate
from services.tunnel.core.link import DIRECT

PUBLIC, PRIVATE = 0.25, 0.03
"""Seconds between dials of one peer's addresses (go-libp2p)."""
RELAY_HEADSTART = 0.05
"""Seconds that direct addresses get before the relays are asked."""
FULL_DELAY = 1.0
"""Seconds later a relay is asked that is over its limit: however near it is, others with room shall answer first."""
STANDBY = 1.0
"""Seconds between the relays that are asked for a standby: it shall be over the one that was chosen, not over the one
that answers first."""
STANDBY_SMEAR = 0.5
"""Seconds within which a lost standby is looked for, at random: a relay that dies costs many sessions theirs, whose
handshakes come just when all their streams are sent again."""


def delays(candidates: Iterable[Candidate], *, urgent: bool) -> Iterator[tuple[Candidate, float]]:
    """Each of them, the best first, with the seconds until it is tried. `urgent`: there is no path at all."""
    start, relay_start = 0.0, 0.0 if urgent else random.uniform(0.0, STANDBY_SMEAR)
    for candidate in candidates:
        if candidate.kind == DIRECT:
            yield candidate, start
            start += PRIVATE if dialling.is_private(candidate.ip) else PUBLIC
            relay_start = max(relay_start, RELAY_HEADSTART)
        else:
            yield candidate, relay_start + FULL_DELAY * candidate.full
            relay_start += PRIVATE if urgent else STANDBY
