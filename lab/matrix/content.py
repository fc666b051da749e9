"""Traffic that knows its place: numbered blocks, in which everything that is missing, doubled or swapped is found.

A stream is block(0), block(1), …; a datagram is one block. A block is its number and noise that is always the same, so
the next one can be found again behind a hole of any length.
"""

from __future__ import annotations

import random

NUMBER = 8  # bytes of the number, big-endian
NOISE = random.Random(0).randbytes(2048)
MARK = NOISE[:16]  # how the noise of a block begins; in 2 KiB of it, once


def block(number: int, size: int) -> bytes:
    """One block of `size` bytes, at least 24 and at most 2,056."""
    return number.to_bytes(NUMBER, "big") + NOISE[: size - NUMBER]


class Tally:
    """Which numbers have come."""

    def __init__(self) -> None:
        self.received = 0
        """Blocks that came for the first time."""
        self.repeated = 0
        """Blocks that came again."""
        self.swapped = 0
        """Blocks that came behind later ones."""
        self._next = 0
        self._missing: set[int] = set()

    def count(self, number: int) -> bool:
        """One more; whether it is new."""
        if number < self._next and number not in self._missing:
            self.repeated += 1
            return False
        if number < self._next:
            self._missing.discard(number)
            self.swapped += 1
        else:
            self._missing.update(range(self._next, number))
            self._next = number + 1
        self.received += 1
        return True

    def lost(self, sent: int) -> int:
        """Blocks that have not come, of so many."""
        return sent - self.received


class Reader:
    """Blocks out of a stream of bytes."""

    def __init__(self, size: int) -> None:
        """size: of a block."""
        self.tally = Tally()
        self.foreign = 0
        """Bytes that belong to no whole block: one of which a part is missing, or something else altogether."""
        self._size = size
        self._noise = NOISE[: size - NUMBER]
        self._rest = b""

    @property
    def pending(self) -> int:
        """Bytes of a block that is not complete yet."""
        return len(self._rest)

    def feed(self, data: bytes, sent: int) -> list[int]:
        """The new numbers among the blocks that these bytes complete. sent: how many there can be."""
        rest = self._rest + data
        at = 0
        numbers = []
        while len(rest) - at >= self._size:
            number = int.from_bytes(rest[at : at + NUMBER], "big")
            if number < sent and rest.startswith(self._noise, at + NUMBER):
                if self.tally.count(number):
                    numbers.append(number)
                at += self._size
                continue
            found = rest.find(MARK, at + NUMBER + 1)
            # Without another mark, all but the last bytes are lost for us: a mark may have begun in those.
            after = found - NUMBER if found >= 0 else len(rest) - NUMBER - len(MARK) + 1
            self.foreign += after - at
            at = after
        self._rest = rest[at:]
        return numbers
