"""The relay service in its process: role, public port, local API, reports to discovery, drain at the end."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from services.runtime.process import Service
from services.runtime.serve import LocalServer

from . import servicer
from .core.report import Report
from .peers import Discovery
from .post import Post

REPORT_EVERY = 30.0
"""Seconds after which an unchanged report is sent again: discovery may have lost it."""
REPORT_GAP = 5.0
"""Seconds between reports of mere load."""
REPORT_RETRY = (0.5, 10.0)
"""First and last pause, in seconds, while discovery is absent."""


async def main(service: Service) -> None:
    """Run until `service.stopping`; then drain and go."""
    changed = asyncio.Event()
    discovery = Discovery(service.config.run_dir)
    post = Post(service, discovery, changed.set)
    port = service.config.modules.edge_relay.listen_port
    server = LocalServer(service)
    api = servicer.RelayServicer(lambda: post.relay.status(), post.drain, lambda: [*service.warnings, *post.warnings])
    server.add(servicer.add_to_server, api, servicer.FULL_NAME)
    reporter = Reporter(service, post, discovery, port, changed)
    stopped = False
    try:
        post.open()
        if service.config.metrics.base_port:
            from prometheus_client import REGISTRY

            from .metrics import RelayCollector

            REGISTRY.register(RelayCollector(lambda: post.relay.status(), asyncio.get_running_loop()))
        await server.start()
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(reporter.run()), tasks.create_task(post.run())]
            await service.stopping.wait()
            left = await post.drain()
            stopped = True
            for task in beside:
                task.cancel()
        service.log.info("relay stops", extra={"circuits_left": left})
    finally:
        if stopped and post.relay.role.active:
            await reporter.withdraw()
        await post.close()
        await server.stop()
        await reporter.close()


class Reporter:
    """Tells discovery the relay's role and load: at once when the role changes, soon when the load does, and now
    and then anyway. Discovery may be absent; nothing waits for it."""

    def __init__(self, service: Service, post: Post, discovery: Discovery, port: int, changed: asyncio.Event) -> None:
        self._log: logging.Logger = service.log
        self._post = post
        self._port = port
        self._changed = changed
        self._discovery = discovery
        self._absent = False
        self._lost = False

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._discovery.watch(self._on_lost))
            pause = REPORT_RETRY[0]
            while True:
                self._lost = False
                report = self._post.report()
                if await self._send(report):
                    await self._quiet(report, monotonic())
                    pause = REPORT_RETRY[0]
                else:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, REPORT_RETRY[1])

    async def withdraw(self) -> None:
        """The relay stops: take its role out of the record."""
        if not self._absent:
            await self._send(Report(serving=False))

    async def close(self) -> None:
        await self._discovery.close()

    async def _send(self, report: Report) -> bool:
        try:
            await self._discovery.report(self._port, report)
        except ConnectionError as error:
            if not self._absent:
                self._log.info("discovery is not there yet; the relay serves without it", extra={"error": str(error)})
            self._absent = True
            return False
        self._absent = False
        return True

    async def _quiet(self, last: Report, sent_at: float) -> None:
        """Until there is something to tell, the time is over, or discovery went away."""
        while True:
            self._changed.clear()
            report = self._post.report()
            due = sent_at + (REPORT_GAP if report.worth(last) else REPORT_EVERY)
            wait = due - monotonic()
            if self._lost or report.urgent(last) or wait <= 0:
                return
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _on_lost(self) -> None:
        self._lost = True
        self._changed.set()
