"""Copying between a client and a backend on this same node: no session is needed, so none is used.

One scratch buffer serves every pump of the process (there is one thread); only what the slower side did not take is
kept, one read at most, so an idle connection holds no buffer and a stalled one at most SCRATCH bytes each way.
"""

import asyncio
import socket
from collections.abc import Callable

from services.proxy.counters import Local
from services.runtime import keepalive
from services.runtime.sockets import reset

SCRATCH = 256 * 1024  # bytes a read at most; larger ones gain nothing over loopback
GONE_AFTER = 16  # datagrams in a row for which the client's port was closed until its flow ends, as the tunnel's
_BURST = 16  # datagrams or reads a turn, so that one busy pair leaves room for the others

_scratch = memoryview(bytearray(SCRATCH))


class Meter:
    """Counts what one pump carries, for all of its service."""

    def __init__(self, local: Local, came: float) -> None:
        """`came`: loop time at which the client did."""
        self._bytes = local.bytes
        self._local: Local | None = local
        self._came = came

    def count(self, side: int, size: int, now: float) -> None:
        """So much was read from a side: 0 the client, 1 the backend."""
        self._bytes[side] += size
        if side and self._local is not None:
            self._local.first.observe(now - self._came)
            self._local = None


class StreamPump:
    """Both directions of one TCP connection. Half-close travels; a reset on one side becomes one on the other."""

    def __init__(
        self,
        one: socket.socket,
        two: socket.socket,
        ended: Callable[["StreamPump"], None],
        meter: Meter,
        head: bytes = b"",
        welcome: bytes = b"",
    ) -> None:
        """Owns two connected non-blocking sockets from now on: the client's, which its listener has the kernel watch, and the
        backend's. `ended` is called once, when both are closed. `head` was read from `one` before; `welcome` is what `one` is
        told before any byte of `two`."""
        keepalive.watch(two)
        self._loop = asyncio.get_running_loop()
        self._socks = (one, two)
        self._ended = ended
        self._meter = meter
        meter.count(0, len(head), self._loop.time())
        self._left: list[bytes] = [head, welcome]  # for the other of socks[i], and not yet taken by it
        self._done = [False, False]  # direction i has seen its end of data, and passed it on
        self._closed = False
        for side in (0, 1):
            if self._left[side]:
                self._loop.add_writer(self._socks[1 - side], self._write, side)
            else:
                self._loop.add_reader(self._socks[side], self._read, side)

    def _read(self, side: int) -> None:
        source, sink = self._socks[side], self._socks[1 - side]
        for _ in range(_BURST):
            try:
                size = source.recv_into(_scratch)
            except BlockingIOError:
                return
            except OSError:
                self.abort()
                return
            if size == 0:
                self._loop.remove_reader(source)
                self._finish(side)
                return
            self._meter.count(side, size, self._loop.time())
            try:
                sent = sink.send(_scratch[:size])
            except BlockingIOError:
                sent = 0
            except OSError:
                self.abort()
                return
            if sent < size:
                self._left[side] = bytes(_scratch[sent:size])
                self._loop.remove_reader(source)
                self._loop.add_writer(sink, self._write, side)
                return
            if size < SCRATCH:
                return  # most likely all there was: epoll will tell, for less than a failing read

    def _write(self, side: int) -> None:
        """The sink of direction `side` takes data again."""
        sink = self._socks[1 - side]
        try:
            sent = sink.send(self._left[side])
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        self._left[side] = self._left[side][sent:]
        if not self._left[side]:
            self._loop.remove_writer(sink)
            self._loop.add_reader(self._socks[side], self._read, side)

    def _finish(self, side: int) -> None:
        self._done[side] = True
        try:
            self._socks[1 - side].shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
            return
        if all(self._done):
            self.close()

    def abort(self) -> None:
        """Ends both sides with a reset: data was, or may have been, lost."""
        if not self._closed:
            self._detach()
            for sock in self._socks:
                reset(sock)
            self._ended(self)

    def close(self) -> None:
        """Ends both sides in order."""
        if not self._closed:
            self._detach()
            for sock in self._socks:
                sock.close()
            self._ended(self)

    def _detach(self) -> None:
        self._closed = True
        for sock in self._socks:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)


class DatagramPump:
    """Both directions of one UDP flow. What the other side does not take at once is dropped, as a network would."""

    def __init__(
        self,
        one: socket.socket,
        two: socket.socket,
        ended: Callable[["DatagramPump"], None],
        meter: Meter,
        idle: Callable[[], float],
        answered: Callable[[], None],
        refused: Callable[[str], None],
    ) -> None:
        """Owns two connected non-blocking datagram sockets from now on: the client's and the backend's. `idle`: seconds without
        a datagram until the flow ends, asked when the time may have come. `answered` is called at the first datagram of the
        backend, `refused`, with one line, before a flow ends because nobody is at its port."""
        self._loop = asyncio.get_running_loop()
        self._socks = (one, two)
        self._ended = ended
        self._meter = meter
        self._closed = False
        self._refusals = [0, 0]  # since the last datagram of that side
        self._heard = False  # the backend has sent something
        self._answered = answered
        self._refused = refused
        self._last = self._loop.time()
        self._idle = idle
        self._timer = self._loop.call_later(idle(), self.check)
        for side in (0, 1):
            self._loop.add_reader(self._socks[side], self._read, side)

    def _read(self, side: int) -> None:
        self._last = self._loop.time()
        source, sink = self._socks[side], self._socks[1 - side]
        for _ in range(_BURST):
            failing = side
            try:
                size = source.recv_into(_scratch)
                self._meter.count(side, size, self._last)
                self._refusals[side] = 0
                if side == 1 and not self._heard:
                    self._heard = True
                    self._answered()
                failing = 1 - side
                sink.send(_scratch[:size])
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(failing, error)
                if self._closed:
                    return

    def _failed(self, side: int, error: OSError) -> None:
        """An ICMP error of an earlier datagram: reported once, and not the end of the flow, unless that side is gone, or
        the backend was never there: the client's next datagram then begins a flow to another one."""
        if not isinstance(error, ConnectionRefusedError):
            return
        self._refusals[side] += 1
        if side == 1 and (not self._heard or self._refusals[1] >= GONE_AFTER):
            self._refused("nobody listens at the backend's port")
            self.close()
        elif self._refusals[side] >= GONE_AFTER:
            self.close()

    def check(self) -> None:
        """Ends the flow if it is time, else looks again when it may be."""
        self._timer.cancel()
        left = self._last + self._idle() - self._loop.time()
        if left <= 0:
            self.close()
        else:
            self._timer = self._loop.call_later(left, self.check)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            for sock in self._socks:
                self._loop.remove_reader(sock)
                sock.close()
            self._ended(self)

    abort = close
