"""Which link carries the data, and which ones are worth keeping."""

from collections.abc import Iterable, Sequence

from services.tunnel.core.link import DIRECT, PATH_NAMES, Link

GAIN_SECONDS = 0.005
GAIN_SHARE = 0.2
"""Within a class a switch must gain max(5 ms, 20 %): iroh uses 5 ms, firezone 20 % and 10 ms."""
SETTLE_SECONDS = 1.0
"""A link that has just become active is not left for a faster one of its class any sooner."""


def rank(link: Link) -> tuple[int, int, bool, float]:
    """Order of preference: staying, class (direct, punched, relayed), the relay both ends agreed on, round trip."""
    return (link.draining, link.kind, not link.agreed, link.rtt)


def choose(links: Iterable[Link], active: Link | None, now: float) -> Link | None:
    """The link that should be active; `active` stays unless it is unusable or clearly beaten."""
    usable = [link for link in links if link.usable]
    if not usable:
        return None
    best = min(usable, key=rank)
    if active is None or active not in usable or best is active:
        return best
    if rank(best)[:3] < rank(active)[:3]:
        return best
    if best.path_rtt.smoothed is None or now - active.active_since < SETTLE_SECONDS:
        return active
    return best if active.rtt - best.rtt >= max(GAIN_SECONDS, GAIN_SHARE * active.rtt) else active


def standby(links: Iterable[Link], active: Link | None) -> Link | None:
    """The best usable link that does not share the active one's fate; else any other usable one."""
    usable = [link for link in links if link.usable and link is not active]
    apart = [link for link in usable if active is None or not same_way(link, active)]
    return min(apart or usable, key=rank, default=None)


def same_way(link: Link, other: Link) -> bool:
    """They die together: all direct and punched links are one way, as are all over one relay."""
    return link.relay == other.relay


def wants_standby(active: Link | None) -> bool:
    """Relayed and punched paths get a warm standby; a direct one stands alone."""
    return active is not None and active.kind != DIRECT


def surplus(links: Sequence[Link], active: Link | None, now: float) -> list[Link]:
    """Links that serve nothing: neither active nor the standby, nor stale with nothing fresh in their place.

    None before the peer has answered on the active one since it became that: it may be lost at the other end already.
    """
    if active is None or active.doubted or active.progress <= active.active_since:
        return []
    keep = {active.id}
    # A link over a relay that drains is a standby until there is another, but its relay waits for it.
    second = standby(links, active)
    if wants_standby(active) and second is not None and not (second.draining and now >= second.leave_at):
        keep.add(second.id)
    return [
        link for link in links if (link.usable or (link.answers and same_way(link, active))) and link.id not in keep
    ]


def score(link: Link) -> str:
    """`rank` in words."""
    known = link.path_rtt.smoothed is not None
    words = (
        "draining" if link.draining else "",
        PATH_NAMES[link.kind],
        "agreed" if link.agreed else "",
        f"{link.rtt * 1000:.1f} ms" if known else "not measured",
    )
    return ", ".join(filter(None, words))


def explain(link: Link, active: Link | None) -> str:
    """One line: why this link is or is not the active one."""
    return f"{_explain(link, active)}; {link.note}" if link.note else _explain(link, active)


def _explain(link: Link, active: Link | None) -> str:
    if link is active:
        return "draining, no better path yet" if link.draining else "best usable path"
    if not link.confirmed:
        return "not confirmed by the peer yet"
    if link.closing:
        return "closing"
    if link.suspect_since is not None or link.distrusted:
        return "no answer in time" if link.suspect_since is not None else "the peer gets no answer on it"
    if link.stale_since is not None:
        return "was silent, and its TCP is slow for it: a fresh one is looked for"
    if link.draining:
        return "its relay is draining"
    if active is not None and link.kind != active.kind:
        return "lower class of path" if link.kind > active.kind else "about to become active"
    if active is None:
        return "about to become active"
    if active.agreed and not link.agreed:
        return "warm standby: both ends have agreed on the other relay"
    gain = active.rtt - link.rtt
    needed = max(GAIN_SECONDS, GAIN_SHARE * active.rtt)
    role = "standby over the same relay" if active.relay and link.relay == active.relay else "warm standby"
    if gain <= 0:
        return f"{role}: {-gain * 1000:.1f} ms slower than the active path"
    return f"{role}: a gain of {gain * 1000:.1f} ms, a switch needs {needed * 1000:.1f} ms"
