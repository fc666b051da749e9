"""Word of changed addresses and routes, from the kernel (rtnetlink): waiting for it costs nothing.

Where netlink cannot be opened the tunnel does without: then a path that an address change killed is noticed by its
silence, in a second or two. pyroute2 would do this and very much more; the few messages needed are in core/netlink.py.
"""

import asyncio
import contextlib
import fcntl
import itertools
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable

from services.tunnel.core import netlink
from services.tunnel.core.netlink import NO_WAY, Way
from services.tunnel.core.outlook import Outlook, Pace

log = logging.getLogger("causeway.tunnel")

ABROAD = ("240.0.0.1", "2000::1")
"""Destinations that nobody has (RFC 1112 §4; not allocated): the way there is the way to the internet. Nothing is sent.
Those for documentation would not do: test networks use them."""
MAX_DESTINATIONS = 64
ANSWER_TIMEOUT = 1.0
"""Seconds; the kernel answers before `send` returns."""
RETRY = 30.0
"""Seconds until netlink is tried again where it failed."""
BUFFER = 65536
LOOKS = 8
"""Attempts to read a list that does not change meanwhile."""
SIOCGIFFLAGS, IFF_UP, IFF_RUNNING = 0x8913, 0x1, 0x40
"""linux/sockios.h and linux/if.h."""

Changed = Callable[[frozenset[str]], None]
"""Called after a change, with the addresses that are gone."""


class NetWatch:
    """Compares what the host sees of the network before and after the kernel said something."""

    def __init__(self, destinations: Callable[[], Iterable[str]], changed: Changed) -> None:
        """`destinations`: the far ends, as IP addresses, to which the way matters."""
        self._destinations = destinations
        self._changed = changed
        self._numbers = itertools.count(1)
        self._complained = False
        self._known: Outlook | None = None

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self._watch()
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    log.info("no word of changed addresses from the kernel", extra={"error": str(error)})
            await asyncio.sleep(RETRY)

    async def _watch(self) -> None:
        loop, pace = asyncio.get_running_loop(), Pace()
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        with listener, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
            listener.bind((0, netlink.GROUPS))
            asking.settimeout(ANSWER_TIMEOUT)
            self._compare(self._look(asking), pace)
            while True:
                with contextlib.suppress(OSError):  # ENOBUFS: messages were lost, so something changed
                    await loop.sock_recv(listener, BUFFER)
                await asyncio.sleep(pace.wait(time.monotonic()))
                with contextlib.suppress(OSError):
                    while True:
                        listener.recv(BUFFER)
                self._compare(self._look(asking), pace)

    def _compare(self, now: Outlook, pace: Pace) -> None:
        before, self._known = self._known, now
        if before is not None and now.differs(before):
            pace.acted(time.monotonic())
            self._changed(now.lost(before))

    def _look(self, asking: socket.socket) -> Outlook:
        for _ in range(LOOKS):
            try:
                return self._look_once(asking)
            except netlink.Interrupted:  # what is left of the answer has an old number
                pass
        raise OSError("addresses change faster than they can be read")

    def _look_once(self, asking: socket.socket) -> Outlook:
        number = next(self._numbers)
        asking.send(netlink.ask_addresses(number))
        found: list[tuple[str, str]] = []
        names: dict[int, str] = {}
        for kind, body in self._answer(asking, number):
            pair = netlink.address(kind, body)
            if pair is not None:
                interface, ip = pair
                if interface not in names:
                    names[interface] = _name(interface)
                found.append((names[interface], ip))
        destinations = dict.fromkeys([*ABROAD, *itertools.islice(self._destinations(), MAX_DESTINATIONS)])
        ways = {to: self._way(asking, to) for to in destinations}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return Outlook.of(found, {name for name in names.values() if _runs(name, probe)}, ways)

    def _way(self, asking: socket.socket, destination: str) -> Way:
        number = next(self._numbers)
        try:
            asking.send(netlink.ask_way(number, destination))
        except ValueError:  # an address with a zone, or none
            return NO_WAY
        while True:
            for kind, sequence, body in netlink.messages(asking.recv(BUFFER)):
                if sequence == number:
                    return netlink.way(kind, body)

    def _answer(self, asking: socket.socket, number: int) -> Iterable[tuple[int, bytes]]:
        while True:
            for kind, sequence, body in netlink.messages(asking.recv(BUFFER)):
                if sequence != number:
                    continue
                if netlink.finished(kind):
                    return
                yield kind, body


def _name(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError:  # gone since
        return ""


def _runs(name: str, probe: socket.socket) -> bool:
    """Up, with a carrier."""
    request = struct.pack("16sH14x", name.encode()[:15], 0)  # struct ifreq
    try:
        flags: int = struct.unpack_from("16xH", fcntl.ioctl(probe, SIOCGIFFLAGS, request))[0]
    except OSError:
        return False
    return flags & IFF_UP != 0 and flags & IFF_RUNNING != 0
