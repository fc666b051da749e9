"""The relay that this node is now: begins and ends to be one while the process runs, when the configuration says so or
what other nodes find."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from services.runtime.config import Config
from services.runtime.process import Service, describe
from services.runtime.sockets import reset

from . import config
from .core.limits import Limits
from .core.report import Report
from .core.role import Role
from .listener import Newcomer, PublicPort, open_listener
from .memory import Memory
from .peers import Discovery
from .probing import Prober
from .relay import Relay

DRAIN = 5.0
"""Seconds for circuits to move away."""
LOOK = 5.0
"""Seconds after which the role is judged again in any case: uptime grows, and a port that was taken may be free."""
LIVE = ("modules.edgeTunnel.relayNodes", "modules.edgeRelay.mode", "modules.edgeRelay.limits")
"""What of the configuration is applied while running."""


class Post:
    """Holds `relay`. It is another one after the node has ceased to be a relay, or become one."""

    def __init__(self, service: Service, discovery: Discovery, changed: Callable[[], None]) -> None:
        self._service = service
        self._changed = changed
        self._wanted = service.config
        self._wake = asyncio.Event()
        self._began = monotonic()
        self._epoch = time.time() - monotonic()
        self._told: list[tuple[str, bool, str]] = []
        self._ear: PublicPort | None = None
        relay = service.config.modules.edge_relay
        self._memory = Memory(service.config.state_dir / "reachability.json", service.log)
        self._prober = Prober(
            discovery,
            self._memory,
            relay.listen_port,
            relay.probe_interval_seconds,
            changed=self._wake.set,
            faithful=lambda: not self.relay.role.configured,
            log=service.log,
        )
        self.relay = self._make(service.config)
        for key in LIVE:
            service.reload.on(key, self._reconfigure)

    def open(self) -> None:
        """Serve, if this node is a relay. OSError when the port cannot be had."""
        self._prober.want(self._wanted.modules.edge_relay.mode != "off")
        self._serve()
        self._tell()
        relay = self.relay
        wanted = self._wanted.modules.edge_relay.limits.max_circuits
        if relay.serving and relay.limits.max_circuits < wanted:
            self._service.log.warning(
                "fewer circuits than configured: raise the limit of open files",
                extra={"limit": relay.limits.max_circuits, "configured": wanted},
            )

    async def run(self) -> None:
        """Follows the configuration, and what other nodes find, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._prober.run())
            while True:
                try:
                    async with asyncio.timeout(LOOK):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                self._memory.retry()
                await self._apply(self._wanted)
                self._changed()

    async def drain(self, deadline: float = DRAIN) -> int:
        """See Relay.drain."""
        return await self.relay.drain(deadline)

    async def close(self) -> None:
        self._listen(False)
        await self.relay.close()

    @property
    def warnings(self) -> list[str]:
        """What of the state could not be kept, one line each."""
        return [self._memory.problem] if self._memory.problem else []

    def report(self) -> Report:
        """For discovery: with the claim, what others have found of this node."""
        found = self._prober.found
        up_since = round(found.since + self._epoch) if found.since else 0
        return replace(self.relay.report(), proven=tuple(found.up()), throughput=found.throughput, up_since=up_since)

    def _reconfigure(self, wanted: Config) -> None:
        self._wanted = wanted
        self._wake.set()

    async def _apply(self, wanted: Config) -> None:
        self._prober.want(wanted.modules.edge_relay.mode != "off")
        role = self._decide(wanted)
        if role.active == self.relay.serving:
            limits = _limits(wanted)
            self.relay.adjust(role, limits, config.alternatives(wanted))
            if self._ear is not None:
                self._ear.adjust(limits)
            self._listen_if_idle()
            self._tell()
            return
        if self.relay.serving:
            self._service.log.info("relay gives up its role", extra={"reason": role.reason})
            left = await self.relay.drain(DRAIN)
            self._service.log.info("relay stops", extra={"circuits_left": left, "reason": role.reason})
        await self.relay.close()
        self.relay = self._make(wanted)
        try:
            self._serve()
        except OSError as error:
            why = f"{role.reason}, but its port cannot be had: {describe(error)}"
            self.relay.role = replace(role, active=False, reason=why, capable=False, condition="PortTaken")
        self._tell()

    def _serve(self) -> None:
        relay, own = self.relay, self._service.config
        if relay.role.active:
            self._listen(False)
            relay.open(own.listen_address, own.modules.edge_relay.listen_port)
        self._listen_if_idle()

    def _listen_if_idle(self) -> None:
        """Also who is no relay is dialled back: at its port, where nothing else is served then."""
        try:
            self._listen(not self.relay.serving and self._wanted.modules.edge_relay.mode != "off")
        except OSError as error:
            why = f"{self.relay.role.reason}; and its port cannot be had: {describe(error)}"
            self.relay.role = replace(self.relay.role, reason=why, condition="PortTaken")

    def _listen(self, wanted: bool) -> None:
        if self._ear is not None and not wanted:
            self._ear.close()
            self._ear = None
        elif self._ear is None and wanted:
            own = self._service.config
            listener = open_listener(own.listen_address, own.modules.edge_relay.listen_port)
            self._ear = PublicPort(
                asyncio.get_running_loop(),
                listener,
                self.relay.limits,
                on_control=self._turn_away,
                on_leg=lambda key, token, sock: reset(sock),
                on_proof=self._prober.proofs.receive,
                log=self._service.log,
            )

    def _turn_away(self, newcomer: Newcomer) -> None:
        if self._ear is not None:
            self._ear.settle(newcomer.key)
        newcomer.close()

    def _tell(self) -> None:
        """The log hears of each change of a condition once."""
        role = self.relay.role
        told = [(it.type, it.status, it.reason) for it in role.conditions]
        if told != self._told:
            text = "relay serves" if self.relay.serving else "relay idle"
            extra = {
                "port": self._service.config.modules.edge_relay.listen_port,
                "conditions": ", ".join(f"{it.type}={it.status} ({it.reason})" for it in role.conditions),
                "reason": role.reason,
            }
            level = logging.ERROR if role.condition == "PortTaken" and not self.relay.serving else logging.INFO
            self._service.log.log(level, text, extra=extra)
        self._told = told

    def _decide(self, wanted: Config) -> Role:
        return config.decide_role(wanted, self._prober.found, monotonic() - self._began)

    def _make(self, wanted: Config) -> Relay:
        return Relay(
            self._service.identity,
            _limits(wanted),
            self._decide(wanted),
            alternatives=config.alternatives(wanted),
            changed=self._changed,
            on_proof=self._prober.proofs.receive,
            log=self._service.log,
        )


def _limits(wanted: Config) -> Limits:
    return config.limits(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
