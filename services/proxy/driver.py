"""The proxy service: owns every task and timer, and puts the parts together."""

import asyncio
import socket
from dataclasses import replace

from services.proxy import peers, servicer
from services.proxy.attach import AttachSocket
from services.proxy.config import DnsSettings, GatewaySettings, Settings, SocksSettings, site_of, targets_of, traffic_of
from services.proxy.core import idle, plan, topology
from services.proxy.core.catalog import Catalog
from services.proxy.core.patience import of_exits
from services.proxy.core.policy import Policy
from services.proxy.counters import Counters
from services.proxy.departure import Departure
from services.proxy.dialer import Dialer
from services.proxy.dns import Dns
from services.proxy.gateway.gateway import Gateway
from services.proxy.inbound import Inbound
from services.proxy.interception import Interception
from services.proxy.listeners import Listeners
from services.proxy.names import Names
from services.proxy.servicer import Status
from services.proxy.socks5 import Socks5
from services.runtime.config import Config
from services.runtime.process import Service
from services.runtime.serve import LocalServer

SETTLE = 0.05  # s in which changes of services are gathered
# Inbound streams are judged by the services known; a proxy that just started knows none yet, and would deny all.
# The tunnel keeps offers for 10 s, so this much is safe; then allowedTargets must do.
FIRST_SNAPSHOT = 5.0  # s
LISTEN_AGAIN = 5.0  # s after another proxy took over: two that fight would starve both

ATTACH = "tunnel.attach"

SWITCHED_OFF = "edgeProxy.enable is false: no listener, and inbound streams are not served"
NO_ZONE = "which endpoints are in this node's zone is not known, since its own is not: set zone, or $NODE_ZONE; all endpoints of"
NO_DNS = "edgeDNS.enable has no effect: the DNS is part of the proxy, and edgeProxy.enable is false"


