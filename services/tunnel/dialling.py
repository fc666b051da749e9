"""TCP connections to other nodes."""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import sys

from services.tunnel.errors import LinkFailed
from services.tunnel.linkio import tune

CONNECT_TIMEOUT = 5.0
"""Seconds for a TCP connection: two retransmissions of the SYN (1 s, 2 s) fit."""

COLD = 1
"""Segments with which TCP begins where the SYN had to be repeated (RFC 5681, section 3.1; Linux: twice); else it begins with 10 (RFC 6928).
Measured at 40 ms: streams that moved to such a link stood still for 50 to 70 ms, for 15 on another."""

_SND_CWND = slice(80, 84)  # of struct tcp_info, linux/tcp.h
_ANY = {int(socket.AF_INET): "0.0.0.0", int(socket.AF_INET6): "::"}
_FAR = {int(socket.AF_INET): "192.0.2.1", int(socket.AF_INET6): "2000::1"}
"""Addresses that no route but the default one leads to (RFC 5737; the first of IPv6's global unicast)."""


async def connect(
    ip: str,
    port: int,
    *,
    source: tuple[str, int],
    timeout: float = CONNECT_TIMEOUT,
    exact: bool = False,
    again: bool = True,
) -> socket.socket:
    """A tuned, non-blocking connection. `source`: local IP and port ("" and 0: any); unless `exact`, another port where
    that one is not free. `again`: from any port once more, where the first connection is cold. LinkFailed in one line."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        tune(sock)
        _bind(sock, family, source, exact=exact)
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(sock, (ip, port))
        if sock.getsockname() == sock.getpeername():
            raise LinkFailed(f"{ip}:{port} is this connection itself")  # TCP self-connect on loopback
        if again and not source[1] and cold(sock):
            with contextlib.suppress(LinkFailed):  # there is no way any more: better this one than none
                made = await connect(ip, port, source=source, timeout=timeout, again=False)
                sock.close()
                return made
        return sock
    except (OSError, TimeoutError) as error:
        sock.close()
        taken = isinstance(error, OSError) and error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE)
        if taken and source[1] and not exact:
            # The same four-tuple still lingers from the last connection: take any port.
            return await connect(ip, port, source=(source[0], 0), timeout=timeout)
        why = (
            os.strerror(error.errno)
            if isinstance(error, OSError) and error.errno
            else f"no answer within {timeout:g} s"
        )
        raise LinkFailed(f"{join(ip, port)}: {why}") from error
    except BaseException:
        sock.close()
        raise


def cold(sock: socket.socket) -> bool:
    """TCP begins slowly."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SND_CWND.stop)
    return int.from_bytes(info[_SND_CWND], sys.byteorder) <= COLD


def _share_port(sock: socket.socket) -> None:
    """The listen port is shared: by the listener, control connections to relays, and punched links."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _bind(sock: socket.socket, family: int, source: tuple[str, int], *, exact: bool) -> None:
    ip, port = source
    if ip and (":" in ip) != (family == socket.AF_INET6):
        return
    if not ip and not port:
        return
    if port:
        _share_port(sock)
        try:
            sock.bind((ip or _ANY[family], port))
            return
        except OSError as error:
            if exact or error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
    if ip:
        with contextlib.suppress(AttributeError, OSError):
            sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((ip, 0))


async def connect_from(source: tuple[str, int], address: tuple[str, int]) -> socket.socket:
    """A tuned, non-blocking connection from exactly this local IP ("": any) and port, which others may share.
    OSError; waits as long as the kernel does."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        tune(sock)
        _share_port(sock)
        sock.bind((source[0] or _ANY[family], source[1]))
        await asyncio.get_running_loop().sock_connect(sock, address)
        return sock
    except BaseException:
        sock.close()
        raise


def source_of(family: int, ip: str) -> str:
    """The local address of what this node sends to the Internet; "" when there is no way there, or `ip`, from which
    it dials, is of another family. Nothing is sent."""
    if ip:
        return ip if (":" in ip) == (family == socket.AF_INET6) else ""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((_FAR[family], 9))
        found = str(sock.getsockname()[0])
        return "" if ipaddress.ip_address(found).is_link_local else found
    return ""


def listener(ip: str, port: int, backlog: int = 1024) -> socket.socket:
    """A public listening socket: the given IP, or all of IPv4 and IPv6. OSError when it can't be."""
    if ip:
        family, address = (socket.AF_INET6 if ":" in ip else socket.AF_INET), ip
    else:
        family, address = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "")
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        _share_port(sock)
        if family == socket.AF_INET6 and not ip:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock
    except BaseException:
        sock.close()
        raise


def join(ip: str, port: int) -> str:
    """ "ip:port", with brackets for IPv6."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def name_of(address: tuple[object, ...]) -> str:
    """ "ip:port" of a socket address; IPv4 inside IPv6 is shown as IPv4."""
    ip = str(address[0]).split("%")[0]
    if ip.startswith("::ffff:"):
        ip = ip[7:]
    return join(ip, int(str(address[1])))


def split(name: str) -> tuple[str, int]:
    """The IP and the port of "ip:port"."""
    ip, _, port = name.rpartition(":")
    return ip.strip("[]"), int(port)


def is_private(ip: str) -> bool:
    """Not reachable across the Internet."""
    try:
        return ipaddress.ip_address(ip.split("%")[0]).is_private
    except ValueError:  # what others say of themselves may be anything; dialling it will fail
        return False
