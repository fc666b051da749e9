"""How a client is told that it gets no connection: one that speaks HTTP by an answer with the reason in it, every other
one by a reset.

Which of the two it is, its first bytes tell. They are mostly here by now; who has sent nothing may be about to, and has
PATIENCE seconds for it, unless the port says that it is for something else than HTTP.
"""

import asyncio
import socket
from dataclasses import dataclass

from services.proxy import errors
from services.proxy.core import http2, request
from services.runtime.sockets import reset

PATIENCE = 1.0  # s for the first bytes of a request
LINGER = 2.0  # s that an answered client has to end its side; a close with bytes unread would take the answer back
MAX_LINGER = (
    1024 * 1024
)  # bytes that are read of it until then; whoever sends more has to wait, and so finds the answer
MAX_TOLD = 1024  # clients at a time; further ones are reset
_FIRST = 16 * 1024 + 1024  # bytes in which a request must be recognised

_STATUS = {
    errors.DENIED: 403,
    errors.UNREACHABLE: 502,
    errors.CONNECTION_REFUSED: 502,
    errors.UNKNOWN_NODE: 502,
    errors.HEAD_LATE: 408,
    errors.HEAD_TOO_LARGE: 431,
}
_UNAVAILABLE = 503  # for every other reason


@dataclass(slots=True, eq=False)
class _Told:
    client: socket.socket
    reason: str
    why: str
    patient: bool
    head: bytearray
    timer: asyncio.TimerHandle | None = None
    greeted: bool = False  # HTTP/2: has our SETTINGS
    answered: bool = False
    left: int = 0  # bytes that may yet be thrown away


class Refusals:
    """Owned by the departure: `tell` at will, then `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told: set[_Told] = set()

    def __len__(self) -> int:
        return len(self._told)

    def tell(self, client: socket.socket, reason: str, why: str, head: bytes = b"", *, patient: bool = True) -> None:
        """Owns `client` from now on, of which `head` was read. `reason` is one of `errors`, `why` one line.
        `patient`: to wait for a request that is not here yet."""
        if client.type != socket.SOCK_STREAM or len(self._told) >= MAX_TOLD or request.looks(head) == "other":
            reset(client)
            return
        client.setblocking(False)
        one = _Told(client, reason, why, patient, bytearray(head))
        one.timer = self._loop.call_later(PATIENCE, self._end, one)
        self._told.add(one)
        self._loop.add_reader(client, self._read, one)
        if not head or not self._look(one):
            self._read(one)

    def close(self) -> None:
        """Ends them all, those that were answered in order."""
        for one in list(self._told):
            self._end(one)

    def _read(self, one: _Told) -> None:
        try:
            data = one.client.recv(min(one.left, _FIRST) if one.answered else _FIRST - len(one.head))
        except BlockingIOError:
            if not one.patient and not one.head:
                self._end(one)
            return
        except OSError:
            self._end(one)
            return
        if one.answered:
            one.left -= len(data)
            if not data:
                self._end(one)
            elif one.left == 0:
                self._loop.remove_reader(one.client)
            return
        one.head += data
        if not data:
            self._end(one)
        else:
            self._look(one)

    def _look(self, one: _Told) -> bool:
        """Answers if the request is there. True when nothing more is to be read for it."""
        head = bytes(one.head)
        match request.looks(head):
            case "http/1":
                self._answer(one, request.answer(self._status(one), one.reason, one.why, head=head[:5] == b"HEAD "))
                return True
            case "http/2":
                return self._look_deeper(one, head)
            case "other":
                self._end(one)
                return True
        return self._enough(one)

    def _enough(self, one: _Told) -> bool:
        """So much, and still no request: True, and it is reset."""
        if len(one.head) < _FIRST:
            return False
        self._end(one)
        return True

    def _look_deeper(self, one: _Told, head: bytes) -> bool:
        try:
            stream = http2.first_stream(head)
        except ValueError:
            self._end(one)
            return True
        greeting = b"" if one.greeted else http2.GREETING
        if stream:
            self._answer(one, greeting + http2.answer(stream, self._status(one), request.line(one.reason, one.why)))
            return True
        if greeting:
            one.greeted = True
            if not self._send(one, greeting):
                return True
        return self._enough(one)

    def _answer(self, one: _Told, answer: bytes) -> None:
        if not self._send(one, answer):
            return
        try:
            one.client.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(one)
            return
        one.answered, one.left = True, MAX_LINGER
        if one.timer is not None:
            one.timer.cancel()
        one.timer = self._loop.call_later(LINGER, self._end, one)

    def _send(self, one: _Told, data: bytes) -> bool:
        """Nothing was sent to this client before: what the kernel does not take now, it will not take."""
        try:
            if one.client.send(data) == len(data):
                return True
        except OSError:
            pass
        self._end(one)
        return False

    @staticmethod
    def _status(one: _Told) -> int:
        return _STATUS.get(one.reason, _UNAVAILABLE)

    def _end(self, one: _Told) -> None:
        if one not in self._told:
            return
        self._told.discard(one)
        if one.timer is not None:
            one.timer.cancel()
        self._loop.remove_reader(one.client)
        if one.answered or one.greeted:
            one.client.close()
        else:
            reset(one.client)
