"""The addresses of a network interface."""

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915  # netdevice(7)
_GLOBAL = 0x00  # scope in /proc/net/if_inet6


def addresses(name: str) -> tuple[str, str]:
    """First IPv4 and first global IPv6 address; "" where there is none, or no such interface."""
    return _ipv4(name), _ipv6(name)


def _ipv4(name: str) -> str:
    request = struct.pack("16s24x", name.encode()[:15])  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntop(socket.AF_INET, answer[20:24])


def _ipv6(name: str) -> str:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        digits, _, _, scope, _, interface = line.split()
        if interface == name and int(scope, 16) == _GLOBAL:
            return str(ipaddress.IPv6Address(int(digits, 16)))
    return ""
