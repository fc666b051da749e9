"""To which address of this host a datagram came, for sockets that are bound to all of them (ip(7), ipv6(7)).

An answer must come from the address that was asked: the kernel would choose it by the route back.
"""

import socket
from struct import Struct
from typing import Any

IP_PKTINFO = 8  # linux/in.h; the socket module of Python 3.11 does not name it
# struct in_pktinfo: interface, the local address, the datagram's; struct in6_pktinfo: address, interface.
_V4, _V6 = Struct("=i4s4s"), Struct("=16si")

ANCILLARY = socket.CMSG_SPACE(_V6.size)

Message = tuple[int, int, bytes]


def is_wildcard(ip: str) -> bool:
    """Whether `ip` stands for all addresses of its family."""
    return ip in ("0.0.0.0", "::")


def ask(sock: socket.socket) -> None:
    """From now on recvmsg tells."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def destination(messages: list[Any]) -> str:
    """The address of this host in what recvmsg returned; "" when it says nothing."""
    for level, kind, data in messages:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) >= _V4.size:
            return socket.inet_ntop(socket.AF_INET, _V4.unpack_from(data)[1])
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _V6.size:
            return socket.inet_ntop(socket.AF_INET6, _V6.unpack_from(data)[0])
    return ""


def origin(ip: str) -> Message:
    """For sendmsg: the datagram goes out from `ip`."""
    if ":" in ip:
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _V6.pack(socket.inet_pton(socket.AF_INET6, ip), 0)
    return socket.IPPROTO_IP, IP_PKTINFO, _V4.pack(0, socket.inet_pton(socket.AF_INET, ip), bytes(4))
