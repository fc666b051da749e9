"""Which link each record of a session goes on, and what goes again when a link is doubted or lost.

Between `Signals`, which says things on links, and `Carrier`, which decides about them.
"""

from services.tunnel.core import events
from services.tunnel.core.events import Event
from services.tunnel.core.handover import AT_HAND, Handover
from services.tunnel.core.inbox import Inbox
from services.tunnel.core.link import BACKLOG_LIMIT, NOT_SENT, Link
from services.tunnel.core.outbox import Outbox, Record
from services.tunnel.core.signals import Signals

TRIAL_BYTES = 64 * 1024
"""What a standby gets before it answers: all of a request, and no more of a bulk stream than a slow path bears."""


class Dispatch(Signals):
    """See the module."""

    def __init__(self, outbox: Outbox, inbox: Inbox, now: float) -> None:
        super().__init__(inbox, now)
        self.outbox = outbox
        self.links: list[Link] = []
        self.active: Link | None = None
        self.second: Link | None = None
        """While the active link is doubted: the link that is tried, and takes over if it answers first."""
        self.handover: Handover | None = None
        """While the active link, which is new, cannot take all of the bulk yet."""
        self.resent = 0
        self._trial = 0
        """Bytes of records that the second link may still get before it answers."""
        self._was_blocked = False

    @property
    def blocked(self) -> bool:
        """True while streams must not be read: the link, or the memory for unacknowledged records, is full."""
        outbox = self.outbox
        if outbox.full:
            blocked = True
        elif self.second is not None:
            blocked = self._trial <= 0
        elif self.active is not None:
            blocked = self._waiting(self.active) > BACKLOG_LIMIT
        else:
            blocked = outbox.bytes > BACKLOG_LIMIT
        if blocked:
            self._was_blocked = True
        return blocked

    def _waiting(self, active: Link) -> int:
        """Bytes that are before what is read now."""
        if self.handover is None:
            return active.backlog
        former = self.handover.old
        return former.backlog if former is not None else self.outbox.bytes - active.unheard

    def at_hand(self, link: Link) -> int:
        """Bytes that the kernel should have of the link beyond what TCP has on its way."""
        handover = self.handover
        return AT_HAND if handover is not None and handover.old is None and link is handover.new else NOT_SENT

    def _unblock(self, out: list[Event]) -> None:
        if self._was_blocked:
            self._was_blocked = False
            if self.blocked:
                return
            out.append((events.UNBLOCKED, None, None))

    def _dispatch(self, record: Record, now: float) -> None:
        active, second = self.active, self.second
        if second is not None:
            if self._trial > 0:
                self._trial -= record.size
                second.push(record, now)
            if active is not None and active.backlog < BACKLOG_LIMIT // 8:
                active.push(record, now)
            self.outbox.orphan(record)  # if neither took it
            return
        carrier = active if self.handover is None else self.handover.carrier(record.size)
        if carrier is not None:
            carrier.push(record, now)
        else:
            self.outbox.orphan(record)  # it waits

    def _send_orphans(self, now: float, *, presumed: bool = False) -> None:
        """`presumed`: those, too, that have probably arrived."""
        for record in self.outbox.take_orphans(presumed=presumed):
            self._dispatch(record, now)
            self.resent += record.carried > 0

    def _repeat(self, doubted: Link, now: float) -> None:
        """What a doubted link has not got through goes over the one that gets new records, too. Links other than the
        active one may carry something as well: what was under way when a better path took over."""
        target = self.second or self.active
        if target is None or target is doubted:
            return
        there = {id(record) for record, _ in target.inflight}
        for record, _ in doubted.inflight:
            if not (record.acked or record.heard or id(record) in there):
                if target is self.second:
                    if self._trial <= 0:
                        return
                    self._trial -= record.size
                self.resent += 1
                target.push(record, now)
