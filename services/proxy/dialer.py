"""Non-blocking connections to backends, all at once, none waiting for another.

Callbacks instead of coroutines: a connect over loopback is over before it could be awaited, so the common case is
three system calls and no task.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.proxy import errors
from services.proxy.core.catalog import Network
from services.proxy.core.patience import CONNECT

MAX_DIALS = 4096  # connections being made at once; more are refused, since each holds a descriptor

_REASONS = {errno.ECONNREFUSED: errors.CONNECTION_REFUSED, errno.EMFILE: errors.LIMIT, errno.ENFILE: errors.LIMIT}


Avoid = Callable[[Network, str, int], bool]


class Done(Protocol):
    """Called once per dial: the connected non-blocking socket, or None with a reason of `errors` and one line."""

    def __call__(self, sock: socket.socket | None, reason: str, why: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Dial:
    sock: socket.socket
    address: tuple[str, int]
    done: Done
    timer: asyncio.TimerHandle | None = None


class Dialer:
    """Makes connections. `done` may be called before `dial` returns."""

    def __init__(self, *, avoid: Avoid = lambda network, ip, port: False) -> None:
        """`avoid`: addresses from which the connection would come straight back to this proxy."""
        self._loop = asyncio.get_running_loop()
        self._avoid = avoid
        self._pending: set[_Dial] = set()

    def dial(self, network: Network, ip: str, port: int, done: Done, timeout: float = CONNECT) -> None:
        """Connects to ip:port (an IP literal) within `timeout` seconds. A UDP socket is connected as soon as it has its
        peer's address."""
        if self._avoid(network, ip, port):
            done(None, errors.UNREACHABLE, f"connect to {ip} port {port}: it is being intercepted here")
            return
        if len(self._pending) >= MAX_DIALS:
            done(None, errors.LIMIT, f"{MAX_DIALS} connections are being made already")
            return
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        kind = socket.SOCK_STREAM if network == "tcp" else socket.SOCK_DGRAM
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        except OSError as error:
            done(None, *_explain(error.errno or 0, ip, port))
            return
        address = (ip, port)
        try:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                code = sock.connect_ex(address)  # over loopback the handshake is complete by now
        except OSError as error:  # an address that means nothing here, such as a multicast scope
            code = error.errno or errno.EINVAL
        if code in (errno.EALREADY, errno.EINPROGRESS):
            dial = _Dial(sock, address, done)
            dial.timer = self._loop.call_later(timeout, self._end, dial, errno.ETIMEDOUT)
            self._pending.add(dial)
            self._loop.add_writer(sock, self._ready, dial)
        elif code in (0, errno.EISCONN):
            done(sock, "", "")
        else:
            sock.close()
            done(None, *_explain(code, ip, port))

    def close(self) -> None:
        """Gives up every dial; their callbacks are not called."""
        for dial in self._pending:
            self._leave(dial)
            dial.sock.close()
        self._pending.clear()

    def _ready(self, dial: _Dial) -> None:
        self._end(dial, dial.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _end(self, dial: _Dial, code: int) -> None:
        self._pending.discard(dial)
        self._leave(dial)
        if code == 0:
            dial.done(dial.sock, "", "")
            return
        dial.sock.close()
        dial.done(None, *_explain(code, *dial.address))

    def _leave(self, dial: _Dial) -> None:
        """The loop forgets it."""
        self._loop.remove_writer(dial.sock)
        if dial.timer is not None:
            dial.timer.cancel()


def _explain(code: int, ip: str, port: int) -> tuple[str, str]:
    """The reason to count, and one line for the caller."""
    text = "no answer within the time" if code == errno.ETIMEDOUT else errno.errorcode.get(code, str(code))
    return _REASONS.get(code, errors.UNREACHABLE), f"connect to {ip} port {port}: {text}"
