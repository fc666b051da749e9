"""The path between a and b, as a's tunnel tells it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import grpc

from lab.node import Node
from protos import tunnel_pb2

INTERVAL = 0.2  # seconds between two questions
NO_PATH = "no path"


class Watch:
    """Follows the session of one node with another. A context manager that owns its task."""

    def __init__(self, node: Node, peer: str) -> None:
        self._node = node
        self._peer = peer
        self.links: list[tunnel_pb2.Link] = []
        self._active: tunnel_pb2.Link | None = None
        self.paths: list[tuple[float, str]] = []
        """Path in use from this monotonic time on."""

    async def __aenter__(self) -> Watch:
        await self.look()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def active(self) -> tunnel_pb2.Link | None:
        """The link in use; while all are in doubt, the one that was."""
        return self._active

    @property
    def relay(self) -> str:
        """Name of the relay in use; empty on a direct path or without any."""
        return self.active.relay if self.active else ""

    @property
    def path(self) -> str:
        """The path in use, for people."""
        link = self.active
        if link is None:
            return NO_PATH
        if link.kind == tunnel_pb2.PATH_KIND_RELAYED:
            return f"{self._node.name} → {link.relay} → {self._peer}"
        how = "punched" if link.kind == tunnel_pb2.PATH_KIND_PUNCHED else "direct"
        return f"{self._node.name} → {self._peer} ({how})"

    @property
    def rtt(self) -> float:
        """Smoothed round trip of the path in use, in seconds; 0 without one."""
        return self.active.rtt.ToNanoseconds() / 1e9 if self.active else 0.0

    def standby(self, relay: str) -> bool:
        """Whether a link over this relay waits to take over."""
        return any(it.relay == relay and it.state == "standby" for it in self.links)

    async def look(self) -> None:
        """Asks once, now."""
        self.links = await self._node.links(self._peer)
        active = next((it for it in self.links if it.state == "active"), None)
        before = self._active.relay if self._active else None
        self._active = active or next((it for it in self.links if it.relay == before), None)
        if self.active is not None and (not self.paths or self.paths[-1][1] != self.path):
            self.paths.append((time.monotonic(), self.path))

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Waits until a condition on this object holds; False when it does not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.look()
            if condition():
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(INTERVAL / 10)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.look()
            await asyncio.sleep(INTERVAL)
