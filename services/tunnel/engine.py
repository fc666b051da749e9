"""The engine: a level-triggered epoll over raw sockets, nested in the asyncio loop by its one descriptor.

asyncio's own transports cost 3-4x as much per small message (measured with the prototype: 12 µs against
40-50 µs for a 64-byte round trip at one end); this one calls a handler per ready descriptor and, at the end
of each batch, flushes the pairings that have something to send: many streams' bytes, one record, one send.
"""

import asyncio
import logging
import os
import select
import time
from collections.abc import Callable
from typing import Protocol

from services.tunnel.core.packets import MAX_PLAIN

SLICE = 0.002
"""Seconds of one turn before asyncio gets the thread back: control calls stay quick under full load."""
BATCH = 256
"""Ready descriptors taken at once."""
LARGE = 64 * 1024
"""Buffers above this size, bytes, are pooled: all of one size, so that any fits."""
POOLED = 128
"""Free buffers kept, 32 MiB in all."""
SPIN = 200e-6
"""Seconds a turn waits for more before it goes to sleep, while events come at that pace: waking up costs more
than that (measured: p50 of a 64-byte round trip 61 µs with, 143 µs without; on a machine half as fast twice that)."""
SOON = 600e-6
"""An event that comes within this time of the last turn's end, seconds, … Twice what a round trip takes without
waiting, on a slow machine: else those that gain most by it never begin."""
EAGER = 16
"""… so many times in a row (one that is late counts double against), makes the engine wait for the next one.
Idle and slow traffic never gets there, so it costs no power."""
RECEIVE_SIZE = 512 * 1024
"""Bytes taken from a link's socket at once; holds the largest packet."""
SPARE_RECEIVE_BUFFERS = 8
IN, OUT = select.EPOLLIN, select.EPOLLOUT
HANGUP = select.EPOLLHUP
BROKEN = HANGUP | select.EPOLLERR

log = logging.getLogger("causeway.tunnel")


class Flushable(Protocol):
    """Something that gathers during a batch and sends at its end."""

    def flush(self, now: float) -> None: ...
    def broke(self) -> None: ...


class BufferPool:
    """Large buffers that are used over and over: fresh ones cost a page fault per 4 KiB."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """At least `size` bytes, content undefined."""
        if size <= LARGE:
            return bytearray(size)
        return self._free.pop() if self._free else bytearray(MAX_PLAIN + 64)

    def give(self, buffer: bytearray) -> None:
        """Back; nobody may hold on to it."""
        if len(buffer) > LARGE and len(self._free) < POOLED:
            self._free.append(buffer)


class Engine:
    """Handlers by descriptor; `now` is the monotonic time of the current batch."""

    def __init__(self) -> None:
        self.buffers = BufferPool()
        self.scratch = memoryview(bytearray(MAX_PLAIN))
        """Where records are opened; used up before the next packet."""
        self.now = time.monotonic()
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._broken: dict[int, Callable[[], None]] = {}
        self._fresh: set[int] = set()
        """Descriptors added during this batch: what epoll still says of them was meant for a former holder."""
        self._dirty: list[Flushable] = []
        self._flush_scheduled = False
        self._eager = 0
        self._left = 0.0
        self._receive_buffers: list[bytearray] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Stops; sockets are their owners' to close."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()

    def add(
        self, descriptor: int, mask: int, handler: Callable[[int], None], broken: Callable[[], None] | None = None
    ) -> None:
        """`handler` gets the mask of what is ready. `broken`: gives the descriptor up after the handler raised."""
        self._epoll.register(descriptor, mask)
        self._handlers[descriptor] = handler
        self._fresh.add(descriptor)
        if broken is not None:
            self._broken[descriptor] = broken

    def change(self, descriptor: int, mask: int) -> None:
        self._epoll.modify(descriptor, mask)

    def remove(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._broken.pop(descriptor, None)
            self._epoll.unregister(descriptor)

    def take_receive_buffer(self) -> bytearray:
        """For one call of recv; whoever finds part of a packet in it keeps it until the rest came."""
        return self._receive_buffers.pop() if self._receive_buffers else bytearray(RECEIVE_SIZE)

    def give_receive_buffer(self, buffer: bytearray) -> None:
        if len(self._receive_buffers) < SPARE_RECEIVE_BUFFERS:
            self._receive_buffers.append(buffer)

    def dirty(self, owner: Flushable) -> None:
        """Flush `owner` at the end of this batch (or soon, when called from outside a turn)."""
        self._dirty.append(owner)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flush_scheduled = False
        if self._dirty:
            self.now = time.monotonic()
            self._flush()

    def _flush(self) -> None:
        now = self.now
        while self._dirty:
            owners, self._dirty = self._dirty, []
            for owner in owners:
                try:
                    owner.flush(now)
                except Exception:  # a fault of ours must not keep the others from sending
                    log.exception("flush failed")
                    owner.broke()

    def _fail(self, descriptor: int) -> None:
        """A handler raised, a fault of ours: whoever it belongs to gives up, the others go on."""
        log.exception("handler failed", extra={"descriptor": descriptor})
        broken = self._broken.get(descriptor)
        try:
            if broken is not None:
                broken()
        except Exception:
            log.exception("giving up failed", extra={"descriptor": descriptor})
        self.remove(descriptor)

    def _turn(self) -> None:
        self._flush_scheduled = True  # we flush ourselves: spare the loop a callback per batch
        now = time.monotonic()
        end = now + SLICE
        poll, handlers = self._epoll.poll, self._handlers
        self._eager = min(self._eager + 1, EAGER) if now - self._left < SOON else max(self._eager - 2, 0)
        patience = SPIN if self._eager == EAGER else 0.0
        spin_until = now + patience
        fresh = self._fresh
        while True:
            ready = poll(0, BATCH)
            if ready:
                self.now = now
                fresh.clear()
                for descriptor, mask in ready:
                    handler = handlers.get(descriptor)
                    if handler is not None and descriptor not in fresh:
                        try:
                            handler(mask)
                        except Exception:
                            self._fail(descriptor)
                if self._dirty:
                    self._flush()
                now = time.monotonic()
                spin_until = now + patience
            else:
                now = time.monotonic()
                if now >= spin_until:
                    break
                os.sched_yield()  # others that can run go first
            if now > end:
                break
        self._left = now
        self._flush_scheduled = False
        if self._dirty:
            self.dirty(self._dirty.pop())
