"""The proxy service: owns every task and timer, and puts the parts together."""

import asyncio

from services.proxy import peers, servicer
from services.proxy.attach import AttachSocket
from services.proxy.config import Settings, traffic_of
from services.proxy.core import plan
from services.proxy.core.catalog import Catalog
from services.proxy.core.policy import Policy
from services.proxy.counters import Counters
from services.proxy.departure import Departure
from services.proxy.dialer import Dialer
from services.proxy.inbound import Inbound
from services.proxy.listeners import Listeners
from services.proxy.servicer import Status
from services.runtime.config import Config
from services.runtime.process import Service
from services.runtime.serve import LocalServer

SETTLE = 0.05  # s in which changes of services are gathered
# Inbound streams are judged by the services known; a proxy that just started knows none yet, and would deny all.
# The tunnel keeps offers for 10 s, so this much is safe; then allowedTargets must do.
FIRST_SNAPSHOT = 5.0  # s

ATTACH = "tunnel.attach"

SWITCHED_OFF = "edgeProxy.enable is false: no listener, and inbound streams are not served"
NO_SOCKS5 = "edgeProxy.socks5Proxy.enable has no effect: this version has no SOCKS5 proxy; use `causeway nc`"


class Proxy:
    """The proxy of one node. `run` until cancelled."""

    def __init__(self, service: Service) -> None:
        """Raises PolicyError for an allowedTargets entry that means nothing."""
        self.settings = Settings.of(service.config)
        self._log = service.log
        self._counters = Counters()
        self._catalog = Catalog()
        self._policy = Policy(self.settings.node_name, self.settings.allowed_targets)
        self._dialer = Dialer()
        self._attach = AttachSocket(
            self.settings.run_dir / ATTACH,
            service.log,
            self._result,
            lambda waiting: self._departure.tunnel_lost(waiting),
        )
        self._departure = Departure(self.settings.node_name, self._attach, self._dialer, self._counters, service.log)
        self._listeners = Listeners(self._departure, self._counters, service.log)
        self._inbound = Inbound(self._policy, self._attach, self._dialer, self._counters, service.log)
        self._synced = asyncio.Event()
        self._settling: asyncio.TimerHandle | None = None
        self._default = self.settings.traffic
        self._problems: dict[str, str] = {}
        self._metrics = service.config.metrics.base_port != 0
        self._service = service
        service.reload.on(
            "modules.edgeProxy.allowedTargets",
            lambda config: self._policy.allow(config.modules.edge_proxy.allowed_targets),
        )
        service.reload.on("modules.edgeProxy.loadBalancer", self._rebalance)

    async def run(self) -> None:
        """Serves until cancelled."""
        if self.settings.socks5:
            self._log.warning(NO_SOCKS5)
        if not self.settings.enable:
            self._log.warning(SWITCHED_OFF)
            await asyncio.Event().wait()
        unregister = None
        if self._metrics:
            from services.proxy import metrics

            unregister = metrics.register(self._counters, self._listeners.count, lambda: self._attach.waiting)
        self._attach.open()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(peers.follow_services(self.settings.run_dir, self._catalog, self._changed))
                tasks.create_task(self._listen())
        finally:
            if unregister is not None:
                unregister()
            await self._close()

    def status(self) -> Status:
        """What GetStatus answers."""
        counters = self._counters
        return Status(
            node_name=self.settings.node_name,
            rows=self._listeners.rows(),
            accepted=counters.accepted.total(),
            dialled=counters.dialled.total(),
            refused=dict(counters.refused_inbound),
            warnings=self._warnings(),
        )

    def _warnings(self) -> list[str]:
        warnings = self._service.warnings
        if not self.settings.enable:
            return [*warnings, SWITCHED_OFF]
        if self.settings.socks5:
            warnings.append(NO_SOCKS5)
        if not self._attach.connected:
            warnings.append("the tunnel is away: clients wait up to 5 s for it, inbound streams cannot arrive")
        warnings += [
            f"service {key} is spread by {self._default.strategy}: {why}" for key, why in self._problems.items()
        ]
        if not self._catalog.synced:
            warnings.append("no services yet: discovery has not answered")
        return warnings

    async def _listen(self) -> None:
        try:
            async with asyncio.timeout(FIRST_SNAPSHOT):
                await self._synced.wait()
        except TimeoutError:
            self._log.warning("discovery does not answer; inbound streams reach allowedTargets only until it does")
        await peers.listen(self.settings.run_dir, self._inbound.serve, self._log)

    def _changed(self) -> None:
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLE if self._synced.is_set() else 0, self._settle)

    def _settle(self) -> None:
        self._settling = None
        self._policy.update(self._catalog)
        self._spread()
        self._synced.set()

    def _rebalance(self, config: Config) -> None:
        self._default = traffic_of(config)
        if self._synced.is_set():
            self._spread()

    def _spread(self) -> None:
        traffic, problems = plan.traffic_of(self._catalog, self._default)
        for key in problems.keys() - self._problems.keys():
            self._log.warning("load balancing not understood", extra={"target": key, "error": problems[key]})
        self._problems = problems
        self._listeners.apply(self._catalog, traffic)

    def _result(self, message: bytes) -> None:
        try:
            outcome = peers.outcome(message)
        except ValueError as error:
            self._log.warning("the tunnel sent nonsense", extra={"error": str(error)})
            return
        self._departure.settle(outcome)

    async def _close(self) -> None:
        """Stops accepting, lets the tunnel take what was accepted, ends what only this process carries."""
        if self._settling is not None:
            self._settling.cancel()
        self._listeners.close()
        await self._inbound.close()
        self._dialer.close()
        self._attach.close()
        self._departure.close()


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
