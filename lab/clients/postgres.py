"""PostgreSQL: psql and pgbench."""

from __future__ import annotations

import asyncio
import re

from lab.clients.case import USER, Case, ClientError, Machine, Port, Use, expect

PORT = Port(5432)
READY = 20.0  # seconds; a server that starts for the first time takes about one
SETTINGS = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "50", "max_wal_size": "128MB"}


class Postgres(Case):
    """One database."""

    name = "PostgreSQL"
    tools = ("initdb", "postgres", "psql", "pgbench")
    ports = (PORT,)

    async def serve(self, machine: Machine) -> None:
        folder = machine.folder / "pg"
        options = ["--no-sync", "-A", "trust", "-U", USER, "--locale", "C.UTF-8", "-D", str(folder)]
        await machine.call("initdb", *options, user=True, timeout=120)
        with (folder / "pg_hba.conf").open("a") as file:
            file.write("host all all 0.0.0.0/0 trust\n")
        settings = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
        machine.start(
            "postgres",
            ["postgres", "-D", str(folder), "-h", machine.address, "-p", str(PORT.number), "-k", "", *settings],
        )

    async def run(self, use: Use) -> None:
        to = ["-h", use.address, "-p", str(PORT.number), "-U", USER]

        async def psql(command: str, *, code: int = 0) -> str:
            return await use.client.call("psql", "-X", *to, "-At", "-c", command, "postgres", code=code)

        async def connect() -> str:
            until = asyncio.get_running_loop().time() + READY
            while True:
                try:
                    return (await psql("show server_version")).split()[0]
                except ClientError:  # it does not listen yet: the connection is refused
                    if asyncio.get_running_loop().time() > until:
                        raise
                await asyncio.sleep(0.2)

        async def copy() -> str:
            count = 20_000 if use.brief else 1_000_000
            said = await psql(f"copy (select n, md5(n::text) from generate_series(1, {count}) n) to stdout")
            expect(said.count("\n") == count, f"{said.count(chr(10))} of {count} rows came")
            return f"{count} rows"

        async def cancel() -> str:
            # The request to cancel comes over a second connection, from psql when it is interrupted.
            interrupted = f"psql -X {' '.join(to)} -c 'select pg_sleep(50)' postgres & sleep 2; kill -INT $!; wait $!"
            # A shell without job control starts what is in the background with SIGINT ignored; bash with -m does not.
            said = await use.client.call("bash", "-mc", interrupted, code=1)
            expect("canceling statement due to user request" in said, f"not cancelled: {said[-300:]}")
            return "cancelled"

        async def bench(*arguments: str) -> str:
            said = await use.client.call("pgbench", *to, *arguments, "postgres")
            failed = re.search(r"number of failed transactions: (\d+)", said)
            expect(not failed or failed[1] == "0", f"transactions failed: {said[-400:]}")
            rate = re.search(r"tps = ([\d.]+)", said)
            return f"{float(rate[1]) if rate else 0:.0f} transactions/s"

        amount = ["-t", "3"] if use.brief else ["-T", "10"]
        if await use.attempt("connect", connect):
            await use.attempt("COPY", copy)
            await use.attempt("cancel a query", cancel)
            await use.client.call("pgbench", *to, "-i", "-q", "-s", "1", "postgres")
            await use.attempt("pgbench", lambda: bench("-c", "8", *amount))
            await use.attempt("pgbench, select only", lambda: bench("-S", "-c", "8", *amount))
            await use.attempt("pgbench, a connection each", lambda: bench("-S", "-C", "-c", "8", *amount))
