"""Relays that the configuration names, and this node's own advertised addresses.

IP literals count at once. DNS names are looked up in the background and again every few minutes; the last
answer stays while the name server does not answer.
"""

from __future__ import annotations

import asyncio
import random

from services.runtime.address import is_ip

from ..config import Settings
from ..core.backoff import Backoff
from ..core.registry import Named
from ..directory import Directory
from ..resolver import Resolver

# Seconds between two lookups of names that resolved.
REFRESH = 300.0


class StaticSource:
    """Keeps the CONFIG claims and the ADVERTISED addresses."""

    def __init__(self, directory: Directory, resolver: Resolver, rng: random.Random) -> None:
        self._directory = directory
        self._resolver = resolver
        self._backoff = Backoff(1.0, 60.0, rng)
        self._asked: set[str] = set()
        self._resolved: dict[str, tuple[str, ...]] = {}
        self.apply()

    def apply(self) -> None:
        """Put what is known now into the registry and the own record."""
        settings = self._directory.settings
        for name in self._asked.difference(_names(settings)):
            self._resolved.pop(name, None)
            self._directory.board.clear(_warning(name))
        self._directory.registry.configure(
            [Named(relay.node_name, relay.rank, self._ips(relay.hosts), relay.relay_port) for relay in settings.relays]
        )
        self._directory.own.advertise(self._ips(settings.advertise))
        self._directory.own_changed()
        others = [relay for relay in settings.relays if relay.node_name != settings.node_name]
        self._directory.board.say("static", f"{len(others)} relay nodes configured")

    async def run(self) -> None:
        """Looks names up for ever."""
        bell = self._directory.wake_bell
        while True:
            seen = bell.count
            names = _names(self._directory.settings)
            self._asked = set(names)
            results = await asyncio.gather(*map(self._resolve, names))
            self.apply()
            if all(results):
                self._backoff.reset()
            await bell.wait(seen, REFRESH if all(results) else self._backoff.next())

    async def _resolve(self, name: str) -> bool:
        key = _warning(name)
        try:
            self._resolved[name] = await self._resolver.resolve(name)
        except OSError as error:
            text = f"{name} in advertiseAddress does not resolve ({error}); write an IP address, or repair DNS"
            if self._directory.board.warn(key, text):
                self._directory.log.warning(text)
            return False
        self._directory.board.clear(key)
        return True

    def _ips(self, hosts: tuple[str, ...]) -> tuple[str, ...]:
        ips: list[str] = []
        for host in hosts:
            ips.extend((host,) if is_ip(host) else self._resolved.get(host, ()))
        return tuple(dict.fromkeys(ips))


def _warning(name: str) -> str:
    return f"dns {name}"


def _names(settings: Settings) -> list[str]:
    hosts = [*settings.advertise, *(host for relay in settings.relays for host in relay.hosts)]
    return list(dict.fromkeys(host for host in hosts if not is_ip(host)))
