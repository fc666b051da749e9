"""Kernel pipes, lent to flows only while bytes are in flight."""

from __future__ import annotations

import fcntl
import os

LARGE = 1 << 20
"""Bytes asked for a pipe: fs.pipe-max-size of an ordinary kernel. One splice then moves up to 1 MiB."""
MAX_LARGE = 16
"""Pipes that may be large at a time. An unprivileged user's pipes share fs.pipe-user-pages-soft (64 MiB), and
several relays may run under one user."""
MAX_FREE = 8
"""Empty pipes kept for the next flow. Making one costs three system calls."""


class Pipe:
    """`read` and `write` are non-blocking descriptors; `size` in bytes as granted."""

    __slots__ = ("read", "size", "write")

    def __init__(self, read: int, write: int, size: int) -> None:
        self.read = read
        self.write = write
        self.size = size


class PipePool:
    """Lends pipes. The first MAX_LARGE in use are large; any further ones have the kernel's ordinary 64 KiB, so
    that many stalled circuits hold little, and none of them can keep a busy one waiting for a pipe.

    The number lent is bounded by the circuits: a flow borrows one at most.
    """

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self._large = 0
        self.lent = 0

    def take(self) -> Pipe:
        """An empty pipe. OSError (EMFILE, ENFILE, ENOMEM) when the kernel gives none."""
        # The last one returned is the warmest; large ones were put at the end.
        pipe = self._free.pop() if self._free else self._make()
        self.lent += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Return an empty pipe."""
        self.lent -= 1
        if len(self._free) < MAX_FREE:
            self._free.append(pipe)
            if len(self._free) > 1 and pipe.size < LARGE:
                self._free.insert(0, self._free.pop())
        else:
            self._close(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Return a pipe that still holds bytes: they are lost."""
        self.lent -= 1
        self._close(pipe)

    def close(self) -> None:
        """Close the free ones."""
        while self._free:
            self._close(self._free.pop())

    def _make(self) -> Pipe:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        size = 0
        if self._large < MAX_LARGE:
            want = LARGE
            while want > 65536 and not size:
                try:
                    size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, want)
                except PermissionError:  # over pipe-max-size, or over pipe-user-pages-soft
                    want //= 2
        if size:
            self._large += 1
        else:
            # After the soft limit the kernel grants two pages only: slow, but it moves.
            size = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
        return Pipe(read, write, size)

    def _close(self, pipe: Pipe) -> None:
        os.close(pipe.read)
        os.close(pipe.write)
        if pipe.size > 65536:
            self._large -= 1
