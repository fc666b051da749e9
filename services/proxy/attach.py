"""The proxy's one connection to `tunnel.attach`: sockets go in, with a header each, and are the tunnel's from then on.

A message is one SEQPACKET datagram with one descriptor (SCM_RIGHTS); the kernel takes it whole or not at all, so
nothing is ever half sent. Sends never block. What the tunnel cannot take now waits in a bounded queue, also while
the tunnel is away: a restart of the tunnel costs new clients a short wait instead of an error.
"""

import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger
from pathlib import Path

from services.runtime.sockets import adopt, reset

MAX_WAITING = 1024  # messages with clients; each holds a descriptor
MAX_ANSWERS = 4096  # messages in all: the tunnel lets no more offers wait (MAX_WAITING there), so no answer is lost
CROWDED = MAX_WAITING // 2
MAX_WAIT = 5.0  # s that a client waits for the tunnel
MAX_MESSAGE = 64 * 1024  # bytes, by the contract in tunnel.proto
_RETRY_BUSY = 0.1  # s between attempts to connect while clients wait
_RETRY_IDLE = 2.0  # s between attempts while nobody does, after it doubled from _RETRY_BUSY
_RESULTS = 64  # results read in a turn of the loop: clients that come have theirs
_RETRY_FULL = 0.01  # s until descriptors in flight (ETOOMANYREFS) may have been taken
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM}
_UNSENDABLE = {errno.EMSGSIZE, errno.EBADF}  # this message, never the next
_FD = struct.Struct("i")


@dataclass(slots=True)
class _Waiting:
    header: bytes
    sock: socket.socket | None
    lost: Callable[[], None] | None  # None: belongs to this very tunnel process, worthless to the next
    deadline: float  # loop time
    keep: bool = False  # the socket stays its owner's too


