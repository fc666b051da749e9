"""WebSocket: our own program on both sides, see websocket_program.py; the library is what is tried."""

from __future__ import annotations

import sys

from lab.clients.case import Case, Machine, Port, Use

PORT = Port(8765)


class WebSocket(Case):
    """Clear text."""

    name = "WebSocket"
    ports = (PORT,)

    async def serve(self, machine: Machine) -> None:
        program = [sys.executable, "-m", "lab.clients.websocket_program"]
        machine.start("websocket", [*program, "serve", machine.address, str(PORT.number)])

    async def run(self, use: Use) -> None:
        messages = "20" if use.brief else "500"
        async for row in use.client.rows(
            "lab.clients.websocket_program", "call", use.address, str(PORT.number), messages
        ):
            use.report(row)
