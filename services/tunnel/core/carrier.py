"""The links of a session: which one is used, which one is doubted, and what each still owes.

Below `Session`, which knows streams; this half knows links. Nothing here reads a clock, a socket or a key.
"""

from collections import deque

from services.tunnel.core import control, events, paths
from services.tunnel.core.absence import Absences
from services.tunnel.core.control import Control
from services.tunnel.core.dispatch import TRIAL_BYTES, Dispatch
from services.tunnel.core.events import Event
from services.tunnel.core.handover import FAR, Handover
from services.tunnel.core.inbox import Inbox
from services.tunnel.core.link import BACKLOG_LIMIT, DEAD_AFTER, PING_QUICK, STALE_FOR, Link
from services.tunnel.core.outbox import Outbox
from services.tunnel.core.packets import CorruptLink, ProtocolError
from services.tunnel.core.stream import Stream

ACK_DELAY = 0.02
"""An acknowledgement waits at most this long for company, seconds: a tenth of the quickest suspicion."""
CONFIRM_WITHIN = 10.0
"""A link on which the peer has said nothing authentic for this long after it was joined is closed, seconds."""
CLOSE_AFTER = 5.0
"""A link that was said goodbye to is closed after this long even if not all was heard, seconds."""
MAX_LOST = 8
"""Links lost on this side, of which the peer is told on each that becomes active."""
SURPLUS_AFTER = 3.0
"""A link younger than this is not retired as surplus, seconds: the other side may be about to put it into the place of
another one."""
STANDBY_KEPT = 2.0
"""A standby over a relay that drains is kept for so long, or until there is another, seconds: the relay gives its clients
5 s (relay/post), and they begin to move within the first third of it."""


