"""What a session lacks: any path at all, one that is not relayed, a second one over another relay."""

from collections.abc import Collection

from services.tunnel.core import paths
from services.tunnel.core.link import DIRECT, PUNCHED, Link

ANY, BETTER, STANDBY = "any", "better", "standby"

RESPONDER_PATIENCE = {ANY: 1.0, STANDBY: 3.0}
"""Seconds the side that did not initiate waits before it dials: usually the other one is at it. Longer where nobody
waits for the path: the initiator chooses the relay, see core/choice."""
SILENCE_PATIENCE = 0.3
"""The same where no path was lost but the only one fell silent: the initiator may have noticed nothing, if it had nothing to
say. If it had, it is as quick to doubt, and has a new path in that time."""
DOUBT_PATIENCE = 1.0
"""Seconds more while doubted links may still answer, and there is another or they are several: two ways that fall silent at
once are seldom dead, but somewhere a host is too busy to answer in time, and every dial makes the next answer later. Of
1105 doubts in a crowd on a busy machine not one came true, and three of four ended within that time."""
AT_ONCE = 2.0
"""Seconds between two such doubts: a way is doubted after 1.5 s at the latest, and the next one is tried then. What fell
silent before that is dead, and says nothing of this host: with it lost direct paths stood still for 1.7 s, now 0.7."""

CONFIRM_PATIENCE = 1.0
"""Seconds that a link which was just joined has for the peer's first word on it: two round trips of the slowest path that
is of use. No more, since whoever repeats a JOIN gets such a link, too, and from when the gap began, however many he makes."""


def among(links: Collection[Link], active: Link | None) -> set[str]:
    """What a session with these links lacks."""
    serving = [link for link in links if link.usable and not link.draining and _helps(link, active)]
    if not serving:
        return {ANY}
    gaps = set()
    if paths.wants_standby(active):
        if not any(link.kind in (DIRECT, PUNCHED) for link in serving):
            gaps.add(BETTER)
        if len({link.relay for link in serving}) < 2:
            gaps.add(STANDBY)
    return gaps


def left(links: Collection[Link], active: Link | None) -> set[str]:
    """As `among`, while links are being added: one that was just joined counts although the peer has not confirmed it."""
    serving = [
        link
        for link in links
        if not (link.closing or link.draining)
        and link.suspect_since is None
        and link.stale_since is None
        and _helps(link, active)
    ]
    kinds = {link.kind for link in serving}
    if DIRECT in kinds:
        return set()
    gaps = set() if PUNCHED in kinds else {BETTER} if serving else {ANY, BETTER}
    return gaps if len({link.relay for link in serving}) > 1 else gaps | {STANDBY}


def patience(gap: str, links: Collection[Link], *, initiator: bool) -> float:
    """Seconds for which a gap is left alone: the other side, or time, may close it."""
    doubted = _ways_doubted(links)
    doubt = doubted > 1 if gap == ANY else doubted > 0 if gap == STANDBY else False
    joined = gap == ANY and any(not (link.confirmed or link.closing) for link in links)
    wait = max(DOUBT_PATIENCE * doubt, CONFIRM_PATIENCE * joined)
    if initiator:
        return wait
    return wait + (SILENCE_PATIENCE if gap == ANY and doubted else RESPONDER_PATIENCE.get(gap, 0.0))


def _helps(link: Link, active: Link | None) -> bool:
    """While the active link is suspect one by the same way is no help, unless it has answered since."""
    if active is None or active.suspect_since is None or not paths.same_way(link, active):
        return True
    return link.progress > active.suspect_since


def _ways_doubted(links: Collection[Link]) -> int:
    """Ways that fell silent at once. Direct and punched links are one way, as are all over one relay: they die together."""
    doubted = [link for link in links if link.doubted]
    newest = max((link.suspect_since for link in doubted if link.suspect_since is not None), default=0.0)
    return len({it.relay for it in doubted if it.suspect_since is None or newest - it.suspect_since < AT_ONCE})
