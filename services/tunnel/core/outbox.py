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


class Record:
    """A sealed record and its whereabouts."""

    __slots__ = ("acked", "buffer", "carried", "heard", "queued", "sequence", "size", "view")

    def __init__(self, sequence: int, buffer: bytearray, size: int) -> None:
        self.sequence = sequence
        self.buffer = buffer
        self.size = size
        """Bytes of the packet; `buffer` may be larger."""
        self.view = memoryview(buffer)[:size]
        self.carried = 0
        """Live links on which it is in flight."""
        self.queued = 0
        """Links whose send queue still points into the buffer."""
        self.heard = False
        self.acked = False


class Outbox:
    """Unacknowledged records in order of sequence, at most `capacity` bytes (then `full`)."""

    def __init__(self, capacity: int, release: Callable[[bytearray], None], budget: Budget) -> None:
        self.capacity = capacity
        self._budget = budget
        self.next_sequence = 0
        self.acked = 0
        """All records below this sequence are acknowledged."""
        self.bytes = 0
        self._records: deque[Record] = deque()
        self._orphans: deque[Record] = deque()
        self._release = release

    @property
    def full(self) -> bool:
        return self.bytes >= self.capacity or not self._budget.allows(self.bytes)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, buffer: bytearray, size: int) -> Record:
        """Takes over a sealed packet numbered `next_sequence`."""
        record = Record(self.next_sequence, buffer, size)
        self.next_sequence += 1
        self._records.append(record)
        self.bytes += size
        self._budget.used += size
        return record

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
            self._budget.used -= record.size
            self.forget(record)
        return True

    def discard(self) -> None:
        """Nothing is needed any more."""
        self._budget.used -= self.bytes
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

    def take_orphans(self) -> Iterator[Record]:
        """Orphans in order of sequence; each must be put on a link (or be orphaned again)."""
        orphans = sorted(
            {record.sequence: record for record in self._orphans}.values(), key=lambda record: record.sequence
        )
        self._orphans.clear()
        for record in orphans:
            if not (record.acked or record.heard or record.carried):
                yield record

    def check_invariants(self) -> None:
        """Every record is carried, heard or an orphan. For tests."""
        waiting = {record.sequence for record in self._orphans}
        for record in self._records:
            assert record.carried or record.heard or record.sequence in waiting, f"record {record.sequence} is lost"
        assert self.bytes == sum(record.size for record in self._records)
