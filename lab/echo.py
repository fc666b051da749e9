"""One ICMP echo between two places of a simulated network. Needs no `ping`, only the rights the lab has anyway."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

from lab.namespace import Namespace

REQUEST, REPLY = 8, 0  # RFC 792
REQUEST6, REPLY6 = 128, 129  # RFC 4443
HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def echo(source: Namespace, address: str, *, timeout: float = 2.0) -> float | None:
    """Seconds until the answer; None without one within `timeout`, or when there is no way there."""
    six = ":" in address
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    request, reply = (REQUEST6, REPLY6) if six else (REQUEST, REPLY)
    identifier, token = os.getpid() & 0xFFFF, os.urandom(16)
    packet = HEADER.pack(request, 0, 0, identifier, 1) + token
    if not six:  # the kernel fills in that of ICMPv6
        packet = HEADER.pack(request, 0, checksum(packet), identifier, 1) + token
    with source.call(socket.socket, family, socket.SOCK_RAW, protocol) as sock, contextlib.suppress(OSError):
        start = time.monotonic()
        sock.sendto(packet, (address, 0))
        while (left := start + timeout - time.monotonic()) > 0:
            sock.settimeout(left)
            answer = sock.recv(2048)
            # The token makes it ours: a raw socket sees every echo, our own to ourselves included.
            if answer.endswith(token) and answer[0 if six else (answer[0] & 15) * 4] == reply:
                return time.monotonic() - start
    return None
