"""iperf3: TCP and UDP, both directions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lab.clients.case import Case, Machine, Port, Use, expect

PORT = Port(5201)
ATTEMPTS = 20  # half a second apart
UDP_RATE = "10M"  # bits a second
UDP_SIZE = "1200"  # bytes: no fragment on any path
MAX_LOSS = 2.0  # per cent of the datagrams; the simulated wires lose none
MAX_LOSS_BUSY = 60.0  # per cent; a busy machine drops what its processes do not come to read


def _too_early(said: dict[str, Any]) -> bool:
    """The server is still at the end of the test before, and says so, or it has closed its listener, which it opens anew for
    each test: who comes just then is refused, through a mesh with a reset, before anything was connected."""
    error = said.get("error", "")
    return "busy" in error or ("Connection re" in error and not said.get("start", {}).get("connected"))


class Iperf(Case):
    """TCP for the measurement's control as well."""

    name = "iperf3"
    tools = ("iperf3",)
    ports = (PORT, Port(PORT.number, "UDP"))

    async def serve(self, machine: Machine) -> None:
        machine.start("iperf3", ["iperf3", "-s", "-B", machine.address, "-p", str(PORT.number)])

    async def run(self, use: Use) -> None:
        seconds = "1" if use.brief else "8"

        async def measure(*arguments: str) -> dict[str, Any]:
            to = ["-c", use.address, "-p", str(PORT.number)]
            for _ in range(ATTEMPTS):
                said = json.loads(await use.client.call("iperf3", *to, "-J", "-t", seconds, *arguments, code=None))
                if not _too_early(said):
                    break
                await asyncio.sleep(0.5)
            expect("error" not in said, said.get("error"))
            end: dict[str, Any] = said["end"]
            return end

        async def tcp(*arguments: str) -> str:
            rate = (await measure(*arguments))["sum_received"]["bits_per_second"]
            expect(rate > 0, "nothing came")
            return f"{rate / 1e6:.0f} Mbit/s"

        async def udp(*arguments: str) -> str:
            found = (await measure("-u", "-b", UDP_RATE, "-l", UDP_SIZE, *arguments))["sum"]
            expect(found["packets"] > 0, "nothing was sent")
            limit = MAX_LOSS_BUSY if use.brief else MAX_LOSS  # in brief others run beside it
            expect(found["lost_percent"] <= limit, f"{found['lost_percent']:.1f} % of the datagrams were lost")
            return f"{found['bits_per_second'] / 1e6:.1f} Mbit/s, {found['lost_percent']:.1f} % lost, jitter {found['jitter_ms']:.1f} ms"

        await use.attempt("TCP up", tcp)
        await use.attempt("TCP down", lambda: tcp("-R"))
        await use.attempt("TCP, 8 streams", lambda: tcp("-P", "8"))
        await use.attempt("UDP up", udp)
        await use.attempt("UDP down", lambda: udp("-R"))
