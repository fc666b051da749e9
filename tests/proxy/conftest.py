"""One node's proxy with its neighbours."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.proxy.driver import Proxy
from services.proxy.servicer import Status
from services.runtime import config
from services.runtime.identity import Identity
from services.runtime.process import Service
from tests.patience import until
from tests.proxy.neighbours import Discovery, Tunnel


@dataclass
class Node:
    """The proxy of node "n", in this process; its neighbours keep the contracts of the real ones."""

    service: Service
    tunnel: Tunnel
    discovery: Discovery
    proxy: Proxy | None = None
    _task: "asyncio.Task[None] | None" = None
    _errors: list[BaseException] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.service.config.run_dir

    async def start(self) -> None:
        self.proxy = Proxy(self.service)
        self._task = asyncio.create_task(self.proxy.run())

    async def stop(self) -> None:
        assert self._task is not None
        if not self._task.done():
            self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            pass
        self._task = None

    def status(self) -> Status:
        assert self.proxy is not None
        return self.proxy.status()

    async def listening(self, *addresses: str) -> None:
        """Waits until exactly these are listened on."""
        await until(
            lambda: {str(row.spot) for row in self.status().rows if not row.error} == set(addresses),
            f"listening on {addresses}",
        )

    async def settled(self) -> None:
        """Waits until offers arrive and clients can be handed over."""
        await until(lambda: self.tunnel.listeners and not self.status().warnings, "attached, services known")


def make(path: Path) -> Node:
    """A node from its configuration file; nothing runs yet."""
    loaded = config.load(path)
    loaded.run_dir.mkdir(parents=True)
    own = Service("proxy", loaded, Identity.load(loaded), logging.getLogger("causeway.proxy"), asyncio.Event())
    # The other calls of these services are none of the proxy's business.
    return Node(own, Tunnel(loaded.run_dir), Discovery(loaded.run_dir))  # type: ignore[abstract]


@pytest.fixture
async def node(node_config: Any) -> AsyncIterator[Node]:
    """All is up; there are no services yet, and one allowed target."""
    own = make(node_config("n", modules={"edgeProxy": {"allowedTargets": ["localhost:*"]}}))
    await own.tunnel.start()
    await own.discovery.start()
    await own.start()
    yield own
    await own.stop()
    await own.discovery.stop()
    await own.tunnel.stop()


@pytest.fixture
async def ingress(node_config: Any, loopback_ip: Callable[[], str], tmp_path: Path) -> AsyncIterator[Any]:
    """A node with an ingress gateway on one loopback address."""
    from tests.proxy.ingress import Ingress

    ip = loopback_ip()
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    section = {"enable": True, "nic": "lo", "includeIP": ip, "secretsDir": str(secrets)}
    own = make(node_config("n", modules={"edgeGateway": section}))
    await own.tunnel.start()
    await own.discovery.start()
    await own.start()
    made = Ingress(own, ip, loopback_ip, secrets)
    yield made
    for backend in made.backends.values():
        await backend.stop()
    await own.stop()
    await own.discovery.stop()
    await own.tunnel.stop()
