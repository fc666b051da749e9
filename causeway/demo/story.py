"""What happens in the demo, in order.

A download runs from b to a. At half, the relay that carries it is killed; it comes back; at three quarters
the relay that took over vanishes without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable

from causeway.demo import content
from causeway.demo.download import Download, client_name
from causeway.demo.outcome import Event, Outcome
from causeway.demo.view import View
from causeway.demo.watch import Watch
from lab.child import Child
from lab.mesh import Mesh
from lab.node import NodeError

BACKEND_PORT, SERVICE_PORT = 8080, 80
KILL_AT, RETURN_AT, SILENCE_AT = 0.5, 0.55, 0.75  # shares of the file
LATEST_SILENCE = 0.95  # share of the file: from here on it happens, standby or not
PATIENCE = 30.0  # seconds for something that normally takes one or two
AFTERMATH = 5.0  # seconds after an event in which a stall counts as its doing
RATE_WINDOW = 1.0  # seconds over which the live view averages


class Story:
    """One run of the demo on a mesh that does not run yet."""

    def __init__(self, mesh: Mesh, view: View, *, size: int, rate: float, reason: str) -> None:
        """size: of the file, bytes. rate: bits per second that the server at b sends at most; 0: no limit.
        reason: why the mesh is not simulated; empty when it is."""
        self._mesh = mesh
        self._view = view
        self._rate = rate
        self._seed = secrets.token_hex(8)
        self._outcome = Outcome("simulated" if mesh.is_simulated else "loopback", reason, size)
        self._moments: list[tuple[float, Event]] = []

    async def run(self) -> Outcome:
        """Raises NodeError when the mesh does not come up."""
        mesh, view, outcome = self._mesh, self._view, self._outcome
        digest = asyncio.create_task(asyncio.to_thread(content.digest, self._seed, outcome.size))
        async with self._origin():
            cluster_ip = mesh.publish("files", SERVICE_PORT, BACKEND_PORT)
            view.wait("starting four nodes of four services each: a, b, r1, r2")
            started = time.monotonic()
            await mesh.start()
            view.say(f"four nodes are ready after {time.monotonic() - started:.1f} s")
            await self._listening(f"{cluster_ip}:{SERVICE_PORT}")
            async with Watch(mesh.a, mesh.b.name) as watch:
                await self._connect(watch)
                url = f"http://{cluster_ip}:{SERVICE_PORT}/file"
                outcome.client = client_name()
                view.say(f"at a: {outcome.client} {url} ({outcome.size >> 20} MiB, served at b on port {BACKEND_PORT})")
                download = Download(url, mesh.a.place)
                try:
                    await self._disturb(download, watch)
                    outcome.client_exit = await download.end()
                except BaseException:
                    download.cancel()
                    raise
                self._conclude(download, watch)
        outcome.sha256_expected = await digest
        return outcome

    @contextlib.asynccontextmanager
    async def _origin(self) -> AsyncIterator[None]:
        """The web server at b."""
        place = self._mesh.b.place
        address = place.address
        argv = [address, str(BACKEND_PORT), self._seed, str(self._outcome.size), str(self._rate)]
        child = Child([sys.executable, "-m", "causeway.demo.origin", *argv], output=None, namespace=place.namespace)
        try:
            line = await asyncio.to_thread(child.stdout.readline)
            if line != b"listening\n":
                raise NodeError(f"the web server at b ended with {child.code}; see its standard error above")
            yield
        finally:
            await child.stop(2)

    async def _listening(self, address: str) -> None:
        """Waits until a serves the service."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status = await self._mesh.a.proxy()
            listener = next((it for it in status.listeners if it.address == address), None)
            if listener and not listener.error and listener.endpoints:
                return
            if time.monotonic() > deadline:
                state = f"{listener.error or 'without endpoints'}" if listener else "missing"
                raise NodeError(
                    f"a: the listener on {address} is {state}; its proxy's log ends:\n{self._mesh.a.tail('proxy')}"
                )
            await asyncio.sleep(0.1)

    async def _connect(self, watch: Watch) -> None:
        """Has a build its session with b, and waits for the second relay to stand by."""
        mesh, view = self._mesh, self._view
        view.wait("a looks for b")
        started = time.monotonic()
        await mesh.a.ping(mesh.b.name, timeout=PATIENCE)
        if not await watch.until(lambda: watch.relay != "", PATIENCE):
            raise NodeError(
                f"a has {watch.path} to b, expected one through a relay; its tunnel's log ends:\n{mesh.a.tail('tunnel')}"
            )
        view.say(
            f"a and b have found each other after {time.monotonic() - started:.1f} s: {watch.path}, RTT {watch.rtt * 1000:.1f} ms"
        )
        other = mesh.r2 if watch.relay == mesh.r1.name else mesh.r1
        if not await watch.until(lambda: watch.standby(other.name), PATIENCE):
            view.say(f"[yellow]no warm standby over {other.name}; going on without[/yellow]")

    async def _disturb(self, download: Download, watch: Watch) -> None:
        size = self._outcome.size
        await self._reach(download, watch, lambda: download.received >= KILL_AT * size and watch.relay != "")
        if not download.running:
            return
        first = self._mesh.nodes[watch.relay]
        async with self._event(download, watch, f"kill -9 {first.name}", moves=True):
            await first.kill()
        await self._reach(download, watch, lambda: download.received >= RETURN_AT * size)
        async with self._event(download, watch, f"{first.name} returns", moves=False):
            first.start()
        await self._reach(
            download,
            watch,
            lambda: (
                download.received >= LATEST_SILENCE * size
                or (download.received >= SILENCE_AT * size and watch.standby(first.name))
            ),
        )
        if not download.running:
            return
        second = self._mesh.nodes[watch.relay]
        async with self._event(download, watch, f"blackhole {second.name}", moves=True):
            second.silence()
        await self._reach(download, watch, lambda: not download.running)
        second.unsilence()

    @contextlib.asynccontextmanager
    async def _event(self, download: Download, watch: Watch, title: str, *, moves: bool) -> AsyncIterator[None]:
        before, relay = watch.path, watch.relay
        event = Event(title, 0.0, before)
        self._view.say(
            f"[bold red]{title}[/bold red]   the download is at {100 * download.received / self._outcome.size:.0f} %, {before}"
        )
        now = time.monotonic()
        self._moments.append((now, event))
        self._outcome.events.append(event)
        yield
        if moves:
            moved = asyncio.create_task(watch.until(lambda: watch.relay not in ("", relay), PATIENCE))
            await self._reach(download, watch, moved.done)
            if await moved:
                event.path_after = watch.path
                self._view.say(f"the stream goes on over {watch.path}")
            else:
                event.path_after = watch.path
                self._view.say(f"[yellow]still {watch.path}[/yellow]")

    async def _reach(self, download: Download, watch: Watch, condition: Callable[[], bool]) -> None:
        """Shows progress until a condition holds or the download is over."""
        while download.running and not condition():
            now = time.monotonic()
            recent = download.arrivals.since(now - RATE_WINDOW)
            self._view.progress(
                done=download.received,
                size=self._outcome.size,
                rate=recent * 8 / min(RATE_WINDOW, max(0.1, now - download.started)),
                path=watch.path,
                rtt=watch.rtt,
            )
            await asyncio.sleep(0.05)

    def _conclude(self, download: Download, watch: Watch) -> None:
        outcome, arrivals = self._outcome, download.arrivals
        outcome.received = download.received
        outcome.sha256_received = download.sha256
        if not arrivals.times:
            return
        start, end = arrivals.times[0], arrivals.times[-1]
        outcome.seconds = end - start
        outcome.rates = arrivals.rates(outcome.bin_seconds)
        before = [it for it in watch.paths if it[0] <= start][-1:]
        outcome.paths = [
            (max(0.0, at - start), path) for at, path in before + [it for it in watch.paths if start < it[0] < end]
        ]
        moments = [at for at, _ in self._moments]
        # What is still missing when the next event comes is counted there.
        cuts = [*moments[1:], math.inf]
        ends = [min(at + AFTERMATH, cut, end) for at, cut in zip(moments, cuts, strict=True)]
        for (at, event), until, cut in zip(self._moments, ends, cuts, strict=True):
            event.at = at - start
            event.stall = arrivals.longest_gap(at, until, cut)
        quiet = zip([start, *ends], [*moments, end], strict=True)
        outcome.quiet_stall = max((arrivals.longest_inner_gap(a, b) for a, b in quiet), default=0.0)
