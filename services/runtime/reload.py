"""The configuration file changes while a service runs: what can be applied is, and the rest is said.

    service.reload.on("modules.edgeTunnel.relayNodes", apply)      # apply(config), when a key below it changed
    service.reload.warnings                                        # for GetStatus: what of the file is not in force

A file that is not valid changes nothing at all. A key that nobody here applies, and that this service reads, needs a
restart of the service; it runs on with the old value. Nothing else is touched.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from services.runtime import config as configuration
from services.runtime import files
from services.runtime.config import Config, ConfigError

PERIOD = 2.0
"""Seconds between two looks: one `stat`, which follows the symlinks of a ConfigMap volume."""

_EVERYBODY = ("discovery", "tunnel", "relay", "proxy")
_READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("zone", ("proxy",)),
    ("modules.edgeDiscovery", ("discovery",)),
    ("modules.edgeTunnel.relayNodes", ("discovery", "relay")),
    ("modules.edgeTunnel.advertiseAddress", ("discovery",)),
    ("modules.edgeTunnel.listenPort", ("discovery", "tunnel")),
    ("modules.edgeTunnel.psk", _EVERYBODY),
    ("modules.edgeTunnel.ca", _EVERYBODY),
    ("modules.edgeTunnel", ("tunnel",)),
    ("modules.edgeRelay", ("relay",)),
    ("modules.edgeProxy.udpIdleSeconds", ("tunnel", "proxy")),
    ("modules.edgeProxy", ("proxy",)),
    ("modules.edgeDNS", ("proxy",)),
    ("modules.edgeGateway", ("proxy",)),
)
"""Which services read what is below a key; the first that fits. What is not here all of them read."""

Apply = Callable[[Config], None]


class Reload:
    """Of one service. `look` reads the file again if it changed; `run` does so for ever."""

    def __init__(self, name: str, config: Config, log: logging.Logger) -> None:
        self._name = name
        self._log = log
        self._path = config.source
        self._stamp = files.stamp(self._path)
        self._running = dict(_leaves(config.model_dump(by_alias=True), ""))
        """Values in force, by dotted key."""
        self._applies: list[tuple[str, Apply]] = []
        self._refused = ""
        self._waiting: list[str] = []
        self._wanted: Config | None = None
        """What could not be applied as a whole: a file that it names may come a moment later."""

    @property
    def warnings(self) -> list[str]:
        """What of the file is not in force, one line each."""
        return ([self._refused] if self._refused else []) + self._waiting

    def on(self, key: str, apply: Apply) -> None:
        """`apply` takes over whatever changed at this key, or below it. What it raises is a warning, and it is tried again
        with every look."""
        self._applies.append((key, apply))

    async def run(self) -> None:
        """Follows the file for ever; returns at once when there is none."""
        while self._path is not None:
            await asyncio.sleep(PERIOD)
            try:
                self.look()
            except Exception as error:  # a fault of ours must not end what the service is there for
                self._log.error("configuration not followed", extra={"error": repr(error)}, exc_info=error)

    def look(self) -> None:
        """Applies the file if it changed since the last look, and what could not be applied then."""
        stamp = files.stamp(self._path)
        if stamp == self._stamp or self._path is None:
            if self._wanted is not None:
                self._take(self._wanted)
            return
        self._stamp = stamp
        try:
            config = configuration.load(self._path)
        except ConfigError as error:
            more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
            self._refused = f"the configuration from before stays in force: {error.problems[0]}{more}"
            self._log.error("configuration refused", extra={"file": str(self._path), "error": str(error)})
            return
        self._refused = ""
        self._take(config)

    def _take(self, config: Config) -> None:
        wanted = dict(_leaves(config.model_dump(by_alias=True), ""))
        changed = [key for key in wanted if wanted[key] != self._running.get(key)]
        before, self._waiting, self._wanted = self._waiting, [], None
        for prefix, apply in self._applies:
            mine = [key for key in changed if _below(key, prefix)]
            if not mine:
                continue
            changed = [key for key in changed if key not in mine]
            try:
                apply(config)
            except Exception as error:
                self._wanted = config
                self._waiting.append(f"{prefix} not applied: {error}")
                if self._waiting[-1] not in before:
                    self._log.error("configuration not applied", extra={"key": prefix, "error": str(error)})
                continue
            self._running.update((key, wanted[key]) for key in mine)
            self._log.info("configuration applied", extra={"key": ", ".join(mine)})
        for key in changed:
            if self._name in _readers(key):
                self._waiting.append(f"{key} has changed: needs a restart of the {self._name} service")
                if self._waiting[-1] not in before:
                    self._log.warning("configuration needs a restart", extra={"key": key})


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values; a list is one value."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, child in value.items():
        yield from _leaves(child, f"{key}.{name}" if key else name)


def _below(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _readers(key: str) -> tuple[str, ...]:
    return next((readers for prefix, readers in _READERS if _below(key, prefix)), _EVERYBODY)
