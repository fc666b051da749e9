"""What the kernel says of nftables and of sockets, read from its own formats."""

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES, in the upper byte of the type
_TABLE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE are all 1
_LISTENING = "0A"  # TCP_LISTEN, net/tcp_states.h


def tables(datagram: bytes) -> Iterator[str]:
    """Names of the tables whose parts a datagram of the group NFNLGRP_NFTABLES says were made, changed or removed."""
    start = 0
    while start + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, start)
        if length < _HEADER.size:
            return
        at = start + _HEADER.size + _FAMILY.size
        if kind >> 8 == _NFTABLES and at + _ATTRIBUTE.size <= len(datagram):
            size, attribute = _ATTRIBUTE.unpack_from(datagram, at)
            if attribute == _TABLE:
                yield datagram[at + _ATTRIBUTE.size : at + size].rstrip(b"\0").decode(errors="replace")
        start += (length + 3) & ~3


def connected(sockets: str, port: int) -> bool:
    """Whether /proc/net/tcp or tcp6 lists a connection on this local port that some process holds."""
    end = f":{port:04X}"
    for line in sockets.splitlines()[1:]:
        fields = line.split(maxsplit=10)  # sl, local, remote, state, …, inode is the tenth: 0 when nobody holds it
        if len(fields) > 9 and fields[1].endswith(end) and fields[3] != _LISTENING and fields[9] != "0":
            return True
    return False
