"""One link as the session sees it: what is in flight on it, how fast it answers, whether it can be trusted.

Liveness is per direction and by data: the peer reports how many records it heard on this link, so a link
that still brings data but no longer takes any is noticed (FAILURES: one-way reachability).
"""

from collections import deque
from typing import Any, Protocol

from services.tunnel.core.absence import Absences
from services.tunnel.core.outbox import Outbox, Record
from services.tunnel.core.packets import FULL_RECORD

DIRECT, PUNCHED, RELAYED = 1, 2, 3
PATH_NAMES = {DIRECT: "direct", PUNCHED: "punched", RELAYED: "relayed"}

SUSPECT_FLOOR = 0.3
SUSPECT_CEILING = 1.5
SUSPECT_RTTS = 3
SUSPECT_DEVIATIONS = 4
"""A link is suspect when nothing is heard for clamp(max(3 x RTT, RTT + 4 x its deviation), 300 ms, 1.5 s) while something is
outstanding: iroh uses clamp(3 x RTT, 500 ms, 5 s); ours only doubles traffic, so it may be quicker. The deviation (RFC 6298)
follows a host that is suddenly busy at the first late answer, the smoothed RTT only at the eighth."""
FLOWING_RTTS = 2
"""The same for a flow that moves, in loaded round trips."""
UNTIL_MEASURED = 1.0
"""Suspicion before the first round trip is measured, seconds."""
DEAD_AFTER = 10.0
"""A suspect link that says nothing for this long is closed, seconds."""
STALE_FOR = 5.0
"""A direct or punched link that answers again when another has taken over is stale: left alone for so many seconds, in which a
fresh one by the same way is made (punching.WINDOW: 3 s). What was under way on the old one comes before what is new, and after a
timeout its TCP grows slowly (slow start ends at two segments, RFC 5681)."""
PING_QUICK = 1.0
PING_IDLE = 15.0
"""Idle links are asked after 1 s, then ever more rarely up to every 15 s."""
RECORD_SECONDS = 0.005
SMALL_RECORD = 12 * 1024
"""A record takes at most about 5 ms of a link, but is never cut below 12 KiB: that and a ping beside it fit into the 10
segments with which a TCP connection begins (RFC 6928)."""
RATE_PERIOD = 0.02
"""Seconds over which the rate is measured."""
LOADED = 64 * 1024
"""Bytes on their way that make a ping measure a queue: 5 ms at 100 Mbit/s."""
NOT_SENT = 256 * 1024
"""TCP_NOTSENT_LOWAT: bytes the kernel takes beyond what TCP has in flight. More would only wait there, out of
our reach: a ping or a small stream's bytes behind it, and all of it to be sent again when the link dies."""
BACKLOG_LIMIT = 512 * 1024
"""Bytes that wait for the kernel before streams are no longer read: a switch has to repeat what waits."""


class PacketCipher(Protocol):
    """Seals and opens packets in place; raises on anything forged."""

    def seal(self, number: int, header: memoryview, plain: memoryview, out: memoryview) -> None: ...

    def open(self, epoch: int, number: int, header: memoryview, body: memoryview, out: memoryview) -> None: ...


class SessionCipher(PacketCipher, Protocol):
    """Seals with the newest epoch; `rekey` starts the next one."""

    epoch: int

    def rekey(self) -> None: ...


class RoundTrip:
    """Smoothed round trip in seconds, its mean deviation (RFC 6298, gains 1/8 and 1/4) and the smallest one seen."""

    __slots__ = ("best", "deviation", "smoothed")

    def __init__(self) -> None:
        self.smoothed: float | None = None
        self.deviation = 0.0
        self.best: float | None = None

    def sample(self, seconds: float) -> None:
        self.best = seconds if self.best is None else min(self.best, seconds)
        if self.smoothed is None:
            # RFC 6298 begins with half of it. 3 x RTT is generous enough, and a link is no worse for being new.
            self.smoothed = seconds
        else:
            self.deviation += (abs(seconds - self.smoothed) - self.deviation) / 4
            self.smoothed += (seconds - self.smoothed) / 8

    @property
    def overdue(self) -> float:
        """Seconds after which an answer is late; 0 until measured."""
        usual = self.smoothed or 0.0
        return max(SUSPECT_RTTS * usual, usual + SUSPECT_DEVIATIONS * self.deviation)


