"""The default gateway and our own address towards it."""

import contextlib
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from services.tunnel.core import natkind

ROUTES = Path("/proc/net/route")
_UP_AND_GATEWAY = 0x3  # RTF_UP | RTF_GATEWAY, linux/route.h


@dataclass(frozen=True, slots=True)
class Gateway:
    """IPv4 addresses: the gateway's, and ours as it sees it."""

    ip: str
    local: str


def parse(table: str) -> str:
    """IP of the default gateway with the lowest metric in a /proc/net/route; empty without one."""
    best: tuple[int, str] | None = None
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        destination, gateway, flags, mask = (int(fields[i], 16) for i in (1, 2, 3, 7))
        if destination == 0 and mask == 0 and flags & _UP_AND_GATEWAY == _UP_AND_GATEWAY:
            metric, ip = int(fields[6]), socket.inet_ntoa(struct.pack("=I", gateway))
            best = min(best or (metric, ip), (metric, ip))
    return best[1] if best else ""


def find(listen_address: str) -> Gateway | None:
    """The gateway behind which the listen port is; None when there is none, or nothing to map: a node with a public
    address, or one that listens on loopback or IPv6 only."""
    if listen_address and (":" in listen_address or listen_address.startswith("127.")):
        return None
    with contextlib.suppress(OSError, ValueError):
        ip = parse(ROUTES.read_text())
        if ip:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((listen_address, 0))
                sock.connect((ip, 9))  # sends nothing: only asks the kernel for the way
                local = sock.getsockname()[0]
            if natkind.is_inside(local):
                return Gateway(ip, local)
    return None
