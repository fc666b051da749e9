"""Moves bytes between legs inside the kernel: socket → pipe → socket, nothing is copied to user space.

A level-triggered epoll of its own, nested in the asyncio loop by its one descriptor: when any leg is ready the
loop calls `_turn`, which works for 2 ms at most and comes back in the loop's next round if legs are still ready
(level-triggered), so that control connections never wait long behind bulk.

Rejected: asyncio transports (two copies and a bytes object per read, 3 CPU s/GB measured), a thread for each
direction (collapses on small messages), one permanent pipe for each direction (idle circuits would hold 2 MiB).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from time import monotonic

from services.runtime.sockets import reset

from .core.fairness import Accounts
from .flow import Flow, Leg, Splice, prepare
from .pipes import PipePool

SLICE = 0.002
"""Seconds of one turn."""
MAX_EVENTS = 256
WORTH_ANOTHER = 128 * 1024
"""Bytes: a read that brought less has probably emptied the socket; asking epoll is cheaper than failing."""
WORTH_SHARING = 16 * 1024
"""The same while others wait: the flow whose turn it is gets a chance to have more, at the price of a vain try."""
QUANTUM = 256 * 1024
"""Bytes moved for one flow while others wait."""
RETRY_PIPE = 0.1
"""Seconds until a flow that got no pipe (descriptors used up) tries again."""
IN, OUT, ERR, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Engine:
    """Owns the circuits' sockets from `add` to their end, which it tells by `on_end(reason)`: "eof" (both sides
    ended), "reset", "idle" or "closed" (by us). Must be used from the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, idle_timeout: float, bytes_per_second: int = 0) -> None:
        self._loop = loop
        self._idle_timeout = idle_timeout
        self._epoll = select.epoll()
        self._legs: dict[int, Leg] = {}
        self._circuits: dict[Splice, None] = {}
        self._accounts = Accounts(bytes_per_second)
        self._pipes = PipePool()
        self._tie = 0  # keeps the heaps from comparing flows
        self._pauses: list[tuple[float, int, Flow]] = []
        self._wake: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.bytes_total = 0
        self.splices_total = 0
        self.busy_seconds = 0.0
        """Time spent in turns."""
        loop.add_reader(self._epoll.fileno(), self._turn)

    def limit(self, *, idle_timeout: float, bytes_per_second: int) -> None:
        """Other limits, from now on and for all circuits."""
        self._idle_timeout = idle_timeout
        self._accounts.limit(bytes_per_second, monotonic())

    def __len__(self) -> int:
        return len(self._circuits)

    def add(
        self,
        caller: socket.socket,
        caller_name: str,
        callee: socket.socket,
        callee_name: str,
        on_end: Callable[[str], None],
    ) -> Splice:
        """Splice two connected sockets. `on_end` is called once, never from within `add`."""
        now = monotonic()
        accounts = self._accounts
        circuit = Splice(
            (caller, caller_name, accounts.open(caller_name, now)),
            (callee, callee_name, accounts.open(callee_name, now)),
            now,
            on_end,
        )
        self._circuits[circuit] = None
        for leg in (circuit.caller, circuit.callee):
            prepare(leg.sock)
            self._legs[leg.fd] = leg
            self._want(leg)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._sweep_interval, self._sweep)
        return circuit

    def end(self, circuit: Splice, reason: str = "closed") -> None:
        """Close both legs. Bytes in flight are lost unless both sides had ended."""
        if circuit.ended:
            return
        circuit.ended = True
        del self._circuits[circuit]
        for flow in (circuit.forth, circuit.back):
            flow.done = True
            if flow.pipe is not None:
                self._pipes.discard(flow.pipe)
                flow.pipe = None
        for leg in (circuit.caller, circuit.callee):
            if leg.mask >= 0:
                self._epoll.unregister(leg.fd)
            del self._legs[leg.fd]
            self._accounts.close(leg.peer)
            if reason == "eof":
                leg.sock.close()
            else:
                reset(leg.sock)
        circuit.on_end(reason)

    def close(self) -> None:
        """End all circuits and let go of everything. May be repeated."""
        if self._epoll.closed:
            return
        for circuit in list(self._circuits):
            self.end(circuit)
        for timer in (self._wake, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._pipes.close()

    # --- readiness ---------------------------------------------------------------------------------------------

    def _turn(self, length: float = SLICE) -> None:
        began = monotonic()
        until = began + length
        while True:
            flows = self._ready(self._epoll.poll(0, MAX_EVENTS))
            if not flows:
                break
            if len(flows) == 1:
                flow = flows[0]
                while self._serve(flow, 1 << 30) >= WORTH_ANOTHER and monotonic() < until:
                    pass
            else:
                self._share(flows, until)
            if monotonic() >= until:
                break
        self.busy_seconds += monotonic() - began

    def _ready(self, events: list[tuple[int, int]]) -> list[Flow]:
        flows = []
        for fd, mask in events:
            leg = self._legs.get(fd)
            if leg is None:  # ended by an earlier event of this poll
                continue
            if mask & ERR:
                self.end(leg.circuit, "reset")
            elif mask & HUP and not leg.mask:
                # Ended both ways, yet bytes for it to read or from it to pass on may be held elsewhere. HUP cannot
                # be masked: out of epoll until something is wanted again.
                self._epoll.unregister(fd)
                leg.mask = -1
            else:
                if mask & (IN | HUP) and leg.mask & IN:
                    flows.append(leg.inbound)
                if mask & (OUT | HUP) and leg.mask & OUT:
                    flows.append(leg.outbound)
        return flows

    def _share(self, flows: list[Flow], until: float) -> None:
        """Serve the least served first, again and again, until nobody has more or the time is up."""
        turn = self._accounts.turn
        queue = []
        for flow in flows:
            self._tie += 1
            queue.append((turn(flow.circuit.one, flow.circuit.other), self._tie, flow))
        heapify(queue)
        while queue:
            _, _, flow = heappop(queue)
            if self._serve(flow, QUANTUM) >= WORTH_SHARING:
                self._tie += 1
                heappush(queue, (turn(flow.circuit.one, flow.circuit.other), self._tie, flow))
            if monotonic() >= until:
                break

    def _want(self, leg: Leg) -> None:
        """Tell epoll what the leg's two flows wait for."""
        inbound = leg.inbound
        mask = 0
        if not (inbound.held or inbound.paused or inbound.done):
            mask = IN
        if leg.outbound.held:
            mask |= OUT
        if mask != leg.mask:
            if leg.mask >= 0:
                self._epoll.modify(leg.fd, mask)
            elif mask:
                self._epoll.register(leg.fd, mask)
            else:
                return
            leg.mask = mask

    # --- moving bytes ------------------------------------------------------------------------------------------

    def _serve(self, flow: Flow, most: int) -> int:
        """Move up to `most` bytes. Returns how many came, 0 when the flow can do nothing more for now."""
        circuit = flow.circuit
        if flow.done:
            return 0
        try:
            if flow.held:
                return WORTH_ANOTHER if self._drain(flow) else 0
            if self._accounts.limited:
                now = monotonic()
                pause = self._accounts.pause(circuit.one, circuit.other, now)
                if pause:
                    self._pause(flow, now + pause)
                    return 0
                most = min(most, self._accounts.allowance(circuit.one, circuit.other, now))
            return self._fill(flow, most)
        except OSError:  # reset, timed out, or written to after the far end closed
            self.end(circuit, "reset")
            return 0

    def _fill(self, flow: Flow, most: int) -> int:
        pipe = flow.pipe
        if pipe is None:
            try:
                pipe = flow.pipe = self._pipes.take()
            except OSError:
                self._pause(flow, monotonic() + RETRY_PIPE)
                return 0
        try:
            got = os.splice(flow.source.fd, pipe.write, min(pipe.size, most), flags=FLAGS)
        except BlockingIOError:
            self._release(flow)
            return 0
        self.splices_total += 1
        if not got:
            self._release(flow)
            self._finish(flow)
            return 0
        flow.held = got
        self._accounts.charge(flow.circuit.one, flow.circuit.other, got, monotonic)
        return got if self._drain(flow) else 0

    def _drain(self, flow: Flow) -> bool:
        """Pipe → sink. True when the pipe is empty."""
        pipe = flow.pipe
        assert pipe is not None
        stuck = flow.sink.mask & OUT if flow.sink.mask > 0 else 0
        try:
            put = os.splice(pipe.read, flow.sink.fd, flow.held, flags=FLAGS)
        except BlockingIOError:
            put = 0
        self.splices_total += 1
        flow.held -= put
        flow.moved += put
        self.bytes_total += put
        if put:
            flow.circuit.touched = monotonic()
        if flow.held:
            if not stuck:
                self._want(flow.source)
                self._want(flow.sink)
            return False
        self._release(flow)
        if stuck:
            self._want(flow.source)
            self._want(flow.sink)
        return True

    def _release(self, flow: Flow) -> None:
        if flow.pipe is not None:
            self._pipes.give(flow.pipe)
            flow.pipe = None

    def _finish(self, flow: Flow) -> None:
        """The source ended and everything it sent is with the sink: pass the end on (half-close)."""
        flow.done = True
        circuit = flow.circuit
        if circuit.forth.done and circuit.back.done:
            flow.sink.sock.shutdown(socket.SHUT_WR)
            self.end(circuit, "eof")
        else:
            flow.sink.sock.shutdown(socket.SHUT_WR)
            self._want(flow.source)

    # --- time --------------------------------------------------------------------------------------------------

    def _pause(self, flow: Flow, until: float) -> None:
        flow.paused = True
        self._want(flow.source)
        self._tie += 1
        heappush(self._pauses, (until, self._tie, flow))
        if self._wake is None or until < self._wake.when():
            if self._wake is not None:
                self._wake.cancel()
            self._wake = self._loop.call_at(until, self._resume)

    def _resume(self) -> None:
        self._wake = None
        now = monotonic()
        while self._pauses and self._pauses[0][0] <= now + 0.001:
            _, _, flow = heappop(self._pauses)
            flow.paused = False
            if not flow.done:
                self._want(flow.source)
        if self._pauses:
            self._wake = self._loop.call_at(self._pauses[0][0], self._resume)

    @property
    def _sweep_interval(self) -> float:
        return min(30.0, max(0.2, self._idle_timeout / 4))

    def _sweep(self) -> None:
        """End what has been idle too long."""
        long_ago = monotonic() - self._idle_timeout
        for circuit in [c for c in self._circuits if c.touched <= long_ago]:
            self.end(circuit, "idle")
        self._sweeper = self._loop.call_later(self._sweep_interval, self._sweep) if self._circuits else None