class Link:
    """State of one link; the shell sends what is in `queue` and calls `sent` for it."""

    __slots__ = (
        "_measured",
        "_rate_bytes",
        "_rate_since",
        "active_since",
        "agreed",
        "backlog",
        "bytes_in",
        "bytes_out",
        "cipher",
        "closing",
        "closing_since",
        "confirmed",
        "counter_in",
        "counter_out",
        "counts_from",
        "data_rtt",
        "distrusted",
        "draining",
        "goaway_heard",
        "goaway_sent",
        "heard_at",
        "heard_bytes",
        "heard_in",
        "heard_out",
        "heard_said",
        "id",
        "inflight",
        "kind",
        "last_in",
        "leave_at",
        "loaded",
        "next_ping",
        "note",
        "owed_since",
        "owner",
        "path_rtt",
        "ping_interval",
        "ping_sent",
        "progress",
        "queue",
        "rate",
        "record_size",
        "relay",
        "remote",
        "stale_since",
        "started",
        "suspect_since",
        "unheard",
    )

    def __init__(
        self, link_id: int, kind: int, cipher: PacketCipher, now: float, *, relay: str = "", remote: str = ""
    ) -> None:
        self.id = link_id
        self.kind = kind
        self.relay = relay
        self.remote = remote
        self.note = ""
        """What a person should know of how it came, or why it goes."""
        self.cipher = cipher
        self.owner: Any = None
        self.started = now
        self.queue: deque[tuple[memoryview, Record | None]] = deque()
        self.backlog = 0
        """Bytes in `queue`."""
        self.inflight: deque[tuple[Record, float]] = deque()
        """Records in the order they were put on this link, not yet heard, with the time of each."""
        self.unheard = 0
        """Their bytes."""
        self.counter_out = 0
        self.counter_in = -1
        self.confirmed = False
        """The peer has proved, by a sealed packet on this link, that it is there now."""
        self.heard_out = 0
        """Records of ours that the peer heard on this link."""
        self.heard_in = 0
        """Records of the peer's that came on this link; `heard_said` of them were reported, `heard_bytes` not."""
        self.heard_said = 0
        self.heard_bytes = 0
        self.heard_at = now
        self.owed_since = now
        """When the first of the unreported ones came."""
        self.rate = 0.0
        """Bytes of records per second that the peer hears on this link."""
        self.record_size = SMALL_RECORD
        """Largest record worth sealing for this link, bytes: what it carries in RECORD_SECONDS.

        A record can be opened only when it is complete. On a slow or cold link a large one stands in the way of
        all streams for several round trips; on a fast one it saves work.
        """
        self._rate_bytes = 0
        self._rate_since = now
        self.progress = now
        """When the peer last confirmed something that we sent here."""
        self.last_in = now
        self.path_rtt = RoundTrip()
        """By pings: the path's own delay; used to compare paths."""
        self.data_rtt = RoundTrip()
        """By records, queues included; used to judge silence."""
        self.counts_from = now
        """What was sent before does not measure the path: its answer waited for the end of a silence."""
        self._measured = True
        """Something counted since then."""
        self.ping_sent: float | None = None
        self.loaded = False
        """The outstanding ping was sent behind much data."""
        self.next_ping = now
        self.ping_interval = PING_QUICK
        self.suspect_since: float | None = None
        self.distrusted = False
        """The peer suspects it."""
        self.stale_since: float | None = None
        """Since when it answers again; for STALE_FOR."""
        self.draining = False
        """Its relay is about to stop: usable, but to be left, …"""
        self.leave_at = now
        """… at the latest then."""
        self.agreed = False
        """It goes over the relay on which both ends have agreed."""
        self.closing = False
        """GOAWAY was said or heard: no new records."""
        self.closing_since = now
        self.goaway_sent = False
        self.goaway_heard = False
        self.active_since = now
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def rtt(self) -> float:
        """Path round trip for comparison, seconds; 0.25 until measured."""
        return self.path_rtt.smoothed if self.path_rtt.smoothed is not None else 0.25

    @property
    def queueing(self) -> bool:
        """So much is under way that whatever is sent now waits behind it."""
        return self.backlog + self.unheard > LOADED

    @property
    def answers(self) -> bool:
        """The peer does, on this link."""
        return self.confirmed and not self.closing and not self.doubted

    @property
    def usable(self) -> bool:
        """It may become the active one."""
        return self.answers and self.stale_since is None

    @property
    def doubted(self) -> bool:
        """One of both ends gets no answer on it."""
        return self.suspect_since is not None or self.distrusted

    def silence_allowed(self, *, flowing: bool) -> float:
        """Seconds without news about outstanding data before the link is suspect.

        `flowing`: news came after the oldest outstanding record was sent. Then the next is due at the pace of the
        flow, and queues are less of an excuse: TCP needs about one loaded round trip to mend a loss.
        """
        path, data = self.path_rtt, self.data_rtt
        if path.smoothed is None and data.smoothed is None:
            return UNTIL_MEASURED
        allowed = max(path.overdue, FLOWING_RTTS * (data.smoothed or 0.0) if flowing else data.overdue)
        return min(max(allowed, SUSPECT_FLOOR), SUSPECT_CEILING)

    def outstanding_since(self) -> float | None:
        """Since when the peer owes us an answer on this link."""
        oldest = self.inflight[0][1] if self.inflight else None
        if self.ping_sent is not None and (oldest is None or self.ping_sent < oldest):
            oldest = self.ping_sent
        return None if oldest is None else max(oldest, self.progress)

    def silent(self, now: float, absences: Absences) -> bool:
        """True when an answer is overdue. Time in which we did not run does not count, up to SUSPECT_CEILING in all: on a
        host that is always starved a dead link must be noticed, too.

        While records come in, the answer may wait behind them in the peer's queue: no offence. Should our
        direction be dead, the peer misses our reports about those records, and tells us on another link.
        """
        since = self.outstanding_since()
        if since is None:
            return False
        began = max(since, self.heard_at)
        allowed, quiet = self.silence_allowed(flowing=since == self.progress), now - began
        return quiet > allowed and (quiet > SUSPECT_CEILING or quiet - absences.within(began, now) > allowed)

    def recovered(self, now: float, *, active: bool) -> None:
        """The peer answers again. `active`: on the link that has been in use all the time, if doubted.

        Answers to what was sent before tell how long the silence was, not how long the path is: taken for round trips
        they would make the next silence last longer (a relay frozen for 1 s: 0.3 s of doubt grew to 1.1 s). Only until
        something counts again, or a path that has really become so slow would never be measured.
        """
        self.suspect_since = None
        if self.kind != RELAYED and not active:
            self.stale_since = now
        if self._measured:
            self.counts_from, self._measured = now, False

    def sample(self, round_trip: "RoundTrip", sent: float, seconds: float) -> None:
        """A measurement by something sent then. Not the one that ends a silence, see `recovered`."""
        if sent >= self.counts_from and (self.suspect_since is None or not self._measured):
            self._measured = True
            round_trip.sample(seconds)

    def push(self, record: Record, now: float) -> None:
        """Puts a record on this link."""
        self.queue.append((record.view, record))
        self.backlog += record.size
        record.queued += 1
        record.carried += 1
        self.inflight.append((record, now))
        self.unheard += record.size

    def push_packet(self, packet: bytes | bytearray) -> None:
        """Puts a link's own packet (CONTROL, DATAGRAM) on this link."""
        self.queue.append((memoryview(packet), None))
        self.backlog += len(packet)

    def confirm(self, heard: int, held: float, now: float) -> int:
        """The peer has heard so many records on this link. The bytes of those that are news."""
        news = heard - self.heard_out
        if news <= 0:
            return 0
        if news > len(self.inflight):
            raise ValueError(f"peer heard {heard} records where {self.heard_out + len(self.inflight)} were sent")
        self.heard_out = heard
        size = 0
        for _ in range(news):
            record, when = self.inflight.popleft()
            record.carried -= 1
            record.heard = True
            size += record.size
        self.unheard -= size
        self._rate_bytes += size
        self.sample(self.data_rtt, when, max(now - when - held, 0.0))
        elapsed = now - self._rate_since
        if elapsed >= RATE_PERIOD:
            self.rate += (self._rate_bytes / elapsed - self.rate) / 2
            self.record_size = min(max(int(self.rate * RECORD_SECONDS), SMALL_RECORD), FULL_RECORD)
            self._rate_bytes, self._rate_since = 0, now
        self.progress = now
        return size

    def presume(self, now: float) -> None:
        """The link was lost just now. What it took long enough ago has arrived, most likely, and only the word of that is
        missing: should it come again before what was lost, a cold standby would need a round trip or two for it (bulk
        over a relay that was killed: 90 ms of silence, now 65)."""
        if self.unheard <= SMALL_RECORD:  # all of it goes in TCP's first flight
            return
        loaded, path = self.data_rtt, self.rtt
        travelled = (loaded.smoothed or path) + loaded.deviation - path / 2
        for record, when in self.inflight:
            record.presumed = now - when > travelled

    def drop(self, outbox: Outbox) -> None:
        """The link is gone: what it carried alone becomes orphans, its queue is forgotten."""
        for _, record in self.queue:
            if record is not None:
                record.queued -= 1
                outbox.forget(record)
        self.queue.clear()
        self.backlog = 0
        for record, _ in self.inflight:
            record.carried -= 1
            outbox.orphan(record)
        self.inflight.clear()
        self.unheard = 0
