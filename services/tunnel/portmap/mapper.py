"""Keeps the listen port mapped for as long as the tunnel runs, where there is a gateway that does it."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.runtime import files
from services.tunnel.core import natkind, pcp
from services.tunnel.core.natkind import Endpoint
from services.tunnel.portmap import gateway as gateways
from services.tunnel.portmap.gateway import Gateway
from services.tunnel.portmap.lease import Client, Lease, MappingFailed
from services.tunnel.portmap.pmp import NatPmp, Pcp
from services.tunnel.portmap.upnp import Upnp

log = logging.getLogger("causeway.tunnel")

LOOK_EVERY = 60.0
"""Seconds between looks at whether the gateway is the same and still has the mapping."""
RETRY = 900.0
"""Seconds until a network without a willing gateway is asked again; a change of network is asked at once."""
UNMAP_TIMEOUT = 1.5
"""Seconds to give the mapping back at the end; it ends by itself otherwise."""
NONCE_FILE = "portmap-nonce"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """What there is: `external` None where nothing could be mapped, `why` then says so."""

    protocol: str = ""
    gateway: str = ""
    external: Endpoint | None = None
    why: str = ""


class Mapper:
    """Runs beside the tunnel; nothing waits for it. `on_change` is called when the mapped address is another."""

    def __init__(
        self,
        state_dir: Path,
        listen_address: str,
        port: int,
        on_change: Callable[[], None],
        *,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.mapping = PortMapping(why="not asked for")
        self._state_dir = state_dir
        self._listen_address = listen_address
        self._port = port
        self._on_change = on_change
        self._look_every = look_every
        self._news = asyncio.Event()
        self._client: Client | None = None

    def network_changed(self) -> None:
        """Look again now."""
        self._news.set()

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                gateway = gateways.find(self._listen_address)
                lease = await self._acquire(gateway) if gateway is not None else None
                if gateway is None:
                    self._say(PortMapping(why="this node is behind no IPv4 gateway, or has a public address itself"))
                if gateway is not None and lease is not None:
                    await self._keep(gateway, lease)
                else:
                    # Without a gateway, look for one as often as for a lost one: that costs nothing.
                    await self._pause(RETRY if gateway is not None else self._look_every, gateway)
        finally:
            await self._give_back()

    async def _acquire(self, gateway: Gateway) -> Lease | None:
        refusals = []
        for client in self._clients(gateway):
            try:
                lease = await client.map(self._port, None)
                if lease.lifetime < 1:
                    raise MappingFailed("the gateway grants no time")
                if natkind.is_inside(lease.external[0]):
                    with contextlib.suppress(MappingFailed):
                        await client.unmap(self._port)
                    where = "a carrier's NAT" if natkind.is_carrier(lease.external[0]) else "another NAT"
                    text = f"the gateway's own address {lease.external[0]} is not public: it is behind {where}"
                    raise MappingFailed(text)
            except MappingFailed as error:
                refusals.append(f"{client.name}: {error}")
                await client.close()
                continue
            except BaseException:
                await client.close()
                raise
            self._client = client
            self._took(gateway, client, lease)
            return lease
        self._say(PortMapping(gateway=gateway.ip, why="; ".join(refusals) or "no way to the gateway"))
        return None

    def _clients(self, gateway: Gateway) -> Iterator[Client]:
        with contextlib.suppress(OSError):
            yield Pcp(gateway, self._nonce())
            yield NatPmp(gateway)
            yield Upnp(gateway)

    async def _keep(self, gateway: Gateway, lease: Lease) -> None:
        """Until the lease is lost or the gateway is another."""
        client = self._client
        assert client is not None
        granted = time.monotonic()
        while gateways.find(self._listen_address) == gateway:
            age = time.monotonic() - granted
            if age >= lease.lifetime:
                log.info("port mapping lost", extra={"gateway": gateway.ip})
                break
            if age >= lease.lifetime / 2 or not await client.holds():
                try:
                    lease = await client.map(self._port, lease.external)
                    granted = time.monotonic()
                    self._took(gateway, client, lease)
                except MappingFailed as error:
                    log.debug("port mapping not renewed", extra={"gateway": gateway.ip, "error": str(error)})
            rest = granted + lease.lifetime / 2 - time.monotonic()
            await self._wait(min(self._look_every, max(rest, self._look_every / 10)))
        self._client = None
        await client.close()
        self._say(PortMapping(gateway=gateway.ip, why="the mapping was lost"))

    async def _pause(self, seconds: float, gateway: Gateway | None) -> None:
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            news = await self._wait(min(rest, self._look_every))
            if news or gateways.find(self._listen_address) != gateway:
                return

    async def _wait(self, seconds: float) -> bool:
        """Whether the network changed meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def _took(self, gateway: Gateway, client: Client, lease: Lease) -> None:
        self._say(PortMapping(client.name, gateway.ip, lease.external))

    def _say(self, mapping: PortMapping) -> None:
        if mapping == self.mapping:
            return
        before, self.mapping = self.mapping, mapping
        if mapping.external is not None:
            log.info(
                "port mapped",
                extra={
                    "address": natkind.show(mapping.external),
                    "gateway": mapping.gateway,
                    "protocol": mapping.protocol,
                },
            )
        else:
            log.debug("no port mapping", extra={"gateway": mapping.gateway, "reason": mapping.why})
        if before.external != mapping.external:
            self._on_change()

    async def _give_back(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(MappingFailed, TimeoutError):
            async with asyncio.timeout(UNMAP_TIMEOUT):
                await client.unmap(self._port)
        await client.close()

    def _nonce(self) -> bytes:
        """PCP's proof that the mapping is ours. Kept on disk, else a node that was killed could not renew its own
        mapping until that ends."""
        path = self._state_dir / NONCE_FILE
        with contextlib.suppress(OSError, ValueError):
            nonce = bytes.fromhex(path.read_text().strip())
            if len(nonce) == pcp.NONCE_LENGTH:
                return nonce
        nonce = os.urandom(pcp.NONCE_LENGTH)
        with contextlib.suppress(OSError):
            files.write_atomically(path, nonce.hex().encode() + b"\n")
        return nonce
