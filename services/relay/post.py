"""The relay that this node is now: begins and ends to be one when the configuration says so, while the process runs."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

from services.runtime.config import Config
from services.runtime.process import Service, describe

from . import config
from .core.limits import Limits
from .core.role import Role
from .relay import Relay

DRAIN = 5.0
"""Seconds for circuits to move away."""
LIVE = (
    "modules.edgeTunnel.relayNodes",
    "modules.edgeRelay.mode",
    *(
        f"modules.edgeRelay.limits.{key}"
        for key in (
            "maxReservations",
            "maxCircuits",
            "maxCircuitsPerPeer",
            "maxBytesPerSecondPerPeer",
            "idleTimeoutSeconds",
        )
    ),
)
"""What of the configuration is applied while running."""


class Post:
    """Holds `relay`. It is another one after the node has ceased to be a relay, or become one."""

    def __init__(self, service: Service, changed: Callable[[], None]) -> None:
        self._service = service
        self._changed = changed
        self._wanted = service.config
        self._wake = asyncio.Event()
        self.relay = self._make(service.config)
        for key in LIVE:
            service.reload.on(key, self._reconfigure)

    def open(self) -> None:
        """Serve, if this node is a relay. OSError when the port cannot be had."""
        relay, own = self.relay, self._service.config
        port = own.modules.edge_relay.listen_port
        if relay.role.active:
            relay.open(own.listen_address, port)
        wanted = self._wanted.modules.edge_relay.limits.max_circuits
        if relay.role.active and relay.limits.max_circuits < wanted:
            self._service.log.warning(
                "fewer circuits than configured: raise the limit of open files",
                extra={"limit": relay.limits.max_circuits, "configured": wanted},
            )
        text = "relay serves" if relay.role.active else "relay idle"
        self._service.log.info(text, extra={"port": port, "reason": relay.role.reason})

    async def run(self) -> None:
        """Follows the configuration for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._apply(self._wanted)
            self._changed()

    async def drain(self, deadline: float = DRAIN) -> int:
        """See Relay.drain."""
        return await self.relay.drain(deadline)

    async def close(self) -> None:
        await self.relay.close()

    def _reconfigure(self, wanted: Config) -> None:
        self._wanted = wanted
        self._wake.set()

    async def _apply(self, wanted: Config) -> None:
        role = config.decide_role(wanted)
        if role.active == self.relay.serving:
            self.relay.adjust(role, _limits(wanted), config.alternatives(wanted))
            return
        if self.relay.serving:
            left = await self.relay.drain(DRAIN)
            self._service.log.info("relay stops", extra={"circuits_left": left, "reason": role.reason})
        await self.relay.close()
        self.relay = self._make(wanted)
        try:
            self.open()
        except OSError as error:
            why = f"{role.reason}, but its port cannot be had: {describe(error)}"
            self._service.log.error("relay cannot serve", extra={"error": why})
            self.relay.role = Role(False, role.configured, why, False, "PortTaken")

    def _make(self, wanted: Config) -> Relay:
        return Relay(
            self._service.identity,
            _limits(wanted),
            config.decide_role(wanted),
            alternatives=config.alternatives(wanted),
            changed=self._changed,
            log=self._service.log,
        )


def _limits(wanted: Config) -> Limits:
    return config.limits(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
