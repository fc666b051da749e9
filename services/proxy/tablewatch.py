"""Hears of every change of our nftables table, whoever makes it. Needs CAP_NET_ADMIN."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable

from services.proxy.core.kernel import TableChanges

_NETLINK_NETFILTER = 12  # linux/netlink.h
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER = 4 << 20  # bytes; some 20,000 elements in one transaction. kube-proxy's changes come here, too


class TableWatch:
    """Calls `changed` after changes, once for many. Raises OSError where it is not permitted."""

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        self._changes = TableChanges(name)
        self._changed = changed
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # cut to rmem_max, quietly
            with contextlib.suppress(PermissionError):  # root of a user namespace only
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError:
            self._sock.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self.count)

    def count(self) -> int:
        """Transactions up to now that changed the table."""
        before = self._changes.count
        while True:
            try:
                self._changes.receive(self._sock.recv(65536))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._changed()  # more than the buffer holds: ours may have been among it
        if self._changes.count != before:
            self._changed()
        return self._changes.count

    def close(self) -> None:
        """Hears no more."""
        self._loop.remove_reader(self._sock)
        self._sock.close()
