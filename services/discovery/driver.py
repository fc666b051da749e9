"""Discovery in its process: starts every source beside the others, expires what is old, stops in good order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.runtime.config import Config
from services.runtime.process import Service, describe
from services.runtime.serve import LocalServer

from . import interfaces
from .config import Settings
from .core.backoff import Backoff
from .core.snapshot import Snapshot
from .core.vantage import Guard
from .directory import Directory
from .offer import Offerer
from .peers import NodeClient
from .prober import Prober
from .public import PublicServer
from .resolver import Resolver
from .servicer import DISCOVERY_SERVICE, DiscoveryServicer, add_discovery
from .sources.cache import Cache
from .sources.dht import Dht
from .sources.lookup import Lookup
from .sources.mdns import Mdns
from .sources.publish import Publisher
from .sources.servicefile import ServiceFile
from .sources.static import StaticSource

# Seconds that the reports of a former run stand in for components that have not reported yet.
REPORT_GRACE = 90.0
# Seconds between two sweeps of the registry at least, and at most.
SWEEP_MIN, SWEEP_MAX = 5.0, 15.0
# Remembered peers that are there from the first moment; verifying one takes about 0.3 ms.
RESTORED_FIRST = 64
# Seconds that a task has to run after an error for it to be over.
RECOVERED = 120.0
# A wall clock that moved this much more or less than time did was set, or the host was suspended. Seconds.
JUMP = 5.0


async def main(service: Service) -> None:
    """Run until `service.stopping`."""
    await Driver(service).run()


class Driver:
    """Owner of discovery's tasks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._rng = rng = random.Random()
        settings = Settings.of(service.config)
        self._directory = directory = Directory(settings, service.identity, service.log)
        resolver = Resolver()
        self._client = NodeClient(service.identity, resolver)
        self._dht = Dht(directory, self._client, rng)
        self._cache = Cache(directory)
        self._lookup = Lookup(directory, self._client, self._dht)
        guard = Guard()
        self._prober = Prober(directory, self._client, rng)
        self._offerer = Offerer(directory, self._client, guard, rng)
        self._public = PublicServer(directory, self._dht, self._prober, guard, service.config.run_dir, rng)
        self._static = StaticSource(directory, resolver, rng)
        self._publisher = Publisher(directory, self._client, self._dht, rng)
        self._mdns = Mdns(directory, self._client, rng)
        self._services = ServiceFile(directory, settings.services_file) if settings.services_file else None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for key in (
            "modules.edgeTunnel.relayNodes",
            "modules.edgeTunnel.advertiseAddress",
            "modules.edgeDiscovery.bootstrap",
        ):
            service.reload.on(key, self._reconfigure)

    def _reconfigure(self, config: Config) -> None:
        """Other relays, addresses or contacts are named now."""
        new = Settings.of(config)
        self._directory.settings = replace(
            self._directory.settings, relays=new.relays, advertise=new.advertise, bootstrap=new.bootstrap
        )
        self._static.apply()
        self._directory.wake()
        # Who follows the contacts has to look again: the registry does not know of first contacts.
        self._directory.peers_bell.ring()

    async def run(self) -> None:
        """Serve first, then learn: no source holds up the local socket."""
        service, directory = self._service, self._directory
        # What is known already comes before the socket: components that come back must not see it vanish.
        self._adopt(self._cache.load())
        self._cache.restore(RESTORED_FIRST)
        self._meet(interfaces.usable(directory.settings.listen_address))
        if self._services is not None:
            self._services.look()
        else:
            directory.board.say("servicesFile", "none configured")
        if service.config.metrics.base_port:
            from prometheus_client import REGISTRY

            from .metrics import DirectoryCollector

            REGISTRY.register(DirectoryCollector(directory, self._dht))
        server = LocalServer(service)
        servicer = DiscoveryServicer(directory, self._lookup, self._dht, self._prober, lambda: service.warnings)
        server.add(add_discovery, servicer, DISCOVERY_SERVICE)
        try:
            await server.start()
            service.log.info("discovery serves", extra={"file": str(server.path)})
            self._start()
            await service.stopping.wait()
        finally:
            directory.closing = True
            directory.peers_bell.ring()
            directory.services_bell.ring()
            directory.gateways_bell.ring()
            self._prober.close()
            await asyncio.gather(server.stop(), self._stop())

    def _start(self) -> None:
        self._spawn("interfaces", self._watch_interfaces)
        self._spawn("public", self._public.run)
        self._spawn("static", self._static.run)
        self._spawn("cache", self._cache.run)
        self._spawn("sweep", self._sweep)
        self._spawn("reports", self._drop_unconfirmed)
        if self._directory.settings.lookup:
            self._spawn("lookup", self._publisher.run)
            self._spawn("offers", self._offerer.run)
            self._spawn("dht", self._dht.run)
        else:
            self._directory.board.say("lookup", "off: dht.enable is false")
        if self._services is not None:
            self._spawn("services", self._services.run)
            self._spawn("services copy", self._services.keep)
        self._spawn("mdns", self._mdns.run)

    def _spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks[name] = asyncio.create_task(self._guard(name, work), name=name)

    async def _guard(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A source that fails must not take the others with it; that it failed must be seen, and it starts again."""
        backoff = Backoff(1.0, 60.0, self._rng)
        loop = asyncio.get_running_loop()
        while True:
            recovery = loop.call_later(RECOVERED, self._directory.board.clear, f"task {name}")
            try:
                return await work()
            except Exception as error:
                text = f"{name} was stopped by an error and starts again: {describe(error)}"
                self._directory.board.warn(f"task {name}", text)
                self._directory.log.exception(text)
            finally:
                recovery.cancel()
            await asyncio.sleep(backoff.next())

    async def _stop(self) -> None:
        # First nobody is answered any more: zeroconf may announce us once again right after its goodbye (answers that
        # it had delayed), and neighbours who then ask must not find us.
        await self._end("public")
        await self._public.close()
        await self._end(*self._tasks)
        await self._lookup.close()
        await asyncio.gather(self._client.close(), self._mdns.close(), self._cache.close())

    async def _end(self, *names: str) -> None:
        tasks = [self._tasks[name] for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # The own record

    def _adopt(self, snapshot: Snapshot) -> None:
        """Go on where the former run stopped. Its reports count until the components report again, so that a restart
        of discovery alone does not tell the world that this node has lost its relays."""
        own = self._directory.own
        own.last_revision = max(own.last_revision, snapshot.revision)
        own.tunnel, own.relay = snapshot.tunnel, snapshot.relay
        self._directory.servers = snapshot.servers
        self._adopted = (snapshot.tunnel, snapshot.relay)

    async def _drop_unconfirmed(self) -> None:
        await asyncio.sleep(REPORT_GRACE)
        own = self._directory.own
        if own.tunnel is not None and own.tunnel is self._adopted[0]:
            own.tunnel = None
        if own.relay is not None and own.relay is self._adopted[1]:
            own.relay = None
        self._directory.own_changed()

    async def _watch_interfaces(self) -> None:
        async for found in interfaces.changes(self._directory.settings.listen_address):
            if found != self._mdns.interfaces:
                self._meet(found)
                await self._wake()

    def _meet(self, found: tuple[interfaces.Interface, ...]) -> None:
        """These are the interfaces now."""
        directory = self._directory
        self._prober.interfaces = found
        ips = interfaces.addresses(found)
        directory.interfaces = found
        directory.own.set_interfaces(ips)
        directory.own_changed()
        shown = [*ips, *(f"{ip}%{it.name}" for it in found for ip in it.link_local)]
        directory.board.say("interfaces", ", ".join(shown) or "no address but loopback")
        directory.log.info("addresses", extra={"address": ",".join(ips)})
        self._mdns.use(found)

    async def _wake(self) -> None:
        """The network or the clock changed."""
        await self._client.close()
        self._directory.wake()

    # The registry

    async def _sweep(self) -> None:
        directory = self._directory
        loop = asyncio.get_running_loop()
        offset = directory.wall() - loop.time()
        generation = directory.identity.generation
        while True:
            now = directory.wall()
            jump = now - loop.time() - offset
            if abs(jump) > JUMP:
                offset += jump
                directory.log.warning("the clock jumped, or the host was suspended", extra={"seconds": jump})
                self._mdns.use(self._mdns.interfaces)
                await self._wake()
            if generation != directory.identity.generation:
                # The record shows who signed it; under a former secret it is soon worth nothing to others.
                generation = directory.identity.generation
                directory.own_bell.ring()
            directory.forget_double()
            directory.registry.expire(now)
            wait = directory.registry.next_expiry() - now
            await asyncio.sleep(min(max(wait, SWEEP_MIN), SWEEP_MAX))
