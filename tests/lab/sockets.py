"""Sockets in simulated networks, for tests that ask what a network does to packets."""

import socket

from lab.network import Host

PATIENCE = 10.0  # seconds until a packet that must arrive counts as missing


def udp(host: Host, port: int = 0) -> socket.socket:
    """A bound datagram socket."""
    sock = host.namespace.socket(socket.SOCK_DGRAM)
    sock.bind((host.address, port))
    sock.settimeout(PATIENCE)
    return sock


def udp6(host: Host, port: int = 0) -> socket.socket:
    """A bound IPv6 datagram socket."""
    sock = host.namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    sock.bind((host.address6, port))
    sock.settimeout(PATIENCE)
    return sock


def tcp(host: Host, port: int = 0) -> socket.socket:
    """A bound stream socket that shares its port with others."""
    sock = host.namespace.socket(socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host.address, port))
    sock.settimeout(PATIENCE)
    return sock


def listener(host: Host, port: int = 0) -> socket.socket:
    """A listening stream socket."""
    sock = tcp(host, port)
    sock.listen()
    return sock


def seen_from(sender: socket.socket, receiver: socket.socket) -> tuple[str, int]:
    """Sends a datagram and returns the source that the receiver sees."""
    sender.sendto(b"hello", receiver.getsockname())
    _, source = receiver.recvfrom(100)
    return (source[0], source[1])


def until(sock: socket.socket, last: bytes) -> list[bytes]:
    """Datagrams that arrive up to and including `last`."""
    got = []
    while not got or got[-1] != last:
        got.append(sock.recv(100))
    return got