class AttachSocket:
    """Hands sockets to the tunnel. Owned by the driver: `open`, then `give` at will, then `close`."""

    def __init__(
        self,
        path: Path,
        log: Logger,
        on_result: Callable[[bytes, socket.socket | None], None],
        on_lost: Callable[[set[socket.socket]], None],
    ) -> None:
        """`on_result`: an AttachResult came, maybe with a client's socket. `on_lost`: the tunnel is gone; with the sockets it had not taken yet."""
        self._path = str(path)
        self._on_result = on_result
        self._on_lost = on_lost
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._peer: socket.socket | None = None
        self._queue: deque[_Waiting] = deque()
        self._writing = False  # the loop tells when the tunnel takes more
        self._retry: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._delay = _RETRY_BUSY
        self._greeting = b""
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._peer is not None

    @property
    def waiting(self) -> int:
        """Messages the tunnel has not taken yet."""
        return len(self._queue)

    @property
    def crowded(self) -> bool:
        """The tunnel is there, but clients come faster than it takes them: whoever can should let them wait outside."""
        return len(self._queue) >= CROWDED and self._peer is not None

    def open(self) -> None:
        """Connects now, or in the background as soon as the tunnel is there."""
        self._connect()

    def greet(self, header: bytes) -> None:
        """Says this to the tunnel, and from now on first to every other one."""
        self._greeting = header
        if self._peer is not None:
            self.give(header, None)

    def give(
        self,
        header: bytes,
        sock: socket.socket | None,
        lost: Callable[[], None] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Sends `header` (an encoded Attach) with `sock`, then closes our copy of it, unless the caller wants to `keep`
        it.

        `lost` marks a message that outlives a restart of the tunnel (Outbound); it is called when the message could
        not be handed over within MAX_WAIT, and the socket is the caller's again. Without it the message is an answer
        to this very tunnel process, and dies with the connection; the socket is reset then.
        """
        if self._peer is not None and not self._queue:
            try:
                _send(self._peer, header, sock, keep)
                return
            except OSError as error:
                if error.errno in _UNSENDABLE:
                    self._drop(_Waiting(header, sock, lost, 0, keep))
                    return
                if not self._survives(error):
                    self._lose(error)
        most = MAX_ANSWERS if lost is None else MAX_WAITING
        if (self._peer is None and lost is None) or len(self._queue) >= most or self._closed:
            self._drop(_Waiting(header, sock, lost, 0, keep))
            return
        self._queue.append(_Waiting(header, sock, lost, self._loop.time() + MAX_WAIT, keep))
        if self._expiry is None:
            self._expiry = self._loop.call_later(MAX_WAIT, self._expire)
        if self._peer is None:
            self._connect()
        elif not self._writing and self._retry is None:
            self._writing = True
            self._loop.add_writer(self._peer, self._flush)

    def close(self) -> None:
        """Drops what waits. The sockets that the tunnel has are not touched."""
        self._closed = True
        for timer in (self._retry, self._expiry):
            if timer is not None:
                timer.cancel()
        self._retry = self._expiry = None
        self._disconnect()
        while self._queue:
            self._drop(self._queue.popleft())

    # ── connecting ──

    def _connect(self) -> None:
        """One attempt; arms the next when it fails. A Unix connect succeeds or fails at once."""
        if self._closed or self._peer is not None:
            return
        if self._retry is not None:
            if self._queue and self._retry.when() - self._loop.time() > _RETRY_BUSY:
                self._retry.cancel()
            else:
                return
        self._retry = None
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            peer.connect(self._path)
            if self._greeting:
                peer.send(self._greeting)
        except OSError:  # not there yet, or its backlog is full
            peer.close()
            self._arm(_RETRY_BUSY if self._queue else self._delay, self._reconnect)
            self._delay = min(self._delay * 2, _RETRY_IDLE)
            return
        self._peer, self._delay = peer, _RETRY_BUSY
        self._loop.add_reader(peer, self._readable)
        self._log.info("attached to the tunnel", extra={"count": len(self._queue)})
        self._flush()

    def _reconnect(self) -> None:
        self._retry = None
        self._connect()

    def _arm(self, delay: float, action: Callable[[], None]) -> None:
        self._retry = self._loop.call_later(delay, action)

    def _readable(self) -> None:
        """AttachResults, and the end of the tunnel."""
        for _ in range(_RESULTS):
            if self._peer is None:
                return
            try:
                message, descriptors, _, _ = socket.recv_fds(self._peer, MAX_MESSAGE, 1)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(error)
                return
            if not message:
                self._lose(None)
                return
            self._on_result(message, adopt(descriptors[0]) if descriptors else None)

    def _lose(self, error: OSError | None) -> None:
        """The tunnel went away: answers to it are worthless, clients wait for the next."""
        self._log.warning(
            "the tunnel went away, clients wait for it", extra={"error": error or "it closed tunnel.attach"}
        )
        self._disconnect()
        kept = [item for item in self._queue if item.lost is not None]
        for item in self._queue:
            if item.lost is None:
                self._drop(item)
        self._queue = deque(kept)
        if self._retry is not None:
            self._retry.cancel()
        self._arm(_RETRY_BUSY, self._reconnect)
        self._on_lost({item.sock for item in kept if item.sock is not None})

    def _disconnect(self) -> None:
        if self._peer is not None:
            self._loop.remove_reader(self._peer)
            self._loop.remove_writer(self._peer)
            self._peer.close()
        self._peer, self._writing = None, False

    # ── the queue ──

    def _survives(self, error: OSError) -> bool:
        """Whether the connection lives on after a failed send; sees to the next attempt."""
        if error.errno in _FULL:
            return True
        if error.errno == errno.ETOOMANYREFS:
            # Too many descriptors on their way: the tunnel must take some; the socket stays writable meanwhile.
            if self._writing and self._peer is not None:
                self._loop.remove_writer(self._peer)
                self._writing = False
            if self._retry is None:
                self._arm(_RETRY_FULL, self._resume)
            return True
        return False

    def _resume(self) -> None:
        self._retry = None
        self._flush()

    def _flush(self) -> None:
        while self._queue and self._peer is not None:
            item = self._queue[0]
            try:
                _send(self._peer, item.header, item.sock, item.keep)
            except OSError as error:
                if error.errno in _UNSENDABLE:
                    self._drop(self._queue.popleft())
                    continue
                if not self._survives(error):
                    self._lose(error)
                elif self._retry is None and not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._peer, self._flush)
                return
            self._queue.popleft()
        if self._writing and self._peer is not None:
            self._loop.remove_writer(self._peer)
            self._writing = False

    def _expire(self) -> None:
        """Drops what waited too long. All wait equally long, so the head is always the oldest."""
        now = self._loop.time()
        while self._queue and self._queue[0].deadline <= now:
            self._drop(self._queue.popleft())
        self._expiry = self._loop.call_at(self._queue[0].deadline, self._expire) if self._queue else None

    def _drop(self, item: _Waiting) -> None:
        if item.lost is not None:
            item.lost()
        elif item.sock is not None and not item.keep:
            reset(item.sock)


def _send(peer: socket.socket, header: bytes, sock: socket.socket | None, keep: bool) -> None:
    """One message, whole; closes `sock` once the kernel holds it, unless it is to be kept. Raises OSError and closes
    nothing otherwise."""
    if sock is None:
        peer.send(header)
    else:
        peer.sendmsg((header,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(sock.fileno())),))
        if not keep:
            sock.close()
