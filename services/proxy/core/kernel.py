"""What the kernel says of nftables, of conntrack and of sockets, read from its own formats."""

import ipaddress
import struct
from collections.abc import Collection, Iterator

from services.proxy.core.catalog import Network

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg: family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_PREFIX = _HEADER.size + _FAMILY.size
_TYPE = 0x3FFF  # NLA_TYPE_MASK: without the flags for nesting and byte order
_CONNTRACK, _NFTABLES = 1, 10  # NFNL_SUBSYS_CTNETLINK and NFNL_SUBSYS_NFTABLES, in the upper byte of the type
_TABLE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE are all 1
_NEW_GENERATION = _NFTABLES << 8 | 15  # NFT_MSG_NEWGEN
_LISTENING = "0A"  # TCP_LISTEN, net/tcp_states.h

# linux/netfilter/nfnetlink_conntrack.h
_NEW, _GET, _DELETE = (_CONNTRACK << 8 | number for number in (0, 1, 2))
_ORIGINAL, _REPLY, _STATUS, _ID = 1, 2, 3, 12
_IP, _PROTOCOL = 1, 2  # inside a tuple
_SOURCE, _DESTINATION = (1, 3), (2, 4)  # of its addresses: IPv4, IPv6
_NUMBER, _DESTINATION_PORT = 1, 3
_SEEN_REPLY = 1 << 1
_PROTOCOLS: dict[Network, bytes] = {"tcp": b"\x06", "udp": b"\x11"}
_REQUEST, _DUMP = 1, 0x300  # NLM_F_*

Target = tuple[Network, str, int]


class TableChanges:
    """Counts the transactions that changed one table of nftables, from what the group NFNLGRP_NFTABLES says."""

    def __init__(self, table: str) -> None:
        self._name = table.encode() + b"\0"
        self._touched = False  # by the transaction that is being told
        self.count = 0

    def receive(self, datagram: bytes) -> None:
        """A datagram of that group. A transaction's parts come first, then the generation that it made."""
        for kind, body in _messages(datagram):
            if kind == _NEW_GENERATION:
                self.count += self._touched
                self._touched = False
            elif kind >> 8 == _NFTABLES:
                self._touched = self._touched or _attributes(body).get(_TABLE) == self._name


def dump_conntrack() -> bytes:
    """The request to list all that conntrack knows."""
    return _HEADER.pack(_PREFIX, _GET, _REQUEST | _DUMP, 0, 0) + _FAMILY.pack(0, 0, 0)


def forget_unanswered(datagram: bytes, targets: Collection[Target]) -> Iterator[bytes]:
    """Requests to forget what a part of that list says was sent to `targets`, not translated, and never answered."""
    wanted = {
        (_PROTOCOLS[network], ipaddress.ip_address(ip).packed, port.to_bytes(2, "big")) for network, ip, port in targets
    }
    for kind, body in _messages(datagram):
        if kind != _NEW:
            continue
        found = _attributes(body)
        protocol, ip, port, _ = _tuple(found.get(_ORIGINAL, b""))
        if (protocol, ip, port) not in wanted or _tuple(found.get(_REPLY, b""))[3] != ip:
            continue
        if int.from_bytes(found.get(_STATUS, b""), "big") & _SEEN_REPLY:
            continue
        # Never without the tuple: that would mean all of conntrack. The id makes it this very entry.
        parts = b"".join(_attribute(name, found[name]) for name in (_ORIGINAL, _ID) if name in found)
        family = _FAMILY.pack(10 if len(ip) == 16 else 2, 0, 0)  # AF_INET6, AF_INET
        yield _HEADER.pack(_PREFIX + len(parts), _DELETE, _REQUEST, 0, 0) + family + parts


def ends(datagram: bytes) -> bool:
    """Whether a list ends here: NLMSG_DONE, or NLMSG_ERROR."""
    return any(kind in (2, 3) for kind, _ in _messages(datagram))


def connected(sockets: str, port: int) -> bool:
    """Whether /proc/net/tcp or tcp6 lists a connection on this local port that some process holds."""
    end = f":{port:04X}"
    for line in sockets.splitlines()[1:]:
        fields = line.split(maxsplit=10)  # sl, local, remote, state, …, inode is the tenth: 0 when nobody holds it
        if len(fields) > 9 and fields[1].endswith(end) and fields[3] != _LISTENING and fields[9] != "0":
            return True
    return False


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and attributes of each message."""
    start = 0
    while start + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, start)
        if length < _HEADER.size:
            return
        yield kind, datagram[start + _PREFIX : start + length]
        start += (length + 3) & ~3


def _attributes(body: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & _TYPE] = body[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return found


def _attribute(kind: int, content: bytes) -> bytes:
    nested = 0x8000 if kind == _ORIGINAL else 0  # NLA_F_NESTED
    padding = b"\0" * (-len(content) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind | nested) + content + padding


def _tuple(content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Protocol, destination address, destination port and source address."""
    found = _attributes(content)
    addresses, protocol = _attributes(found.get(_IP, b"")), _attributes(found.get(_PROTOCOL, b""))
    source, destination = (
        next((addresses[kind] for kind in kinds if kind in addresses), b"") for kinds in (_SOURCE, _DESTINATION)
    )
    return protocol.get(_NUMBER, b""), destination, protocol.get(_DESTINATION_PORT, b""), source
