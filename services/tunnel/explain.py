"""Every way to a peer, and why each one is, or is not, the one in use."""

from services.tunnel import dialling
from services.tunnel.backoff import Backoff
from services.tunnel.candidates import Candidate
from services.tunnel.core import paths
from services.tunnel.core.choice import Decision
from services.tunnel.core.link import DIRECT, RELAYED, Link
from services.tunnel.core.punch import SUCCESS
from services.tunnel.keeper import Keeper
from services.tunnel.pairing import Pairing
from services.tunnel.status import CandidateStatus, PeerStatus, PunchStatus, by_preference, of_link, state_of


def explain(
    pairing: Pairing | None,
    keeper: Keeper | None,
    candidates: list[Candidate],
    decision: Decision | None,
    listen_port: int,
    now: float,
) -> PeerStatus:
    """`candidates`: all that are known; those that have become links are told of as such. `decision`: about the relay,
    where it is this side's. `listen_port`: of this node."""
    links = by_preference(pairing.session) if pairing is not None else []
    active = pairing.session.active if pairing is not None else None
    sources = {it.where: it.source for it in candidates}
    taken = {link.relay or link.remote for link in links}
    # A link that the other side dialled comes from another port there than the one that could be dialled.
    accepted = {link.remote for link in links if link.kind == DIRECT and link.owner.came_to(listen_port)}
    taken |= {it.where for it in candidates if it.ip in {dialling.split(remote)[0] for remote in accepted}}
    sources |= dict.fromkeys(accepted, "accepted")
    found = [_of_link(link, active, decision, sources.get(link.remote, "")) for link in links]
    found += [_without_link(it, keeper, active, now) for it in candidates if it.where not in taken]
    return PeerStatus(
        state=state_of(pairing) if pairing is not None else "",
        candidates=found,
        punch=_punch(pairing, now) if pairing is not None and active is not None and active.kind != DIRECT else None,
    )


def _of_link(link: Link, active: Link | None, decision: Decision | None, source: str) -> CandidateStatus:
    status, rtt = of_link(link, active), link.path_rtt.smoothed
    known = rtt is not None and active is not None and active.path_rtt.smoothed is not None
    return CandidateStatus(
        kind=link.kind,
        where=link.remote,
        relay=link.relay,
        state=status.state,
        rtt=rtt,
        behind=link.rtt - active.rtt if known and active is not None and link is not active else None,
        retry_in=None,
        why=f"{status.why}; relay: {_why_relay(link, decision)}" if link is active and link.relay else status.why,
        score=paths.score(link),
        source=source,
    )


def _why_relay(link: Link, decision: Decision | None) -> str:
    if decision is not None and decision.relay == link.relay:
        return decision.why
    return "the other side's choice" if link.agreed else "the first that answered"


def _without_link(candidate: Candidate, keeper: Keeper | None, active: Link | None, now: float) -> CandidateStatus:
    backoff = keeper.backoff(candidate) if keeper is not None else Backoff()
    failed = backoff.why != ""
    why = backoff.why
    if not failed:
        needed = candidate.kind == DIRECT and (active is None or active.kind == RELAYED)
        tried = "not tried yet" if needed else "not needed: the paths in use are as good"
        why = tried if active is not None else "no session has needed it yet"
    return CandidateStatus(
        kind=candidate.kind,
        where="" if candidate.relay else candidate.where,
        relay=candidate.relay,
        state="failed" if failed else "untried",
        rtt=None,
        behind=None,
        retry_in=max(backoff.until - now, 0.0) if failed else None,
        why=why,
        score="",
        source=candidate.source,
    )


def _punch(pairing: Pairing, now: float) -> PunchStatus:
    punch = pairing.punch
    waiting = punch.starter and not punch.busy(now) and punch.outcome != SUCCESS
    return PunchStatus(punch.starter, punch.attempts, punch.outcome, punch.due_in(now) if waiting else None)
