"""The DNS of one node: opened as its settings say, closed and opened anew when they change."""

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING

from services.proxy.config import DnsSettings
from services.proxy.core.catalog import Catalog, Network, Spot
from services.proxy.core.names import Names
from services.proxy.core.upstreams import Upstream
from services.proxy.interfaces import addresses
from services.proxy.listeners import RETRY_FIRST, RETRY_LAST, Row
from services.proxy.pktinfo import is_wildcard
from services.proxy.resolvconf import ResolvConf

if TYPE_CHECKING:
    from services.proxy.dnsport import DnsPort
    from services.proxy.resolver import Resolver

_BOTH: tuple[Network, ...] = ("udp", "tcp")

LABEL = "dns"  # in place of a service, in status

# Where clusters keep their own name server; the name differs by the tool that made the cluster.
_CLUSTER_DNS = ("kube-system/kube-dns", "kube-system/coredns")


class Dns:
    """`run` until cancelled; `update` after every change of the services."""

    def __init__(
        self,
        settings: DnsSettings,
        catalog: Catalog,
        counts: "Counter[tuple[str, str]]",
        log: Logger,
        resolv_conf: Path = Path("/etc/resolv.conf"),
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._counts = counts
        self._log = log
        self._resolv_conf = ResolvConf(resolv_conf)
        self._resolver: Resolver | None = None  # while it serves
        self._ports: dict[str, DnsPort] = {}  # by address
        self._errors: dict[str, str] = {}
        self._changed = asyncio.Event()

    def update(self) -> None:
        """The catalog changed. Services that this proxy leaves out have names, too: another one serves them."""
        if self._resolver is not None:
            self._resolver.names.update(self._catalog)
            self._resolver.ready = self._catalog.synced

    def configure(self, settings: DnsSettings) -> None:
        """These settings are in force from now on."""
        before, self._settings = self._settings, settings
        if not settings.listens_as(before):
            self._changed.set()
        elif self._resolver is not None:
            self._resolver.cache_ttl = float(settings.cache_ttl)
            self._resolver.forget()

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            self._changed.clear()
            if self._settings.enable:
                await self._serve(self._settings)
            else:
                await self._changed.wait()

    def rows(self) -> list[Row]:
        """For status, of each address."""
        if not self._settings.enable:
            return []
        port, count = self._settings.port, len(self._servers())
        served = dict.fromkeys(self._ports, "") | self._errors
        return [Row(Spot(network, ip, port), LABEL, count, error) for ip, error in served.items() for network in _BOTH]

    async def _serve(self, settings: DnsSettings) -> None:
        """Until other settings are in force; tries again what cannot be had."""
        # Imported only where the DNS is on: dnspython takes 3 MiB.
        from services.proxy.forwarder import Forwarder
        from services.proxy.resolver import Resolver

        names = Names(settings.domain)
        resolver = self._resolver = Resolver(names, Forwarder(self._servers), self._counts, self._log)
        resolver.cache_ttl = float(settings.cache_ttl)
        self.update()
        delay = RETRY_FIRST
        try:
            while not self._changed.is_set():
                await self._open(settings, resolver)
                try:
                    async with asyncio.timeout(delay if self._errors else None):
                        await self._changed.wait()
                except TimeoutError:
                    delay = min(delay * 2, RETRY_LAST)
        finally:
            self._resolver = None
            await resolver.close()
            while self._ports:
                await self._ports.popitem()[1].close()
            self._errors.clear()

    async def _open(self, settings: DnsSettings, resolver: "Resolver") -> None:
        from services.proxy.dnsport import DnsPort

        known, self._errors = self._errors, {}
        ips = settings.addresses or addresses(settings.interface)
        if not ips:
            self._errors[settings.interface] = "there is no such interface, or it has no address"
        for ip in ips:
            if ip in self._ports:
                continue
            try:
                port = DnsPort(ip, settings.port, resolver, self._log)
            except OSError as error:
                self._errors[ip] = f"cannot listen: {error.strerror}"
                continue
            self._ports[ip] = port
            await port.start()
            self._log.info("listening for dns", extra={"address": str(Spot("udp", ip, settings.port))})
        for where, text in self._errors.items():
            if where not in known:
                self._log.warning("not listening for dns", extra={"address": where, "error": text})

    def _servers(self) -> Sequence[Upstream]:
        """Whom to ask for what is not ours: the cluster's name server and the configured ones, else resolv.conf's."""
        settings, found = self._settings, list[Upstream]()
        if settings.cluster_dns:
            for key in _CLUSTER_DNS:
                service = self._catalog.get(key)
                found += [Upstream(ip) for ip in service.cluster_ips] if service is not None else []
        found += settings.upstreams
        return [one for one in found or self._resolv_conf.servers() if not self._is_me(one)]

    def _is_me(self, one: Upstream) -> bool:
        if one.port != self._settings.port:
            return False
        return any(ip == one.ip or (is_wildcard(ip) and _is_here(one.ip)) for ip in self._ports)


def _is_here(ip: str) -> bool:
    """Whether this host has the address: only then can it be bound."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((ip, 0))
    except OSError:
        return False
    return True
