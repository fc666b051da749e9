"""The public port: accepts, reads the first bytes, and hands over who said what they are."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable
from itertools import count
from math import inf
from time import monotonic

from services.runtime.core.crowd import Crowd, source_of
from services.runtime.sockets import reset

from .core.greeting import GREETING_LENGTH, Kind, classify, proof_token, token
from .core.limits import Limits

BACKLOG = 1024
ACCEPT_BATCH = 64
"""Connections accepted in one turn of the loop; circuits and control connections come in between."""
ACCEPT_PAUSE = 0.2
"""Seconds without accepting when the process has no descriptor left."""
EPISODE = 10.0
"""Seconds: what follows the last failure sooner is the same lack of descriptors, and is not told again."""


def open_listener(listen_address: str, port: int) -> socket.socket:
    """A listening socket on `listen_address`, or on all addresses (both families where the host has IPv6).

    OSError tells the address that could not be had.
    """
    if listen_address:
        family = socket.AF_INET6 if ":" in listen_address else socket.AF_INET
        return _listen(family, listen_address, port)
    try:
        return _listen(socket.AF_INET6, "::", port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise
        return _listen(socket.AF_INET, "0.0.0.0", port)


def _listen(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"{error.strerror}: relay port {port} on {host}") from None
    return sock


def endpoint(address: tuple[str, int]) -> tuple[str, str]:
    """(IP, "ip:port") of what accept told; an IPv4 client of an IPv6 socket is shown as IPv4."""
    ip, port = address[0].removeprefix("::ffff:") if "." in address[0] else address[0], address[1]
    return ip, f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class Newcomer:
    """A connection that has not yet said who it is. `close` ends it, whatever it has become by then."""

    __slots__ = ("close", "head", "key", "observed", "sock")

    def __init__(self, key: int, sock: socket.socket, observed: str, close: Callable[[], None]) -> None:
        self.key = key
        self.sock = sock
        self.observed = observed
        self.head = b""
        self.close = close


class PublicPort:
    """Owns connections until they are handed over: legs by `on_leg(key, token, sock)`, dials back by
    `on_proof(token, sock)`, control connections by `on_control(newcomer)`. The latter stay half-open, and may be closed here, until `settle`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        limits: Limits,
        *,
        on_control: Callable[[Newcomer], None],
        on_leg: Callable[[int, bytes, socket.socket], None],
        on_proof: Callable[[bytes, socket.socket], None],
        log: logging.Logger,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._on_control = on_control
        self._on_leg = on_leg
        self._on_proof = on_proof
        self._log = log
        self._keys = count(1)
        self._half_open = Crowd[int](limits.max_half_open, limits.max_half_open_per_source, limits.greeting_timeout)
        self._newcomers: dict[int, Newcomer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._short_at = -inf
        """When the last connection could not be accepted for want of room."""
        self.refused: Counter[str] = Counter()
        """Connections closed here by reason."""
        loop.add_reader(listener.fileno(), self._accept)

    def __len__(self) -> int:
        return len(self._half_open)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def adjust(self, limits: Limits) -> None:
        """Other bounds for those who have not yet said who they are."""
        for key in self._half_open.adjust(limits.max_half_open, limits.max_half_open_per_source):
            self._dismiss(key, "half-open")

    def settle(self, key: int) -> None:
        """A control connection is greeted, or gone."""
        self._half_open.leave(key)
        self._newcomers.pop(key, None)

    def close(self) -> None:
        """Stop listening; close those that have not been handed over. May be repeated."""
        if self._listener.fileno() < 0:
            return
        for timer in (self._timer, self._pause):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for newcomer in list(self._newcomers.values()):
            self.settle(newcomer.key)
            newcomer.close()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._wait_for_room(error)
                    return
                continue  # that connection broke before it was accepted (accept(2))
            self._enter(sock, address)

    def _enter(self, sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setblocking(False)
        ip, observed = endpoint(address)
        key = next(self._keys)
        evicted = self._half_open.enter(key, source_of(ip), monotonic())
        if evicted is not None:
            self._dismiss(evicted, "half-open")
        newcomer = Newcomer(key, sock, observed, lambda: None)
        newcomer.close = lambda: self._drop(sock)
        self._newcomers[key] = newcomer
        self._loop.add_reader(sock.fileno(), self._read, newcomer)
        if self._timer is None:
            self._arm()

    def _read(self, newcomer: Newcomer) -> None:
        """More of the greeting. Not a byte more than the greeting is read: the rest belongs to the other leg."""
        sock = newcomer.sock
        try:
            data = sock.recv(GREETING_LENGTH - len(newcomer.head))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._dismiss(newcomer.key, "hung-up")
            return
        newcomer.head += data
        kind = classify(newcomer.head)
        if kind is Kind.MORE:
            return
        if kind is Kind.JUNK:
            self._dismiss(newcomer.key, "junk")
            return
        self._loop.remove_reader(sock.fileno())
        if kind is Kind.CONTROL:
            self._on_control(newcomer)
            return
        self.settle(newcomer.key)
        if kind is Kind.PROOF:
            self._on_proof(proof_token(newcomer.head), sock)
        else:
            self._on_leg(newcomer.key, token(newcomer.head), sock)

    def _dismiss(self, key: int, reason: str) -> None:
        newcomer = self._newcomers.get(key)
        self.settle(key)
        if newcomer is not None:
            self.refused[reason] += 1
            newcomer.close()

    def _drop(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(sock.fileno())
        reset(sock)

    def _arm(self) -> None:
        due = self._half_open.next_expiry
        self._timer = self._loop.call_at(due, self._expire) if due is not None else None

    def _expire(self) -> None:
        for key in self._half_open.expire(monotonic()):
            self._dismiss(key, "too-slow")
        self._arm()

    def _wait_for_room(self, error: OSError) -> None:
        now = monotonic()
        if now - self._short_at > EPISODE:
            self._log.error("cannot accept; raise the limit of open files", extra={"error": str(error)})
        self._short_at = now
        self.refused["no-descriptor"] += 1
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(ACCEPT_PAUSE, self._loop.add_reader, self._listener, self._accept)
