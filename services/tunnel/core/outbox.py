"""Records on their way out: numbered, kept until acknowledged, sent again when their link dies.

Requirement: a record reaches the peer at least once whatever happens to links, and memory is bounded.
Design: every unacknowledged record is in exactly one of three states, and `check_invariants` says so:
carried (in flight on at least one live link), heard (the peer told that it came on some link; it keeps it),
or an orphan (waiting for a link). Rejected: retransmission timers per record, as links are TCP and lose
nothing while they live; only the death or doubt of a whole link matters.
"""

from collections import deque
from collections.abc import Callable, Iterator

from services.tunnel.core.budget import Budget

OVERHEAD = 512
"""Bytes that one record costs beside its buffer: objects, views, places in queues (measured: 430)."""
MEMORY_SHARE = 4
"""Memory may be so many times `capacity`: many tiny records, or buffers that are not filled."""


class Record:
    """A sealed record and its whereabouts."""

    __slots__ = ("acked", "buffer", "carried", "cost", "heard", "presumed", "queued", "sequence", "size", "view")

    def __init__(self, sequence: int, buffer: bytearray, size: int) -> None:
        self.sequence = sequence
        self.buffer = buffer
        self.size = size
        """Bytes of the packet; `buffer` may be larger."""
        self.cost = len(buffer) + OVERHEAD
        """Bytes of memory."""
        self.view = memoryview(buffer)[:size]
        self.carried = 0
        """Live links on which it is in flight."""
        self.queued = 0
        """Links whose send queue still points into the buffer."""
        self.heard = False
        self.acked = False
        self.presumed = False
        """Its link died after it had probably arrived: the peer's next word tells."""


class Outbox:
    """Unacknowledged records in order of sequence, at most `capacity` bytes (then `full`: take no more data).

    Control frames still come when it is full; `overdrawn` tells when even those are too many.
    """

    def __init__(self, capacity: int, release: Callable[[bytearray], None], budget: Budget) -> None:
        self.capacity = capacity
        self._budget = budget
        self.next_sequence = 0
        self.acked = 0
        """All records below this sequence are acknowledged."""
        self.bytes = 0
        self.memory = 0
        """What the records cost; this counts against the budget."""
        self._records: deque[Record] = deque()
        self._orphans: deque[Record] = deque()
        self._release = release

    @property
    def full(self) -> bool:
        return (
            self.bytes >= self.capacity
            or self.memory >= MEMORY_SHARE * self.capacity
            or (self.memory >= Budget.FLOOR and not self._budget.allows(self.memory))
        )

    @property
    def overdrawn(self) -> bool:
        """Twice as much memory as an honest peer ever makes us hold."""
        return self.memory > 2 * MEMORY_SHARE * self.capacity

    @property
    def misheard(self) -> bool:
        """The oldest record is said to have been heard, yet it is not acknowledged.

        Whoever heard it would have acknowledged it in the same breath: something between us and the peer
        took records off a link, or repeated them, so that counting went wrong.
        """
        return bool(self._records) and self._records[0].heard

    @property
    def orphaned(self) -> bool:
        """Whether something may wait for a link."""
        return bool(self._orphans)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, buffer: bytearray, size: int) -> Record:
        """Takes over a sealed packet numbered `next_sequence`."""
        record = Record(self.next_sequence, buffer, size)
        self.next_sequence += 1
        self._records.append(record)
        self.bytes += size
        self._charge(record.cost)
        return record

    def _charge(self, cost: int) -> None:
        self.memory += cost
        self._budget.used += cost

    def acknowledge(self, below: int) -> bool:
        """Everything below the sequence arrived. True if that is news."""
        if below <= self.acked:
            return False
        if below > self.next_sequence:
            raise ValueError(f"acknowledged {below}, but sent only {self.next_sequence}")
        self.acked = below
        records = self._records
        while records and records[0].sequence < below:
            record = records.popleft()
            record.acked = True
            self.bytes -= record.size
            self._charge(-record.cost)
            self.forget(record)
        return True

    def doubt(self) -> None:
        """Believes nothing that was heard but not acknowledged: what no link carries becomes an orphan."""
        for record in self._records:
            if record.heard:
                record.heard = False
                self.orphan(record)

    def discard(self) -> None:
        """Nothing is needed any more."""
        self._charge(-self.memory)
        self.bytes = 0
        self._records.clear()
        self._orphans.clear()

    def forget(self, record: Record) -> None:
        """Gives the buffer back once nobody needs it: acknowledged and in no send queue."""
        if record.acked and not record.queued:
            self._release(record.buffer)

    def orphan(self, record: Record) -> None:
        """The record is on no live link and has not been heard: it waits for a link."""
        if not record.acked and not record.heard and not record.carried:
            self._orphans.append(record)

    def take_orphans(self, *, presumed: bool) -> Iterator[Record]:
        """Orphans in order of sequence; each must be put on a link (or be orphaned again). Not those that have probably
        arrived, unless `presumed`: they stay."""
        orphans = sorted(
            {record.sequence: record for record in self._orphans}.values(), key=lambda record: record.sequence
        )
        self._orphans.clear()
        for record in orphans:
            if record.acked or record.heard or record.carried:
                continue
            if record.presumed and not presumed:
                self._orphans.append(record)
                continue
            record.presumed = False
            yield record

    def check_invariants(self) -> None:
        """Every record is carried, heard or an orphan. For tests."""
        waiting = {record.sequence for record in self._orphans}
        for record in self._records:
            assert record.carried or record.heard or record.sequence in waiting, f"record {record.sequence} is lost"
        assert self.bytes == sum(record.size for record in self._records)
        assert self.memory == sum(record.cost for record in self._records)