class Carrier(Dispatch):
    """The links of one session; `initiator` alone retires surplus ones."""

    def __init__(self, *, initiator: bool, outbox: Outbox, inbox: Inbox, absences: Absences, now: float) -> None:
        super().__init__(outbox, inbox, now)
        self.initiator = initiator
        self.absences = absences
        self.streams: dict[int, Stream] = {}
        """Open streams; here it only matters whether there are any."""
        self.linkless_since: float | None = now
        self.ended = False
        self.switches = 0
        self._stalled: tuple[str, float] | None = None
        self._surveyed_at = now
        self._lost: deque[int] = deque(maxlen=MAX_LOST)
        self.agreed = ""
        """The relay on which the initiator wants both ends to be; empty: none was named."""

    @property
    def busy(self) -> bool:
        """True while something waits that `tick` must look after soon."""
        return any(
            link.inflight or link.heard_said != link.heard_in or link.ping_sent is not None or link.closing
            for link in self.links
        )

    def link_up(self, link: Link, now: float) -> None:
        """A link was joined; it is used once the peer's first sealed packet came. Asks for that at once."""
        self.now = now
        link.agreed = bool(link.relay) and link.relay == self.agreed
        self.links.append(link)
        self._ping(link, now)

    def link_down(self, link: Link, now: float, cause: str) -> list[Event]:
        """The shell lost or closed a link. What only it carried goes onto the next one at once."""
        self.now = now
        out: list[Event] = []
        if link not in self.links:
            return out
        self.links.remove(link)
        was_needed = link is self.active and not link.closing
        if was_needed:
            if self.streams:
                self._stall(cause, link, now)
            link.presume(now)
        link.drop(self.outbox)
        if self.handover is not None and link is self.handover.old:
            self.handover = None
            self._unblock(out)
        if self.second is link:
            self.second = None
        if self.active is link:
            self.active = self.handover = None
        if link.confirmed and cause != "retired":
            self._lost.append(link.id)
        self._elect(now, cause, out)
        if self.active is not None:
            self._tell_lost(self.active)
            self._send_orphans(now)
        if self.linkless_since is None and not any(left.confirmed for left in self.links):
            self.linkless_since = now
        return out

    def retire(self, link: Link) -> None:
        """Leaves a link in order: says so, sends nothing new on it, closes when the rest was heard."""
        if self.handover is not None and link is self.handover.old:
            self.handover.retires = True  # when it is over
            return
        if not link.closing:
            link.closing, link.closing_since = True, self.now
        if not link.goaway_sent:
            link.goaway_sent = True
            self._say(link, control.GOAWAY)

    def replace(self, old: Link, new: Link, now: float) -> list[Event]:
        """`new` does from now on what `old` did; `old` is left in order."""
        self.now = now
        out: list[Event] = []
        if old is self.active:
            self._move(new, now, "rotated", out)
        self.retire(old)
        return out

    def drain_relay(self, relay: str) -> list[Event]:
        """The relay said that it will stop: its links are left as soon as there is another."""
        out: list[Event] = []
        for link in self.links:
            if link.relay == relay and not link.draining:
                link.draining, link.leave_at = True, self.now + STANDBY_KEPT
        self._elect(self.now, "drain", out)
        return out

    def agree(self, relay: str, cause: str = "nearer_relay") -> list[Event]:
        """The initiator chose a relay: its links come before those over others."""
        out: list[Event] = []
        self._agree_on(relay)
        self._elect(self.now, cause, out)
        return out

    def _agree_on(self, relay: str) -> None:
        self.agreed = relay
        for link in self.links:
            link.agreed = bool(relay) and link.relay == relay

    def revalidate(self, now: float) -> None:
        """The clock jumped or the network changed: ask every link at once."""
        for link in self.links:
            link.ping_interval = PING_QUICK
            self._ping(link, now)

    def probe(self, link: Link, now: float) -> None:
        """Measures one link's round trip now."""
        self._ping(link, now)

    def note(self, text: bytes) -> None:
        """Tells the peer's driver something, if a link is there; not repeated when that link dies."""
        if self.active is not None:
            self._say(self.active, control.NOTE, note=text)

    def _tend(self, now: float, out: list[Event]) -> None:
        """What time brings for the links: acknowledgements, pings, suspicion, goodbyes."""
        for link in list(self.links):
            if link.closing:
                done = link.goaway_sent and link.goaway_heard and not link.inflight and not link.queue
                if done or now - link.closing_since > CLOSE_AFTER:
                    out.append((events.CLOSE_LINK, link, "retired"))
                    continue
            if link.heard_said != link.heard_in and now - link.owed_since >= ACK_DELAY:
                self._say(link)
            if now >= link.next_ping:
                self._ping(link, now)
            if link.stale_since is not None and now - link.stale_since > STALE_FOR:
                link.stale_since = None
            if not link.confirmed:
                if now - link.started > CONFIRM_WITHIN:
                    out.append((events.CLOSE_LINK, link, "silent"))
            elif link.suspect_since is None:
                if link.silent(now, self.absences):
                    self._suspect(link, now, out)
            elif now - link.suspect_since > DEAD_AFTER:
                out.append((events.CLOSE_LINK, link, "silent"))
        if not any(link.confirmed for link in self.links) and self.linkless_since is None:
            self.linkless_since = now
        if self.handover is not None:
            self._hand_over(self.handover, now, out)
        if now - self._surveyed_at >= 1.0:
            self._surveyed_at = now
            self._elect(now, "better_path", out)
            if self.initiator:
                for link in paths.surplus(self.links, self.active, now):
                    if now - link.started >= SURPLUS_AFTER:
                        self.retire(link)

    def _hand_over(self, handover: Handover, now: float, out: list[Event]) -> None:
        """What time brings for it."""
        if handover.over(now):
            self.handover = None
            if handover.old is not None and handover.retires:
                self.retire(handover.old)
        if handover.old is None:
            self._send_orphans(now)
        self._unblock(out)

    def _elect(self, now: float, cause: str, out: list[Event]) -> None:
        best = paths.choose(self.links, self.active, now)
        if best is None:
            best = self.active
            if best is None:
                doubted = [link for link in self.links if link.confirmed and not link.closing]
                best = max(doubted, key=lambda link: link.progress, default=None)
        if best is self.active:
            return
        if self.active is not None and self.active.doubted:
            self._double(now)  # whichever answers first becomes active, see _answered
            return
        self._move(best, now, cause, out)

    def _move(self, link: Link | None, now: float, cause: str, out: list[Event]) -> None:
        """Nothing is wrong with the link that was active, if there was one."""
        handover = self.handover
        former = self.active if handover is None else handover.old  # it still carries most, whatever took over from it
        self._activate(link, now, cause, out)
        if former is not None and link is not None and former is not link and former.usable and former.queueing:
            self.handover = Handover(former, link, now)
            self.handover.retires = handover is not None and handover.retires

    def _activate(self, link: Link | None, now: float, cause: str, out: list[Event]) -> None:
        if self.active is not None or link is None:
            self.switches += 1
        self.active = link
        self.second = self.handover = None
        if link is not None and link.rtt >= FAR and self.outbox.orphaned:
            self.handover = Handover(None, link, now)
        out.append((events.SWITCHED, link, cause))
        if link is not None:
            link.active_since = now
            self.linkless_since = None
            if link.relay and self.agreed != link.relay:
                # The relay agreed on is lost, for now. When it answers again it is not better for that: a host that is
                # too busy to answer in time would go back and forth, and be busier.
                self._agree_on("")
            self._tell_lost(link)
            for doubted in self.links:
                if doubted.doubted:
                    self._repeat(doubted, now)
            self._send_orphans(now)
            self._unblock(out)

    def _tell_lost(self, link: Link) -> None:
        """Perhaps only this side knows: an address that is gone takes no reset along, and the peer would go on
        sending on what it takes for its best path. Told again each time: the last one may have been dead, too."""
        for lost in self._lost:
            self._say(link, control.SUSPECT, about=lost)

    def _suspect(self, link: Link, now: float, out: list[Event]) -> None:
        """No answer in time: the standby is tried."""
        link.suspect_since = now
        if link is self.second:
            self.second = None
        out.append((events.SUSPECTED, link, None))
        if link is self.active:
            if self.streams:
                self._stall("relay_silent" if link.relay else "path_silent", link, now)
            self._double(now)
            self._unblock(out)
        elif self.active is not None and self.active.doubted:
            self._double(now)  # the standby is doubted, too: perhaps there is a third
        else:
            self._repeat(link, now)

    def _double(self, now: float) -> None:
        """Tries the standby with the first of what the doubted active link did not get through.

        All of it would fill a narrow path that both share (the node's own uplink) just when it is slow, and so make
        the doubt come true. What fits the trial is all there is of requests and answers; bulk waits one round trip.
        """
        active = self.active
        second = paths.standby(self.links, active)
        if active is None or second is None or second is self.second:
            return
        self.second = second
        self._trial = TRIAL_BYTES
        self._say(second, control.SUSPECT, about=active.id)
        self._ping(second, now)
        for link in self.links:
            if link is active or link.doubted:
                self._repeat(link, now)

    def _answered(self, link: Link, now: float, out: list[Event]) -> None:
        """The peer confirmed something on this link."""
        link.distrusted = False
        if link.suspect_since is not None:
            link.recovered(now, active=link is self.active)
            out.append((events.RECOVERED, link, None))
        if link is self.second:
            self._activate(link, now, "silent", out)
        elif link is self.active and (self.second is not None or self.outbox.orphaned):
            self.second = None
            self._send_orphans(now)
            self._unblock(out)
        if self._stalled is not None and link is self.active:
            cause, since = self._stalled
            self._stalled = None
            out.append((events.STALLED, cause, max(now - since, 0.0)))

    def _stall(self, cause: str, link: Link, now: float) -> None:
        if self._stalled is None:
            since = link.outstanding_since()
            self._stalled = (cause, now if since is None else since)

    def _read_control(self, link: Link, message: Control, out: list[Event]) -> None:
        now, flags = self.now, message.flags
        try:
            acked = self.outbox.acknowledge(message.acked)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        try:
            heard = link.confirm(message.heard, message.held / 1000, now)
        except ValueError as error:  # somebody on the way repeats records: not the peer's fault
            raise CorruptLink(str(error)) from error
        if self.outbox.misheard:
            self.outbox.doubt()
            self._send_orphans(now)
        news = heard > 0
        if flags & control.PING and link.backlog <= BACKLOG_LIMIT:
            self._say(link, control.PONG | (control.BUSY if link.queueing else 0), echo=message.stamp)
        if flags & control.PONG and link.ping_sent is not None:
            seconds = ((int(now * 1e6) - message.echo) & 0xFFFFFFFF) / 1e6
            # A ping behind a queue measures the queue. Under load only a better value is news about the path,
            # else the idle standby would always look nearer, and bulk would flap between two equal relays.
            smoothed = link.path_rtt.smoothed
            if smoothed is None or seconds < smoothed or not (link.loaded or flags & control.BUSY):
                link.sample(link.path_rtt, link.ping_sent, seconds)
            out.append((events.MEASURED, link, seconds))
            link.ping_sent = None
            link.progress = now
            news = True
        if news:
            if self.handover is not None and link is self.handover.new:
                self.handover.heard(heard)
            self._answered(link, now, out)
        if acked:
            self._unblock(out)
        if link is self.active and self.second is None and self.outbox.orphaned:
            self._send_orphans(now, presumed=True)  # the peer has said what it has
            self._unblock(out)
        if flags & control.SUSPECT:
            for doubted in self.links:
                if doubted.id == message.about and doubted is not link:
                    doubted.distrusted = True
                    if doubted is self.active:
                        if self.streams:
                            self._stall("relay_silent" if doubted.relay else "path_silent", doubted, now)
                        self._double(now)
                    else:
                        self._repeat(doubted, now)
        if flags & control.GOAWAY:
            link.goaway_heard = True
            self.retire(link)
            if self.active is link:
                self._elect(now, "goaway", out)
        if flags & control.NOTE:
            out.append((events.NOTE, link, message.note))
        if flags & control.END:
            self.ended = True
            out.append((events.ENDED, None, None))
