"""Addresses of this host, and word of their changes.

Changes come from the kernel (rtnetlink), so that waiting for them costs nothing; where netlink cannot be opened
the addresses are compared every few seconds.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

# Bridges and ends of container networks: nobody outside this host is there, and mDNS on them meets only itself.
CONTAINER = re.compile(r"docker|br-|cni|flannel|veth|virbr|podman|cali|vxlan\.|kube-|lxc|lxdbr|cilium")
# linux/rtnetlink.h: RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR.
GROUPS = 0x1 | 0x10 | 0x100
# linux/sockios.h and linux/if.h.
SIOCGIFFLAGS, IFF_UP, IFF_RUNNING = 0x8913, 0x1, 0x40
# An interface that comes up says so in several messages; they are taken as one. Seconds.
SETTLE = 0.25
# Between two looks where the kernel cannot tell. Seconds.
POLL = 5.0

_log = logging.getLogger("causeway.discovery")


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface with the addresses others may use, best first.

    link_local: its IPv6 addresses of that kind, when it has no other address. They mean something on its own network
    only, where a reader adds its own interface; so they are announced there, and are not in the node's record.
    """

    name: str
    index: int
    ips: tuple[str, ...]
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    link_local: tuple[str, ...] = ()

    def near(self, ip: str) -> bool:
        """Whether an address is on one of its own networks."""
        return any(ipaddress.ip_address(ip) in network for network in self.networks)


def usable(listen_address: str) -> tuple[Interface, ...]:
    """Interfaces that are up, without loopback and container bridges; with a `listen_address`, only that one."""
    import ifaddr

    found: list[Interface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for adapter in ifaddr.get_adapters():
            lengths = {ip.ip if isinstance(ip.ip, str) else ip.ip[0]: ip.network_prefix for ip in adapter.ips}
            bare: list[str] = []
            if listen_address:
                wanted = ipaddress.ip_address(listen_address)
                ips = [ip for ip in lengths if ipaddress.ip_address(ip) == wanted]
            elif CONTAINER.match(adapter.name) or not _up(adapter.name, probe):
                continue
            else:
                ips = sorted(filter(_dialable, lengths), key=_order)
                bare = [] if ips else sorted(filter(_link_local, lengths))
            if ips or bare:
                networks = tuple(ipaddress.ip_network(f"{ip}/{lengths[ip]}", strict=False) for ip in (*ips, *bare))
                found.append(Interface(adapter.name, adapter.index or 0, tuple(ips), networks, tuple(bare)))
    if listen_address and not found and ipaddress.ip_address(listen_address).is_loopback:
        # All of 127.0.0.0/8 is on lo, though only 127.0.0.1 is listed.
        found.append(Interface("lo", 1, (listen_address,)))
    return tuple(sorted(found, key=lambda it: (_order((it.ips or it.link_local)[0]), it.index)))


def addresses(interfaces: tuple[Interface, ...]) -> tuple[str, ...]:
    """All addresses, the best of each interface first."""
    ips = [ip for interface in interfaces for ip in interface.ips]
    return tuple(dict.fromkeys(sorted(ips, key=_order)))


async def changes(listen_address: str) -> AsyncIterator[tuple[Interface, ...]]:
    """The interfaces now, and again whenever they have changed."""
    known = usable(listen_address)
    yield known
    async for _ in _hints():
        found = usable(listen_address)
        if found != known:
            known = found
            yield known


async def _hints() -> AsyncIterator[None]:
    """Something about interfaces may have changed."""
    try:
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        listener.bind((0, GROUPS))
    except OSError as error:
        _log.info("no netlink here, addresses are polled", extra={"error": str(error), "seconds": POLL})
        while True:
            await asyncio.sleep(POLL)
            yield
    loop = asyncio.get_running_loop()
    with listener:
        while True:
            try:
                await loop.sock_recv(listener, 65536)
            except OSError:
                pass  # ENOBUFS: messages were lost, so look
            await asyncio.sleep(SETTLE)
            try:
                while True:
                    listener.recv(65536)
            except OSError:
                pass
            yield


def _up(name: str, probe: socket.socket) -> bool:
    """Asked of the kernel, not of /sys, which in a container may show another network."""
    request = struct.pack("16sH14x", name.encode()[:15], 0)  # struct ifreq
    try:
        flags: int = struct.unpack_from("16xH", fcntl.ioctl(probe, SIOCGIFFLAGS, request))[0]
    except OSError:
        return False
    return flags & IFF_UP != 0 and flags & IFF_RUNNING != 0


def _link_local(ip: str) -> bool:
    parsed = ipaddress.ip_address(ip.partition("%")[0])
    return parsed.version == 6 and parsed.is_link_local


def _dialable(ip: str) -> bool:
    parsed = ipaddress.ip_address(ip.partition("%")[0])
    # A link-local IPv6 address means nothing without the reader's own interface.
    return not (parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified or _link_local(ip))


def _order(ip: str) -> tuple[bool, int]:
    """Self-assigned addresses last, IPv4 before IPv6."""
    parsed = ipaddress.ip_address(ip)
    return parsed.is_link_local, parsed.version


def speakers(interfaces: tuple[Interface, ...]) -> tuple[list[str], list[int]]:
    """What zeroconf wants: for IPv4 an address of each interface, for IPv6 the interface's index."""
    v4 = [
        next(ip for ip in interface.ips if ":" not in ip)
        for interface in interfaces
        if any(":" not in ip for ip in interface.ips)
    ]
    v6 = [it.index for it in interfaces if it.link_local or any(":" in ip for ip in it.ips)]
    return v4, v6
