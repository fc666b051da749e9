"""What this node dials for others, and how often: a node that dials on request is a tool, so it is a blunt one.

Nobody can be made a target by others: the asker's own address, as this node sees it, is dialled freely; another public
one only for work (32 KiB sent to us for the three packets and 20 bytes that we send); a private one never, as it means
another machine here than there. No port below FIRST_PORT, and what is said there is a magic and the asker's token.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum

from services.runtime.core.allowance import Allowance
from services.runtime.core.private import private
from services.runtime.core.proof import TOKEN_LENGTH

from .errors import BadTarget, LimitReached, WorkRequired

FIRST_PORT = 1024
"""Lowest port dialled: below are the system's services (IANA's system ports)."""
WORK = 32 * 1024
"""Bytes demanded for another address (AutoNATv2: 30 to 100 KB)."""
PEER_PER_MINUTE, PER_MINUTE, MAX_OPEN = 12, 60, 4
"""Dials for one node and for all, and at once, one for each (AutoNATv2: 12, 60, 2; ours read and stay open longer)."""


class DialOutcome(IntEnum):
    """How a dial ended; numbers as DialBackOutcome in protos/discovery.proto."""

    CONNECTED = 1
    RESET = 2
    SILENCE = 3
    UNREACHABLE = 4
    LOST = 5


class Guard:
    """Grants dials; each granted one is to be given back by `done`. `now` is monotonic, seconds."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self._peers = Allowance(rate=PEER_PER_MINUTE / 60, burst=PEER_PER_MINUTE)
        self._all = Allowance(rate=PER_MINUTE / 60, burst=PER_MINUTE, capacity=1)

    def enter(self, peer: str, now: float) -> None:
        """LimitReached: not now."""
        if peer in self.open:
            raise LimitReached(f"a dial for {peer} is under way; ask again when it is over")
        if len(self.open) >= MAX_OPEN:
            raise LimitReached(f"{MAX_OPEN} dials are under way, which is the limit; ask again in a few seconds")
        if not self._peers.spend(peer, now):
            raise LimitReached(f"{peer} has had {PEER_PER_MINUTE} dials within a minute, which is the limit")
        if not self._all.spend("", now):
            raise LimitReached(f"{PER_MINUTE} dials were made within a minute, which is the limit; ask again later")
        self.open.add(peer)

    def done(self, peer: str) -> None:
        """The dial for this peer is over."""
        self.open.discard(peer)

    def __len__(self) -> int:
        return len(self._peers)


def check(port: int, token: bytes) -> None:
    """BadTarget for what nobody dials."""
    if not FIRST_PORT <= port <= 65_535:
        raise BadTarget(f"got port {port}, expected {FIRST_PORT} to 65535")
    if len(token) != TOKEN_LENGTH:
        raise BadTarget(f"got a token of {len(token)} bytes, expected {TOKEN_LENGTH}")


def target(ip: str, caller: str, work: int, *, loopback: bool) -> str:
    """The address to dial for who calls from the address `caller` and asks for `ip` (empty: the same), having sent so
    many bytes of work. `loopback`: this node is confined to this host, and so is whoever can ask it.

    BadTarget, or WorkRequired.
    """
    if not ip or ip == caller:
        if not caller:
            raise BadTarget("it is not known from which address the call comes")
        return caller
    try:
        parsed = ipaddress.ip_address(ip)
    except ValueError:
        raise BadTarget(f"{ip[:64]!r} is no IP address") from None
    if loopback and parsed.is_loopback:
        return str(parsed)
    # 203.0.113.0/24 and the like are for documentation, and so for simulated networks: not private to anybody.
    local = parsed.is_unspecified or parsed.is_loopback or parsed.is_link_local or private(parsed)
    # Reserved ones include IPv6 addresses that stand for an IPv4 one, whichever that is.
    if local or parsed.is_multicast or parsed.is_reserved:
        raise BadTarget(f"{ip} is not the address of the call ({caller}) and not a public one")
    if work < WORK:
        raise WorkRequired(f"{ip} is not the address of the call ({caller}): {WORK} bytes of work are expected")
    return str(parsed)


def worth_a_call(ip: str, port: int, caller: str, *, near: bool, loopback: bool) -> bool:
    """Whether an address that who is at `caller` gives as its own is called: TLS and a certificate are all it gets, so no
    work is demanded for a public one. A private one means the caller's machine only if that is `near`."""
    if port < FIRST_PORT:
        return False
    if ip == caller:
        return True
    parsed = ipaddress.ip_address(ip)
    if parsed.is_loopback:
        return loopback
    if parsed.is_unspecified or parsed.is_link_local or parsed.is_multicast or parsed.is_reserved:
        return False
    return near or not private(parsed)
