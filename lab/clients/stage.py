"""Two nodes behind NATs with a path of one kind between them, and the servers and clients on their machines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import yaml

from lab.clients.case import Case, ClientError, Machine, Row, Use
from lab.clients.results import Result, absent
from lab.manifest import Document
from lab.mesh import Mesh
from lab.nat import Kind, Nat
from protos import tunnel_pb2 as pb

PATHS = {
    "direct": (Nat(Kind.PORT_RESTRICTED), Nat(Kind.PORT_RESTRICTED), pb.PATH_KIND_PUNCHED),
    "relayed": (Nat(Kind.SYMMETRIC), Nat(Kind.SYMMETRIC), pb.PATH_KIND_RELAYED),
}
"""The routers of a and b, and the kind of path that comes of them."""
PATIENCE = 60.0  # seconds until there is a path of that kind
LISTENING = 20.0  # seconds until a proxy listens for what was published

Report = Callable[[Result], None]


class Stage:
    """Build it, `open` it, run cases, `close` it."""

    def __init__(self, folder: Path, path: str, cases: Sequence[Case], report: Report, *, brief: bool = False) -> None:
        a_nat, b_nat, self._kind = PATHS[path]
        self.mesh = Mesh.simulated(folder / "nodes", a_nat=a_nat, b_nat=b_nat)
        self._path = path
        self._cases = cases
        self._brief = brief
        self._report = report
        self._a, self._b = (
            Machine(node.place, folder / f"on-{node.name}", node.run_dir) for node in (self.mesh.a, self.mesh.b)
        )
        self._failed: dict[Case, str] = {}
        """Servers that did not start, and why."""

    async def open(self) -> None:
        """Starts nodes and servers, and waits for the path."""
        documents: list[Document] = []
        for case in self._cases:
            for port in case.ports:
                name = f"{case.name}-{port.number}-{port.protocol}".lower()
                documents += self.mesh.service(name, self.mesh.cluster_ips[0], port.number, port.number, port.protocol)
        for node in (self.mesh.a, self.mesh.b):
            node.publish(documents)
        config = yaml.safe_load(self.mesh.a.config_file.read_text())
        config["modules"].setdefault("edgeProxy", {})["socks5Proxy"] = {"enable": True, "listenAddress": "127.0.0.1"}
        self.mesh.a.configure(config)
        await self.mesh.start(lean=True)
        await asyncio.gather(
            *(self._serve(case) for case in self._cases), self._find_path(), self._listens(len(documents) // 2)
        )

    async def run(self, *, together: bool = False) -> None:
        """All cases: one after the other, so that they do not disturb each other, or all at once."""
        if together:
            await asyncio.gather(*(self._run(case) for case in self._cases))
        else:
            for case in self._cases:
                await self._run(case)

    async def close(self) -> None:
        """Ends everything."""
        try:
            await asyncio.gather(self._a.stop(), self._b.stop())
        finally:
            await self.mesh.stop()

    async def _serve(self, case: Case) -> None:
        if case.missing():
            return
        try:
            await case.serve(self._b)
        except (ClientError, OSError) as error:
            self._failed[case] = f"no server: {error}"

    async def _run(self, case: Case) -> None:
        def tell(check: str, result: str, figure: str) -> None:
            self._report(Result(case.name, check, self._path, result, figure))

        def report(row: Row) -> None:
            tell(row.check, "failed" if row.error else "ok", row.error or row.figure)

        if missing := case.missing():
            self._report(absent(case.name, self._path, missing))
        elif case in self._failed:
            tell("all", "failed", self._failed[case])
        else:
            try:
                await case.run(Use(self._a, self._b, self.mesh.cluster_ips[0], self._brief, report))
            except (ClientError, OSError, ValueError) as error:
                tell("all", "failed", str(error))
            if await self._current() != self._kind:
                tell("path", "failed", f"the path was not {self._path} at the end")

    async def _current(self) -> int:
        link = await self.mesh.a.active("b")
        return int(link.kind) if link is not None else 0

    async def _find_path(self) -> None:
        await self.mesh.a.ping("b", timeout=PATIENCE)
        await self._until(self._has_path, PATIENCE, f"there is no {self._path} path")

    async def _has_path(self) -> bool:
        return await self._current() == self._kind

    async def _listens(self, count: int) -> None:
        async def all_of_them() -> bool:
            listeners = [
                it for it in (await self.mesh.a.proxy()).listeners if "/" in it.service
            ]  # the SOCKS proxy has none
            return len(listeners) == count and not any(it.error for it in listeners)

        await self._until(all_of_them, LISTENING, f"a does not listen for all {count} services")

    @staticmethod
    async def _until(condition: Callable[[], Awaitable[bool]], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not await condition():
            if time.monotonic() > deadline:
                raise ClientError(f"{what} after {timeout:.0f} s")
            await asyncio.sleep(0.1)
