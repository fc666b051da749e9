"""What is measured: a way from a near address to servers at the far end, whatever carries it.

A rig is entered (started), offers `entries` (where the clients connect instead of the server's own ports)
and says which processes work at the near end, in the middle and at the far end.
"""

from __future__ import annotations

import json
import random
import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bench.process import Child, Failed, python

Address = tuple[str, int]
PORTS = {"sink": 7001, "echo": 7002, "source": 7003}  # of the entries


class NotRun(Exception):
    """This rig cannot be measured here; says why."""


class Loopback:
    """Addresses of 127/8 that nobody else on this host is likely to use: each bench has its own 127.x.y/24s."""

    def __init__(self, rng: random.Random) -> None:
        self._second = rng.randrange(64, 250)
        self._third = 0

    def block(self) -> str:
        """The first three numbers of a fresh /24."""
        self._third += 1
        return f"127.{self._second}.{self._third}"


@dataclass
class Roles:
    """Process ids that do the carrying, by place."""

    near: list[int] = field(default_factory=list)
    middle: list[int] = field(default_factory=list)
    far: list[int] = field(default_factory=list)


class Rig:
    """Base of all rigs; by itself the direct way: clients connect to the servers."""

    name: ClassVar[str] = "direct"
    title: ClassVar[str] = "direct"
    bulk_share: ClassVar[float] = 1.0  # of the pinned size, where the full one would take minutes

    def __init__(self, folder: Path, loopback: Loopback) -> None:
        self.folder = folder / self.name
        self.block = loopback.block()
        self.entries: dict[str, Address] = {}
        self.near_prefix: list[str] = []
        self.far_prefix: list[str] = []
        self._stack = ExitStack()
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            self.prepare()
            servers = self._serve()
            self.entries = self.open(servers)
            self._prove()
            self.settle()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    # What a kind of rig brings.

    @property
    def far_host(self) -> str:
        """Address on which the servers listen."""
        return f"{self.block}.9"

    def prepare(self) -> None:
        """Before the servers start (namespaces, programs present); raises NotRun."""

    def open(self, servers: dict[str, Address]) -> dict[str, Address]:
        """Starts what carries the traffic; where the clients connect instead."""
        return servers

    def settle(self) -> None:
        """Waits until the traffic takes the way that is to be measured. Raises Failed."""

    def roles(self) -> Roles:
        """Who carries the traffic now."""
        return Roles()

    @property
    def max_streams(self) -> int:
        """Streams that it can hold at once under this host's limit of descriptors a process."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1000

    # What all rigs share.

    def spawn(self, argv: list[str], *, log: str, talk: bool = False, prefix: list[str] | None = None) -> Child:
        """A process that is ended with the rig."""
        child = Child(argv, self.folder / f"{log}.log", talk=talk, prefix=prefix)
        self._stack.callback(child.stop)
        self._children.append(child)
        return child

    def load(self, kind: str, entry: str, *arguments: int) -> Child:
        """A load generator at the near end; the caller stops it."""
        host, port = self.entries[entry]
        return Child(
            python("bench.load", kind, host, str(port), *map(str, arguments)),
            self.folder / "load.log",
            talk=True,
            prefix=self.near_prefix,
        )

    def measure(self, kind: str, entry: str, *arguments: int, timeout: float) -> dict[str, float]:
        """Runs a load generator to its end; its result. Raises Failed."""
        child = self.load(kind, entry, *arguments)
        try:
            result: dict[str, float] = json.loads(child.read_line(timeout))
            return result
        finally:
            child.stop()

    def _serve(self) -> dict[str, Address]:
        server = self.spawn(python("bench.serve", self.far_host), log="serve", talk=True, prefix=self.far_prefix)
        ports: dict[str, int] = json.loads(server.read_line(20))
        return {name: (self.far_host, port) for name, port in ports.items()}

    def _prove(self, timeout: float = 30) -> None:
        """A round trip through every entry, tried again while the rig comes up."""
        deadline = time.monotonic() + timeout
        for entry, (kind, argument) in {"echo": ("ping", 2), "sink": ("push", 1), "source": ("pull", 1)}.items():
            while True:
                try:
                    self.measure(kind, entry, argument, timeout=5)
                    break
                except Failed as failure:
                    for child in self._children:
                        if not child.alive:
                            raise Failed(f"{self.name}: {child.name} ended: {child.tail()}") from None
                    if time.monotonic() > deadline:
                        raise Failed(f"{self.name}: no {entry} through it within {timeout:.0f} s: {failure}") from None
                    time.sleep(0.2)
