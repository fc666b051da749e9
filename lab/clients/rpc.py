"""gRPC: our own program on both sides, see rpc_program.py; the library is what is tried."""

from __future__ import annotations

import sys

from lab.clients.case import Case, Machine, Port, Use

PORT = Port(50051)


class Rpc(Case):
    """Clear text, as within a cluster."""

    name = "gRPC"
    ports = (PORT,)

    async def serve(self, machine: Machine) -> None:
        machine.start(
            "grpc", [sys.executable, "-m", "lab.clients.rpc_program", "serve", f"{machine.address}:{PORT.number}"]
        )

    async def run(self, use: Use) -> None:
        calls = "100" if use.brief else "3000"
        program = use.client.rows("lab.clients.rpc_program", "call", f"{use.address}:{PORT.number}", calls)
        async for row in program:
            use.report(row)
