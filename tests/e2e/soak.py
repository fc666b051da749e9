"""`python -m tests.e2e.soak EVENT [--runs N] [--simulated]`: one event again and again under live streams.

Each run opens a bulk, a request/response and an idle stream, lets the event happen, and checks that every
byte came back once and in order and that no stream was reset. EVENT: kill (SIGKILL of the relay in use), silent (it
is cut off and nobody is told), outage (both relays killed for 10 s, then one back), upgrade (from a relay to the direct
path that becomes possible; --simulated only), tunnel (SIGKILL of b's tunnel, which starts again).

What counts are the stalls that the request/response client saw; for `upgrade`, whose answers stand behind bulk in any
case, the longest time in which nothing of the bulk stream came back; for `tunnel` the seconds from the restart until a
new connection has made a round trip. Beside it stands the usual: the same with nothing changed, measured in the same run
just before. The exit code is 0 if nothing was lost and the 99th percentile is within the limit, to which that of the usual
is added: bulk fills this machine, and is not still even when nothing happens.
"""

import argparse
import asyncio
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import host, rootless
from lab.folder import short_folder
from lab.matrix.events import DirectLost
from lab.mesh import Mesh
from lab.node import WITHOUT_RELAY
from lab.stalls import percentile
from protos import tunnel_pb2
from tests.e2e.traffic import PORT, TARGET_PORT, Stream, Traffic, connect, echo_server, eventually

OUTAGE = 10.0  # seconds
SETTLED = 2.0  # seconds after a change of path until the bulk stream runs at its pace again
END = 60.0  # seconds for all nodes to end after a signal
LIMITS = {"kill": 0.100, "silent": 1.0, "outage": None, "upgrade": 0.050, "tunnel": 2.0}
"""Seconds, of the 99th percentile, from the requirement; an outage lasts as long as it lasts."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one run, in seconds."""

    stall: float
    usual: float = 0.0
    """The same with nothing changed."""


