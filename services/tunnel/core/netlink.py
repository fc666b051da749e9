"""Rtnetlink, as far as it tells which addresses this host has and by which way it reaches another one.

Requests and answers as in linux/netlink.h, linux/rtnetlink.h and linux/if_addr.h: numbers in the host's byte order,
addresses in the network's. What changed is never read from the kernel's announcements, only *that* something did;
then the state is asked for, so a lost announcement costs nothing.
"""

import ipaddress
import sys
from collections.abc import Iterator
from struct import Struct

GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE: no neighbours, which change all the time."""

_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = Struct("=HH")  # length, type
_ADDRESS = Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, interface
_ROUTE = Struct("=8BI")  # struct rtmsg: family, destination's length, …, flags
_NUMBER = Struct("=I")

_ERROR, _DONE = 2, 3
_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 20, 22, 24, 26
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
_TENTATIVE, _DADFAILED = 0x40, 0x08
_INET, _INET6 = 2, 10  # AF_INET, AF_INET6 of Linux
_ATTRIBUTE_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

Way = tuple[int, str, str]
"""How the kernel sends to a destination: interface, gateway ("": none), source address."""
NO_WAY: Way = (0, "", "")


def ask_addresses(number: int) -> bytes:
    """Request for all addresses of this host; the answer ends with `finished`."""
    body = _ADDRESS.pack(0, 0, 0, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), _GETADDR, _REQUEST | _DUMP, number, 0) + body


def ask_way(number: int, destination: str) -> bytes:
    """Request for the way to one address; one message answers. ValueError when it is no address."""
    target = ipaddress.ip_address(destination)
    family = _INET if target.version == 4 else _INET6
    body = _ROUTE.pack(family, target.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(target.packed), _RTA_DST) + target.packed
    return _HEADER.pack(_HEADER.size + len(body), _GETROUTE, _REQUEST, number, 0) + body


class Interrupted(Exception):
    """Something changed while a list was being told, which may be wrong now: ask again."""


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each message in what was received; what is no message ends it."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, number, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        if flags & _INTERRUPTED:
            raise Interrupted
        yield kind, number, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def finished(kind: int) -> bool:
    """Nothing more comes in answer to this request: it was the last of a list, or an error."""
    return kind in (_DONE, _ERROR)


def address(kind: int, body: bytes) -> tuple[int, str] | None:
    """Interface and address that a message tells of; None for another message, or an address that is not usable yet."""
    if kind != _NEWADDR or len(body) < _ADDRESS.size:
        return None
    family, _, flags, _, interface = _ADDRESS.unpack_from(body)
    values = dict(_attributes(body, _ADDRESS.size))
    if len(values.get(_IFA_FLAGS, b"")) == _NUMBER.size:
        flags = _NUMBER.unpack(values[_IFA_FLAGS])[0]
    # On a point-to-point interface IFA_ADDRESS is the other end's.
    text = _text(family, values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b"")))
    return (interface, text) if text and not flags & (_TENTATIVE | _DADFAILED) else None


def way(kind: int, body: bytes) -> Way:
    """The way that a message tells of; NO_WAY for another message, such as the error that there is none."""
    if kind != _NEWROUTE or len(body) < _ROUTE.size:
        return NO_WAY
    family = body[0]
    values = dict(_attributes(body, _ROUTE.size))
    gateway = _text(family, values.get(_RTA_GATEWAY, b""))
    via = values.get(_RTA_VIA, b"")
    if len(via) > 2:  # a gateway of the other family, which comes before it
        gateway = _text(int.from_bytes(via[:2], sys.byteorder), via[2:])
    interface = values.get(_RTA_OIF, b"")
    number = _NUMBER.unpack(interface)[0] if len(interface) == _NUMBER.size else 0
    return number, gateway, _text(family, values.get(_RTA_PREFSRC, b""))


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if not _ATTRIBUTE.size <= length <= len(body) - at:
            return
        yield kind & _ATTRIBUTE_TYPE, body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def _text(family: int, packed: bytes) -> str:
    if (family, len(packed)) not in ((_INET, 4), (_INET6, 16)):
        return ""
    return str(ipaddress.ip_address(packed))
