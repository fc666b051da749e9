"""What conntrack remembers from before there was a redirection."""

import socket
from collections.abc import Collection

from services.proxy.core.kernel import Target, dump_conntrack, ends, forget_unanswered

_NETLINK_NETFILTER = 12  # linux/netlink.h
_TIMEOUT = 5.0  # s
_MAX_DATAGRAMS = 4096  # of a list: some 100,000 connections


def forget(targets: Collection[Target]) -> None:
    """Forgets connections and flows to `targets` that nobody has answered yet, and that are not redirected.

    Only the first packet of a connection is; one that was tried before the table was there, and is tried again all the
    time (a SYN, a UDP client that never pauses), would stay without an answer. Raises OSError.
    """
    if not targets:
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.bind((0, 0))
        sock.send(dump_conntrack())
        requests: list[bytes] = []
        for _ in range(_MAX_DATAGRAMS):
            datagram = sock.recv(65536)
            requests += forget_unanswered(datagram, targets)
            if ends(datagram):
                break
        for request in requests:
            sock.send(request)