@dataclass(slots=True)
class Soak:
    """All runs of one event."""

    event: str
    runs: int
    limit: float | None
    """Seconds; None: none."""
    found: list[Found] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Runs in which something was lost or reset, and what."""

    @property
    def allowed(self) -> float:
        """Seconds, for the 99th percentile of the stalls."""
        return math.inf if self.limit is None else self.limit + percentile([it.usual for it in self.found], 0.99)

    @property
    def met(self) -> bool:
        """Whether the limit is."""
        return percentile([it.stall for it in self.found], 0.99) <= self.allowed

    @property
    def ok(self) -> bool:
        """Whether all runs were made, nothing was lost, and the limit is met."""
        return len(self.found) == self.runs > 0 and not self.failures and self.met

    def as_dict(self) -> dict[str, Any]:
        """Plain data, times in milliseconds."""

        def figures(values: list[float]) -> dict[str, float]:
            figure = {"median": statistics.median(values), "p99": percentile(values, 0.99), "max": max(values)}
            return {f"{name}_ms": milliseconds(value) for name, value in figure.items()}

        return {
            "schema": 1,
            "ok": self.ok,
            "event": self.event,
            "runs": self.runs,
            "whole": len(self.found),
            "failures": self.failures,
            "limit_ms": None if self.limit is None else milliseconds(self.limit),
            "allowed_ms": milliseconds(self.allowed) if self.limit is not None and self.found else None,
            "met": bool(self.found) and self.met,
            "stall": figures([it.stall for it in self.found]) if self.found else None,
            "usual": figures([it.usual for it in self.found]) if self.found else None,
            "stalls_ms": [milliseconds(it.stall) for it in self.found],
            "usual_ms": [milliseconds(it.usual) for it in self.found],
        }

    def text(self) -> str:
        """Two lines."""
        whole = f"{self.event}: {len(self.found)} of {self.runs} without a lost byte or a reset"
        if not self.found:
            return whole
        plain = self.as_dict()
        figures = [
            f"{what} median {it['median_ms']:.0f} ms, p99 {it['p99_ms']:.0f} ms, max {it['max_ms']:.0f} ms"
            for what, it in (("stall", plain["stall"]), ("usual", plain["usual"]))
        ]
        limit = (
            "no limit" if self.limit is None else f"limit {self.limit * 1000:.0f} ms: {'met' if self.met else 'MISSED'}"
        )
        return f"{whole}; {figures[0]}; {limit}\n  with nothing changed: {figures[1]}"


def milliseconds(seconds: float) -> float:
    """To a tenth."""
    return round(seconds * 1000, 1)


async def once(mesh: Mesh, event: str) -> Found:
    """One run."""
    await mesh.heal()
    await mesh.a.ping("b", timeout=60)
    if event == "upgrade":
        return await upgrade(mesh)
    await eventually(mesh.warm, "a link over each relay at both ends")
    if event == "tunnel":
        return await again(mesh)
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        traffic.chat.stall = 0.0
        await traffic.flows()
        usual, traffic.chat.stall = traffic.chat.stall, 0.0
        link = await mesh.a.active("b")
        victim = mesh.nodes[link.relay]
        if event == "kill":
            await victim.kill("relay")
        elif event == "silent":
            victim.silence()
        else:
            await mesh.r1.kill("relay")
            await mesh.r2.kill("relay")
            await asyncio.sleep(OUTAGE)
            mesh.r2.start("relay")
        await traffic.flows()
        return Found(traffic.chat.stall, usual)


async def upgrade(mesh: Mesh) -> Found:
    """Loses the direct path and gets it back under live streams."""
    fault = DirectLost(mesh, mesh.r1)

    async def on(*kinds: int) -> bool:
        link = await mesh.a.active("b")
        return link is not None and link.kind in kinds

    await eventually(lambda: on(*WITHOUT_RELAY), "a direct path")
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        await fault.strike()
        try:
            await eventually(lambda: on(tunnel_pb2.PATH_KIND_RELAYED), "a relayed path")
            await asyncio.sleep(SETTLED)
            traffic.bulk.stall = 0.0
            await asyncio.sleep(2 * SETTLED)
            usual, traffic.bulk.stall = traffic.bulk.stall, 0.0
        finally:
            await fault.restore()
        await eventually(lambda: on(*WITHOUT_RELAY), "the direct path again")
        await asyncio.sleep(SETTLED)
        return Found(traffic.bulk.stall, usual)


async def again(mesh: Mesh) -> Found:
    """Kills a tunnel under a stream, starts it, and waits until the next connection works."""
    stream = Stream(*await connect(mesh.a.place, mesh.cluster_ips[0]))
    await stream.say(b"before")
    await mesh.b.kill("tunnel")
    mesh.b.start("tunnel")
    began = time.monotonic()
    try:
        await stream.reader.readexactly(1)
        raise AssertionError("a stream of the former tunnel lives on")
    except (ConnectionError, asyncio.IncompleteReadError):
        stream.writer.close()
    stream = Stream(*await connect(mesh.a.place, mesh.cluster_ips[0]))
    await stream.say(b"after")
    stream.writer.close()
    return Found(time.monotonic() - began)


async def soak(folder: Path, made: Soak, simulated: bool, tell: Callable[[str], None]) -> None:
    """All runs in one mesh, whose files are in that folder; tells of each when it is over."""
    event = made.event
    mesh = Mesh.simulated(folder, b_public=event == "upgrade") if simulated else Mesh.loopback(folder)
    try:
        mesh.publish("echo", PORT, TARGET_PORT)
        if event == "upgrade":
            mesh.congestion("reno")
        await mesh.start(lean=True)
        async with echo_server(mesh.b.place):
            for number in range(1, made.runs + 1):
                try:
                    found = await once(mesh, event)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
                        raise
                    made.failures.append(f"run {number}: {error!r}")
                    tell(f"{event} {number}/{made.runs}: FAILED {error!r}")
                    continue
                made.found.append(found)
                usual = f" (usual {found.usual * 1000:.0f})" if found.usual else ""
                tell(f"{event} {number}/{made.runs}: nothing lost, stall {found.stall * 1000:.0f} ms{usual}")
    finally:
        await mesh.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.soak", description=__doc__.splitlines()[0])
    parser.add_argument("event", choices=list(LIMITS))
    parser.add_argument("--runs", type=int, default=50)
    limits = ", ".join(f"{event} {limit * 1000:.0f}" for event, limit in LIMITS.items() if limit is not None)
    parser.add_argument("--limit", type=float, metavar="MS", help=f"for the 99th percentile (default: {limits})")
    parser.add_argument("--simulated", action="store_true", help="behind real NATs at 40 ms")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every stall there")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if options.event == "upgrade" and not options.simulated:
        parser.error("upgrade needs --simulated: a path that can be cut")
    if options.runs < 1:
        parser.error("--runs must be positive")
    if options.simulated and (code := rootless.enter("tests.e2e.soak", patience=END)) is not None:
        return code
    limit = LIMITS[options.event] if options.limit is None else options.limit / 1000
    made, where = Soak(options.event, options.runs, limit), sys.stderr if options.output == "json" else sys.stdout
    machine = {**host.describe(), "busy": host.foreign_load()}
    with short_folder() as folder:
        asyncio.run(soak(folder, made, options.simulated, lambda line: print(line, file=where, flush=True)))
    told = json.dumps({**made.as_dict(), "simulated": options.simulated, "host": machine}, indent=1)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(told + "\n")
    print(told if options.output == "json" else made.text())
    return 0 if made.ok else 1


if __name__ == "__main__":
    sys.exit(main())
