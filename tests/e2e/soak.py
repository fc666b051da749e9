"""`python -m tests.e2e.soak EVENT [--runs N] [--simulated]`: one event again and again under live streams.

Each run opens a bulk, a request/response and an idle stream, lets the event happen, and checks that every
byte came back once and in order and that no stream was reset. EVENT: kill (SIGKILL of the relay in use), silent (it
is cut off and nobody is told), outage (both relays killed for 10 s, then one back), upgrade (from a relay to the direct
path that becomes possible; --simulated only), tunnel (SIGKILL of b's tunnel, which starts again). Prints the stalls that
the request/response client saw; for `upgrade`, whose answers stand behind bulk in any case, the longest time in which
nothing of the bulk stream came back, and the same with nothing changed; for `tunnel` the seconds from the restart until a
new connection has made a round trip.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

from lab.folder import short_folder
from lab.matrix.events import DirectLost
from lab.mesh import Mesh
from lab.stalls import percentile
from protos import tunnel_pb2
from tests.e2e.traffic import PORT, TARGET_PORT, Stream, Traffic, connect, echo_server, eventually

OUTAGE = 10.0  # seconds
SETTLED = 2.0  # seconds after a change of path until the bulk stream runs at its pace again


async def once(mesh: Mesh, event: str) -> float:
    """One run; seconds, see the module."""
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
        return traffic.chat.stall


async def upgrade(mesh: Mesh) -> float:
    """Loses the direct path and gets it back under live streams; the longest silence of the bulk stream on the way back,
    seconds."""
    fault = DirectLost(mesh, mesh.r1)

    async def on(*kinds: int) -> bool:
        link = await mesh.a.active("b")
        return link is not None and link.kind in kinds

    direct = (tunnel_pb2.PATH_KIND_DIRECT, tunnel_pb2.PATH_KIND_PUNCHED)
    await eventually(lambda: on(*direct), "a direct path")
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        await fault.strike()
        try:
            await eventually(lambda: on(tunnel_pb2.PATH_KIND_RELAYED), "a relayed path")
            await asyncio.sleep(SETTLED)
            traffic.bulk.stall = 0.0
            await asyncio.sleep(2 * SETTLED)
            print(f"  nothing changed: {traffic.bulk.stall * 1000:.0f} ms", flush=True)
            traffic.bulk.stall = 0.0
        finally:
            await fault.restore()
        await eventually(lambda: on(*direct), "the direct path again")
        await asyncio.sleep(SETTLED)
        return traffic.bulk.stall


async def again(mesh: Mesh) -> float:
    """Kills a tunnel under a stream, starts it; seconds until the next connection works."""
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
    return time.monotonic() - began


async def soak(folder: Path, event: str, runs: int, simulated: bool) -> int:
    """All runs in one mesh, whose files are in that folder; the number that failed."""
    mesh = Mesh.simulated(folder, b_public=event == "upgrade") if simulated else Mesh.loopback(folder)
    stalls, failed = [], 0
    try:
        mesh.publish("echo", PORT, TARGET_PORT)
        await mesh.start(lean=True)
        async with echo_server(mesh.b.place):
            for number in range(runs):
                try:
                    stalls.append(await once(mesh, event))
                    print(f"{event} {number + 1}/{runs}: nothing lost, stall {stalls[-1] * 1000:.0f} ms", flush=True)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
                        raise
                    failed += 1
                    print(f"{event} {number + 1}/{runs}: FAILED {error!r}", flush=True)
    finally:
        await mesh.stop()
    if stalls:
        ordered = sorted(stalls)
        print(
            f"{event}: {len(stalls)} of {runs} without a lost byte or a reset; stall median "
            f"{statistics.median(stalls) * 1000:.0f} ms, p99 {percentile(ordered, 0.99) * 1000:.0f} ms, max {ordered[-1] * 1000:.0f} ms"
        )
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("event", choices=["kill", "silent", "outage", "upgrade", "tunnel"])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--simulated", action="store_true", help="behind real NATs at 40 ms (inside lab.rootless)")
    options = parser.parse_args()
    if options.event == "upgrade" and not options.simulated:
        parser.error("upgrade needs --simulated: a path that can be cut")
    with short_folder() as folder:
        return 1 if asyncio.run(soak(folder, options.event, options.runs, options.simulated)) else 0


if __name__ == "__main__":
    sys.exit(main())
