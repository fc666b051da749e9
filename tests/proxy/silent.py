"""A backend that is there and says nothing."""

import errno
import socket


class Silent:
    """A port of which the kernel drops every SYN, since its queue of connections is full: nobody answers, nobody refuses."""

    def __init__(self, ip: str, port: int) -> None:
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind((ip, port))
        self._listening.listen(0)
        self._queued = [socket.socket() for _ in range(4)]
        for one in self._queued:
            one.setblocking(False)
            one.connect_ex((ip, port))
        assert self._queued[-1].connect_ex((ip, port)) == errno.EALREADY, "no room"

    def close(self) -> None:
        for one in (self._listening, *self._queued):
            one.close()
