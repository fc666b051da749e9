"""Hears of every change of our nftables table, whoever makes it. Needs CAP_NET_ADMIN."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable

from services.proxy.core.kernel import tables

_NETLINK_NETFILTER = 12  # linux/netlink.h
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
_BURST = 64  # datagrams a turn of the loop; kube-proxy's changes come here, too


class TableWatch:
    """Calls `changed` after each change, at least once for many. Raises OSError where it is not permitted."""

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        self._name = name
        self._changed = changed
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError:
            self._sock.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Hears no more."""
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        ours = False
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BURST):
                try:
                    datagram = self._sock.recv(65536)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    ours = True  # more changes than the buffer holds: ours may have been among them
                    continue
                ours = ours or self._name in tables(datagram)
        if ours:
            self._changed()
