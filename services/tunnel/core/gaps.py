"""What a session lacks: any path at all, one that is not relayed, a second one over another relay."""

from collections.abc import Collection

from services.tunnel.core import paths
from services.tunnel.core.link import DIRECT, PUNCHED, Link

ANY, BETTER, STANDBY = "any", "better", "standby"


def among(links: Collection[Link], active: Link | None) -> set[str]:
    """What a session with these links lacks."""
    serving = [link for link in links if link.usable and not link.draining]
    if not serving:
        return {ANY}
    gaps = set()
    if paths.wants_standby(active):
        if not any(link.kind in (DIRECT, PUNCHED) for link in serving):
            gaps.add(BETTER)
        if len({link.relay for link in serving}) < 2:
            gaps.add(STANDBY)
    return gaps


def left(links: Collection[Link]) -> set[str]:
    """As `among`, while links are being added: one that was just joined counts although the peer has not confirmed it."""
    serving = [link for link in links if not (link.closing or link.draining) and link.suspect_since is None]
    kinds = {link.kind for link in serving}
    if DIRECT in kinds:
        return set()
    gaps = set() if PUNCHED in kinds else {BETTER} if serving else {ANY, BETTER}
    return gaps if len({link.relay for link in serving}) > 1 else gaps | {STANDBY}
