"""Records on their way in: in order, once. What comes early is held, what comes twice is dropped."""

from collections.abc import Iterator

from services.tunnel.core.packets import CorruptLink

OVERHEAD = 128
"""Bytes that one held record costs beside its content."""


class Inbox:
    """Sequence bookkeeping of one direction; holds early records of at most `capacity` bytes of memory.

    The capacity is above what a peer with our configuration keeps unacknowledged. Beyond it the link that
    brings ever more is dropped, and what was on it comes again, in order, on another one.
    """

    def __init__(self, capacity: int) -> None:
        self.expected = 0
        self.duplicates = 0
        self.held_bytes = 0
        self._capacity = capacity
        self._held: dict[int, bytes] = {}

    def admit(self, sequence: int, plain: memoryview) -> bool:
        """True when the record is the next one: handle it now, then everything in `ready()`."""
        if sequence == self.expected:
            self.expected += 1
            return True
        if sequence < self.expected or sequence in self._held:
            self.duplicates += 1
            return False
        if self.held_bytes + len(plain) + OVERHEAD > self._capacity:
            raise CorruptLink(f"more than {self._capacity} bytes of records came ahead of record {self.expected}")
        self._held[sequence] = bytes(plain)
        self.held_bytes += len(plain) + OVERHEAD
        return False

    def ready(self) -> Iterator[memoryview]:
        """Held records whose turn has come."""
        while self._held and (plain := self._held.pop(self.expected, None)) is not None:
            self.expected += 1
            self.held_bytes -= len(plain) + OVERHEAD
            yield memoryview(plain)