class Proxy:
    """The proxy of one node. `run` until cancelled."""

    def __init__(self, service: Service) -> None:
        """Raises PolicyError for an allowedTargets entry that means nothing."""
        self.settings = Settings.of(service.config)
        self._log = service.log
        self._counters = Counters()
        self._catalog = Catalog()
        self._policy = Policy(self.settings.node_name, self.settings.allowed_targets)
        self._dialer = Dialer(
            avoid=lambda *spot: self._interception.loops(*spot) or self._listeners.loops(*spot),
        )
        self._attach = AttachSocket(
            self.settings.run_dir / ATTACH,
            service.log,
            self._result,
            lambda waiting: self._departure.tunnel_lost(waiting),
        )
        self._departure = Departure(self.settings.node_name, self._attach, self._dialer, self._counters, service.log)
        self._interception = Interception(self.settings, self._departure, self._counters, service.log)
        self._listeners = Listeners(self._departure, self._interception, self._counters, service.log)
        names = Names(self.settings.node_name, self._listeners, self._departure, self._policy)
        self._socks5 = Socks5(self.settings.run_dir, names, self._departure, self._counters, service.log)
        self._rest(self.settings.udp_idle)
        self._gateway = Gateway(self.settings.gateway, self._departure, self._listeners, self._counters, service.log)
        self._inbound = Inbound(self._policy, self._attach, self._dialer, self._counters, service.log)
        self._dns = Dns(self.settings.dns, self._catalog, self._counters.dns, service.log)
        self._synced = asyncio.Event()
        self._settling: asyncio.TimerHandle | None = None
        self._listening: asyncio.TimerHandle | None = None  # again
        self._default = self.settings.traffic
        self._site = self.settings.site
        self._problems: dict[str, str] = {}
        self._idle: dict[str, list[str]] = {}
        self._zone = self._site.zone
        self._zoneless: list[str] = []  # services for which that would matter
        self._metrics = service.config.metrics.base_port != 0
        self._service = service
        service.reload.on(
            "modules.edgeProxy.allowedTargets",
            lambda config: self._policy.allow(targets_of(config)),
        )
        service.reload.on("modules.edgeProxy.loadBalancer", self._rebalance)
        service.reload.on("modules.edgeProxy.serviceFilterMode", self._resite)
        service.reload.on("zone", self._resite)
        service.reload.on("modules.edgeDNS", lambda config: self._dns.configure(DnsSettings.of(config)))
        if self.settings.enable:
            service.reload.on(
                "modules.edgeProxy.socks5Proxy", lambda config: self._socks5.apply(SocksSettings.of(config))
            )
            service.reload.on(
                "modules.edgeGateway", lambda config: self._gateway.reconfigure(GatewaySettings.of(config))
            )
        service.reload.on(
            "modules.edgeProxy.udpIdleSeconds",
            lambda config: self._rest(config.modules.edge_proxy.udp_idle_seconds),
        )

    async def run(self) -> None:
        """Serves until cancelled."""
        if not self.settings.enable:
            self._log.warning(SWITCHED_OFF)
            await asyncio.Event().wait()
        unregister = None
        if self._metrics:
            from services.proxy import metrics

            unregister = metrics.register(self._counters, self._listeners.count, lambda: self._attach.waiting)
        self._attach.open()
        self._socks5.apply(self.settings.socks5)
        try:
            await self._interception.open()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._interception.run())
                tasks.create_task(peers.follow_services(self.settings.run_dir, self._catalog, self._changed))
                tasks.create_task(self._listen())
                tasks.create_task(
                    peers.follow_rtts(
                        self.settings.run_dir, lambda: self._departure.wants_rtts, self._departure.measured
                    )
                )
                tasks.create_task(self._dns.run())
                tasks.create_task(self._gateway.run())
        finally:
            if unregister is not None:
                unregister()
            await self._close()

    def status(self) -> Status:
        """What GetStatus answers."""
        counters = self._counters
        return Status(
            node_name=self.settings.node_name,
            rows=[row for part in (self._listeners, self._socks5, self._dns, self._gateway) for row in part.rows()],
            accepted=counters.accepted.total(),
            dialled=counters.dialled.total(),
            refused=dict(counters.refused_inbound),
            warnings=self._warnings(),
            zone=self._zone,
        )

    def _warnings(self) -> list[str]:
        warnings = self._service.warnings
        if not self.settings.enable:
            return [*warnings, SWITCHED_OFF, *([NO_DNS] if self.settings.dns.enable else [])]
        warnings += self._socks5.warnings()
        if not self._attach.connected:
            warnings.append("the tunnel is away: clients wait up to 5 s for it, inbound streams cannot arrive")
        warnings += self._interception.warnings()
        warnings += [
            f"service {key} is spread by {self._default.strategy}: {why}" for key, why in self._problems.items()
        ]
        warnings += [
            f"service {key}: its DestinationRule's {', '.join(fields)} has no effect"
            for key, fields in self._idle.items()
        ]
        if self._zoneless:
            names = ", ".join(self._zoneless[:3]) + (", …" if len(self._zoneless) > 3 else "")
            warnings.append(f"{NO_ZONE} {names} are served alike")
        warnings += self._gateway.warnings()
        warnings += self._listeners.warnings()
        if not self._catalog.synced:
            warnings.append("no services yet: discovery has not answered")
        return warnings

    async def _listen(self) -> None:
        try:
            async with asyncio.timeout(FIRST_SNAPSHOT):
                await self._synced.wait()
        except TimeoutError:
            self._log.warning("discovery does not answer; inbound streams reach allowedTargets only until it does")
        self._attach.greet(peers.LISTEN)

    def _changed(self) -> None:
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLE if self._synced.is_set() else 0, self._settle)

    def _settle(self) -> None:
        self._settling = None
        self._spread()
        self._dns.update()
        self._synced.set()

    def _rebalance(self, config: Config) -> None:
        self._default = traffic_of(config)
        if self._synced.is_set():
            self._spread()

    def _resite(self, config: Config) -> None:
        self._site = site_of(config)
        if self._synced.is_set():
            self._spread()

    def _rest(self, seconds: float) -> None:
        """Without a datagram until a UDP flow ends."""
        self._departure.rest(seconds)
        self._socks5.rest(seconds)

    def _spread(self) -> None:
        self._policy.update(plan.served(self._catalog, self._site.filter))
        traffic, problems = plan.traffic_of(self._catalog, self._default)
        for key in problems.keys() - self._problems.keys():
            self._log.warning("load balancing not understood", extra={"target": key, "error": problems[key]})
        self._problems = problems
        idle_fields = {one.key: found for one in self._catalog if (found := idle.fields(one.traffic_policy))}
        for key in idle_fields.keys() - self._idle.keys():
            self._log.warning("no effect", extra={"target": key, "fields": ", ".join(idle_fields[key])})
        self._idle = idle_fields
        self._inbound.patience = of_exits(self._catalog, {key: one.connect for key, one in traffic.items()})
        self._zone = self._site.zone or topology.zone_of(self._catalog, self._site.node)
        self._zoneless = [] if self._zone else sorted(one.key for one in self._catalog if topology.wants_zones(one))
        self._listeners.apply(self._catalog, traffic, replace(self._site, zone=self._zone))
        self._socks5.update(self._catalog)

    def _result(self, message: bytes, sock: socket.socket | None) -> None:
        try:
            result = peers.result(message)
        except ValueError as error:
            self._log.warning("the tunnel sent nonsense", extra={"error": str(error)})
            return
        if isinstance(result, list):
            for offer in result:
                self._inbound.serve(offer)
        elif isinstance(result, peers.TakenOver):
            self._log.warning("another proxy took over this node's inbound streams; is one running twice?")
            self._listening = asyncio.get_running_loop().call_later(LISTEN_AGAIN, self._attach.greet, peers.LISTEN)
        else:
            self._departure.settle(result, sock)

    async def _close(self) -> None:
        """Stops accepting, lets the tunnel take what was accepted, ends what only this process carries."""
        for timer in (self._settling, self._listening):
            if timer is not None:
                timer.cancel()
        self._listeners.close()
        await self._socks5.close()
        await self._gateway.close()
        await self._inbound.close()
        self._dialer.close()
        self._attach.close()
        self._departure.close()
        await self._interception.close()


async def main(service: Service) -> None:
    """Runs the service until it is told to stop."""
    proxy = Proxy(service)
    server = LocalServer(service)
    servicer.register(server, proxy.status)
    await server.start()
    running = asyncio.create_task(proxy.run(), name="proxy")
    stopping = asyncio.create_task(service.stopping.wait(), name="stopping")
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        running.cancel()
        stopping.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
        await server.stop()
