"""Redis: redis-benchmark."""

from __future__ import annotations

import csv

from lab.clients.case import Case, Machine, Port, Use, expect

PORT = Port(6379)
SETTINGS = ("--save", "", "--protected-mode", "no")


class Redis(Case):
    """One server that keeps nothing."""

    name = "Redis"
    tools = ("redis-server", "redis-benchmark", "redis-cli")
    ports = (PORT,)

    async def serve(self, machine: Machine) -> None:
        machine.start(
            "redis",
            [
                "redis-server",
                "--bind",
                machine.address,
                "--port",
                str(PORT.number),
                *SETTINGS,
                "--dir",
                str(machine.folder),
            ],
        )

    async def run(self, use: Use) -> None:
        to = ["-h", use.address, "-p", str(PORT.number)]

        async def bench(count: int, *arguments: str) -> str:
            said = await use.client.call("redis-benchmark", *to, "--csv", "-n", str(count), *arguments)
            rates = {
                row[0]: float(row[1]) for row in csv.reader(said.splitlines()) if len(row) > 2 and row[0] != "test"
            }
            expect(rates, f"no figures: {said[-300:]}")
            return ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items())

        async def blocked() -> str:
            # One client waits in the server for what another one sends a second later.
            script = (
                f"(sleep 1; redis-cli {' '.join(to)} lpush list late) & redis-cli {' '.join(to)} blpop list 30; wait"
            )
            said = await use.client.call("sh", "-c", script)
            expect("late" in said, f"it did not come: {said[-300:]}")
            return "woken"

        some = 500 if use.brief else 5_000
        await use.attempt("get, set", lambda: bench(some, "-c", "20", "-t", "set,get"))
        await use.attempt("get, set, pipelines of 16", lambda: bench(4 * some, "-c", "20", "-P", "16", "-t", "set,get"))
        await use.attempt(
            "values of 100 kB", lambda: bench(50 if use.brief else 500, "-d", "100000", "-c", "5", "-t", "set,get")
        )
        await use.attempt("blocking pop", blocked)
