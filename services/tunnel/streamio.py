"""A stream's socket: the application's (or backend's) bytes in and out of the session.

The socket was passed in by the proxy and is ours alone. Bytes are read straight into the record that is
being gathered and written straight from the record that was opened; only what the application does not
take at once is copied, and that is bounded by the stream's credit.
"""

import socket
from typing import TYPE_CHECKING

from services.runtime import keepalive, sockets
from services.tunnel.core.frames import Reason
from services.tunnel.core.stream import Stream
from services.tunnel.engine import BROKEN, IN, OUT, Engine

if TYPE_CHECKING:
    from services.runtime.telemetry import Span
    from services.tunnel.attach import Caller
    from services.tunnel.pairing import Pairing

COMPACT = 1024 * 1024
"""Bytes already sent at the front of the waiting buffer before it is moved up."""
SEQPACKET_CHUNK = 60 * 1024
"""Largest chunk for an attached connection that is itself the stream: one message must fit its send buffer."""
MESSAGE_SIZE = 256 * 1024
"""Above the largest message of SOCK_SEQPACKET, which must fit the default send buffer of 208 KiB."""
EARLY = 48 * 1024
"""Bytes read of a client that its proxy may yet send elsewhere; with the message around them they fit in 64 KiB."""
REFUSED_BY_RESET = Reason(0, "the connection was reset")


