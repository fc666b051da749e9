"""Connections of applications whose other end vanished without a word: the kernel asks, and ends them.

Nothing else would: a client that lost its power while it waited for an answer would hold its stream, with a descriptor on
both nodes and the backend's connection, until the node restarts.
"""

import socket

IDLE = 60  # s of silence until the kernel asks
INTERVAL = 15  # s between questions
COUNT = 4  # unanswered questions. Two minutes in all: an application that is only slow has its kernel answer for it


def watch(sock: socket.socket) -> None:
    """For a TCP connection, or for a listener, whose accepted connections inherit it. OSError: it is neither, or gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, COUNT)
