"""The ingress gateway of a node: keeps what it listens on equal to the objects, the addresses and the certificates."""

import asyncio
import errno
import json
import random
from logging import Logger

from services.proxy import peers
from services.proxy.config import GatewaySettings
from services.proxy.core.catalog import Spot
from services.proxy.core.gateway.model import Destination
from services.proxy.core.gateway.table import Entry, Object, Table, compile_table
from services.proxy.core.snapshot import Snapshot
from services.proxy.counters import Counters
from services.proxy.departure import Departure
from services.proxy.gateway import addresses
from services.proxy.gateway.certificates import Certificates, Pems
from services.proxy.gateway.exchange import Shared
from services.proxy.gateway.front import Front
from services.proxy.gateway.pool import Pool
from services.proxy.listeners import NOT_LOCAL, Listeners, Row
from services.proxy.route import Route
from services.proxy.tcp import TcpListener

PERIOD = 2.0  # s between two looks at addresses, files of certificates, and ports that could not be had
SETTLE = 0.05  # s in which changes of objects are gathered
MAX_WARNINGS = 20  # shown


class Gateway:
    """`run` until cancelled, then `close`."""

    def __init__(
        self, settings: GatewaySettings, departure: Departure, listeners: Listeners, counters: Counters, log: Logger
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._log = log
        self._objects = Snapshot[Object](lambda one: one.key)
        self._secrets: dict[str, Pems] = {}
        self._table = Table()
        self._certificates = Certificates(settings.secrets_dir)
        self._pool = Pool(departure.send)
        self._shared = Shared(self._pool, self._resolve, counters, random.Random(), log)
        self._front = Front(self._shared, departure, self._certificates)
        self._open: dict[Spot, TcpListener[Entry]] = {}
        self._failed: dict[Spot, str] = {}
        self._known: set[str] = set()  # warnings that the log has
        self._enabled = asyncio.Event()
        self._settling: asyncio.TimerHandle | None = None
        if settings.enable:
            self._enabled.set()

    async def run(self) -> None:
        """Follows the objects, once it is enabled."""
        await self._enabled.wait()
        # Nodes without a gateway do without the library; here, no client shall wait for it.
        from services.proxy.gateway import http2, upstream2  # noqa: F401

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(peers.follow_gateways(self._settings.run_dir, self._objects, self._changed))
            tasks.create_task(self._look())

    def reconfigure(self, settings: GatewaySettings) -> None:
        """Other settings from now on; clients are not touched, apart from those of ports that close."""
        self._settings = settings
        self._certificates.secrets_dir = settings.secrets_dir
        if settings.enable:
            self._enabled.set()
        self._refresh()

    def rows(self) -> list[Row]:
        """For status."""
        rows = [Row(spot, one.route.label, self._ready(one.route), "") for spot, one in self._open.items()]
        rows += [
            Row(spot, entry.label, self._ready(entry), error)
            for spot, error in self._failed.items()
            if (entry := self._table.entries.get(spot.port)) is not None
        ]
        return sorted(rows, key=lambda row: (row.label, row.spot))

    def warnings(self) -> list[str]:
        """What is wrong with objects and certificates."""
        table = self._table
        found = [f"{label} is not served: {why}" for label, why in table.problems.items()]
        found += [f"{label}: {', '.join(fields)} has no effect" for label, fields in table.idle.items()]
        found += [
            f"{label}: {self._lack(destination)}"
            for destination, label in table.destinations.items()
            if self._listeners.applied and self._resolve(destination) is None
        ]
        found += [f"TLS of gateways: {why}" for why in self._certificates.problems.values()]
        return found if len(found) <= MAX_WARNINGS else [*found[:MAX_WARNINGS], f"and {len(found) - MAX_WARNINGS} more"]

    async def close(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        self._front.closing = True
        while self._open:
            self._open.popitem()[1].close()
        await self._front.close()
        await self._pool.close()

    # ── changes ──

    def _changed(self) -> None:
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLE, self._settle)

    def _settle(self) -> None:
        self._settling = None
        self._table = compile_table(self._objects)
        self._front.entries = self._table.entries
        self._secrets = {
            f"{one.namespace}/{one.name}": json.loads(one.body) for one in self._objects if one.kind == "Secret"
        }
        self._refresh()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            self._refresh()

    def _refresh(self) -> None:
        entries = self._table.entries if self._settings.enable else {}
        servers = [served.server for entry in entries.values() for served in entry.served]
        for tls in self._certificates.refresh([one.tls for one in servers if one.tls is not None], self._secrets):
            if tls not in self._certificates.problems:
                self._log.info("certificate read", extra={"target": tls.credential or tls.certificate_file})
        self._listen(entries)
        warnings = set(self.warnings())
        for warning in sorted(warnings - self._known):
            self._log.warning(warning)
        self._known = warnings

    def _listen(self, entries: dict[int, Entry]) -> None:
        settings = self._settings
        ips = addresses.chosen(settings.nic, settings.include_ip, settings.exclude_ip) if entries else []
        wanted = {Spot("tcp", ip, port): entry for port, entry in entries.items() for ip in ips}
        for spot in self._open.keys() - wanted.keys():
            self._open.pop(spot).close()
            self._log.info("no longer listening for tcp", extra={"address": str(spot)})
        failed, self._failed = self._failed, {}
        for spot, entry in wanted.items():
            if spot in self._open:
                self._open[spot].route = entry
                continue
            try:
                self._open[spot] = TcpListener(spot, entry, self._front, self._log)
                self._log.info("listening for tcp", extra={"address": str(spot), "target": entry.label})
            except OSError as error:
                local = error.errno != errno.EADDRNOTAVAIL
                self._failed[spot] = f"cannot listen: {error.strerror}" if local else NOT_LOCAL
                if failed.get(spot) != self._failed[spot]:
                    extra = {"address": str(spot), "target": entry.label, "error": self._failed[spot]}
                    self._log.warning("not listening for tcp", extra=extra)

    # ── services ──

    def _resolve(self, destination: Destination) -> Route | None:
        return self._listeners.route(destination.service, destination.port, default=self._settings.traffic)

    def _lack(self, destination: Destination) -> str:
        """Why nothing can be sent there."""
        why = self._listeners.left_out(destination.service)
        return f"Service {destination.service} is {why}" if why else f"there is no Service port {destination}"

    def _ready(self, entry: Entry) -> int:
        """Endpoints behind a port."""
        routes = {id(route): route for one in entry.destinations() if (route := self._resolve(one)) is not None}
        return sum(map(len, routes.values()))