class StreamIO:
    """One TCP (or Unix) connection. `sock` may come later: what arrives until then waits, within the credit."""

    __slots__ = (
        "_descriptor",
        "_engine",
        "_held",
        "_mask",
        "_messages",
        "_out",
        "_out_start",
        "_own",
        "_watched",
        "began",
        "caller",
        "counted",
        "early",
        "eof",
        "finished",
        "pairing",
        "service",
        "sock",
        "span",
        "stream",
        "welcome",
    )

    def __init__(self, engine: Engine, pairing: "Pairing", stream: Stream) -> None:
        self.stream = stream
        self.sock: socket.socket | None = None
        self.eof = False
        """The application sends no more."""
        self.finished = False
        """The peer sends no more; becomes a shutdown once all has been written."""
        self.caller: Caller | None = None
        """Who awaits the outcome of an Attach."""
        self.early: bytearray | None = None
        """What was read of a client that may yet go elsewhere; None: it may not, or the exit has accepted it."""
        self.welcome = b""
        """What the client is told first once the exit has accepted."""
        self.span: Span | None = None
        self.service = ""
        """As the ledger names it."""
        self.began = 0.0
        """Of a client's stream: when it was asked for, until the first byte for it came. Monotonic seconds."""
        self.counted = (0, 0)
        """What the ledger has put down of `carried`."""
        self._engine = engine
        self.pairing = pairing
        self._descriptor = -1
        self._mask = 0
        self._messages = False
        """SOCK_SEQPACKET: what does not fit when a message is read would be lost."""
        self._held = b""
        """The rest of a message, for which there is no credit."""
        self._out = bytearray()
        self._out_start = 0
        self._own = 0
        """Bytes at the front of `_out` that did not come from the peer, which gets no credit for them."""
        self._watched = False
        stream.owner = self

    def attach(self, sock: socket.socket, *, messages: bool = False) -> None:
        """From now on this is the other end of the stream. `messages`: it is a SOCK_SEQPACKET."""
        sock.setblocking(False)
        self.sock = sock
        self._messages = messages
        self._descriptor = sock.fileno()
        self._mask = IN
        self._engine.add(self._descriptor, IN, self._ready, self._fail)
        if self._out or self.finished:
            self._write()

    def watch(self) -> None:
        """The kernel asks from now on whether the other end is still there. For streams that last: it takes four system calls."""
        if not self._watched and self.sock is not None:
            self._watched = True
            try:
                keepalive.watch(self.sock)
            except OSError:  # no TCP: the kernel knows
                pass

    def carried(self) -> tuple[int, int]:
        """Bytes to the peer, and from it."""
        return self.stream.sent, self.stream.received

    # ---------------------------------------------------------------- application → session

    def _ready(self, mask: int) -> None:
        if mask == IN:
            self.read()
            return
        if mask & OUT:
            self._write()
        if mask & IN or (mask & BROKEN and self._mask > 0 and self._mask & IN):
            # Also an event from before an earlier one of the same batch made us read again: taken for one of a paused
            # socket it would put the stream to sleep, and nobody would wake it.
            self.read()
        elif mask & BROKEN and self.sock is not None:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._fail()
            else:  # closed at the other end. While we do not read: look again when we do. After its last byte: as
                # with TCP, only what the peer still sends, or its end, shows that nobody is there.
                self._engine.remove(self._descriptor)
                self._mask = -1

    def read(self) -> None:
        """Takes what the application has sent, as much as there is room for."""
        sock, stream, session = self.sock, self.stream, self.pairing.session
        if sock is None or self.eof:
            return
        if stream.send_limit <= stream.sent:
            self._listen(self._mask & ~IN)  # CREDIT resumes
            return
        if session.blocked:
            self._listen(self._mask & ~IN)
            self.pairing.blocked[self] = None
            return
        early = self.early
        if early is not None and len(early) >= EARLY:
            self._listen(self._mask & ~IN)  # `settle` resumes
            return
        try:
            if self._messages:
                size = self._read_message(sock)
            else:
                slot = session.slot(stream)
                if early is not None:
                    slot = slot[: EARLY - len(early)]
                size = sock.recv_into(slot)
                if early is not None:
                    early += slot[:size]
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        self.pairing.mark()
        if size:
            if not self._messages:
                session.commit(stream, size)
            return
        self.eof = True
        session.finish(stream)
        if self.finished and not self._out:
            self.close()
        else:
            self._listen(self._mask & ~IN)

    def settle(self) -> None:
        """The exit has accepted: what is read now goes nowhere else, and what comes now is the backend's."""
        if self.welcome:
            self._out += self.welcome
            self._own = len(self.welcome)
            self.welcome = b""
            self._write()
        if self.early is not None:
            self.early = None
            self.resume()

    def _read_message(self, sock: socket.socket) -> int:
        data = sock.recv(MESSAGE_SIZE)
        self._held = data[self.pairing.session.send(self.stream, data) :]
        if self._held:
            self._listen(self._mask & ~IN)
        return len(data)

    def resume(self) -> None:
        """Credit or the session has room again."""
        if self._held:
            self._held = self._held[self.pairing.session.send(self.stream, self._held) :]
            self.pairing.mark()
            if self._held:
                return
        if self.sock is not None and not self.eof:
            if self._mask == -1:
                self._mask = IN
                self._engine.add(self._descriptor, IN, self._ready, self._fail)
            else:
                self._listen(self._mask | IN)

    def _listen(self, mask: int) -> None:
        if mask != self._mask and self._mask != -1:
            self._mask = mask
            self._engine.change(self._descriptor, mask)

    # ---------------------------------------------------------------- session → application

    def deliver(self, view: memoryview) -> None:
        """Bytes from the peer; valid only during the call."""
        if self.began:
            self.pairing.openings.first_byte(self)
        sock = self.sock
        sent = 0
        if self._messages:
            self._out += view
            self._write()
            return
        if sock is not None and not self._out:
            try:
                sent = sock.send(view)
            except BlockingIOError:
                pass
            except OSError:
                self._fail()
                return
            if sent:
                self.pairing.session.consumed(self.stream, sent)
        if sent < len(view):
            self._out += view[sent:]
            if sock is not None:
                self._listen(self._mask | OUT)

    def finish(self) -> None:
        """The peer sends no more."""
        self.finished = True
        if not self._out:
            self._shutdown()

    def _write(self) -> None:
        sock, out = self.sock, self._out
        if sock is None:
            return
        limit = SEQPACKET_CHUNK if self._messages else len(out)
        total = 0
        try:
            with memoryview(out) as view:
                while self._out_start + total < len(out):
                    start = self._out_start + total
                    total += sock.send(view[start : start + limit])
        except BlockingIOError:
            pass
        except OSError:
            self._fail()
            return
        self._out_start += total
        own = min(self._own, total)
        self._own -= own
        if total > own:
            self.pairing.session.consumed(self.stream, total - own)
            self.pairing.mark()
        if self._out_start == len(out):
            self._out = bytearray()
            self._out_start = 0
            self._listen(self._mask & ~OUT if self._mask != -1 else -1)
            if self.finished:
                self._shutdown()
        else:
            if self._out_start >= COMPACT:
                del out[: self._out_start]
                self._out_start = 0
            self._listen(self._mask | OUT)

    def _shutdown(self) -> None:
        if self.eof:
            self.close()
        elif self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:  # the application is gone: reading tells
                pass

    # ---------------------------------------------------------------- the end

    def _fail(self) -> None:
        """The application is gone."""
        self.pairing.session.reset(self.stream, REFUSED_BY_RESET)
        self.pairing.mark()
        sock = self.release()
        if sock is not None:
            sockets.reset(sock)
        self.close()

    def release(self) -> socket.socket | None:
        """The socket, from now on the caller's."""
        sock, self.sock = self.sock, None
        if sock is not None and self._mask != -1:
            self._engine.remove(self._descriptor)
        return sock

    def close(self, *, reset: bool = False) -> None:
        """Gives the socket up; `reset` tells the application that this is no orderly end."""
        self._out = bytearray()
        self._out_start = 0
        self._held = b""
        if self.stream.owner is self:
            self.stream.owner = None
            self.pairing.closed(self)  # who may want the socket back
        sock = self.release()
        if sock is not None:
            if reset and self.early is None:
                sockets.reset_on_close(sock)
            sock.close()
