"""All runs of a matrix: meshes are built, used for run after run, and replaced when something went wrong in them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from lab.matrix.conditions import Ground, Net, settled
from lab.matrix.events import Event
from lab.matrix.flow import BULK, IDLE, REQUEST
from lab.matrix.results import Matrix, Run
from lab.matrix.trial import backend, trial
from lab.mesh import Mesh
from lab.namespace import LabError
from lab.node import NodeError

LOADS = ((IDLE,), (REQUEST, BULK))
"""Connections that share a session. A busy session finds a new path by itself, an idle one when it is used."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    events: Sequence[type[Event]]
    nets: Sequence[Net]
    runs: int
    """Of each event in each network, less where an event asks for a share only."""
    loads: Sequence[Sequence[str]] = LOADS
    jobs: int = 1
    """Meshes that are used beside each other."""
    seconds: float = 27 * 60
    """After these no run begins; an event whose share of them is used up is not repeated any more."""
    slow: float = 3.0
    """Seconds of stall, beyond an event's own outage, from which on the nodes' logs are kept."""
    logs: Path | None = None
    """Where logs of runs are kept that did not go well; None: nowhere."""


@dataclass(frozen=True)
class Batch:
    """All runs of one event in one network."""

    event: type[Event]
    net: Net
    runs: int


class Campaign:
    """Fills a matrix. `run` may be cancelled at any time: what was measured until then is in the matrix."""

    def __init__(self, plan: Plan, folder: Path, matrix: Matrix, tell: Callable[[str], None]) -> None:
        """folder: for the nodes' files, with a short path. tell: gets a line for each run."""
        self._plan = plan
        self._folder = folder
        self._matrix = matrix
        self._tell = tell
        grounds = list(Ground)
        batches = [Batch(event, net, math.ceil(plan.runs * event.share)) for net in plan.nets for event in plan.events]
        # Those that can use the same mesh follow each other.
        self._waiting = sorted(batches, key=lambda it: (plan.nets.index(it.net), grounds.index(it.event.ground)))
        self._working = 0
        self._numbers = itertools.count()
        self._deadline = 0.0
        self.total = sum(it.runs for it in batches)
        self.done = 0
        """Runs that were made, or will not be."""

    async def run(self) -> None:
        """All of it."""
        self._deadline = time.monotonic() + self._plan.seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._plan.jobs, len(self._waiting))):
                group.create_task(self._work())

    async def _work(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            bed = Bed(self._folder, self._numbers)
            stack.push_async_callback(bed.clear)
            while self._waiting:
                batch = self._waiting.pop(0)
                self._working += 1
                await self._repeat(batch, bed)
                self._working -= 1

    async def _repeat(self, batch: Batch, bed: Bed) -> None:
        left = self._deadline - time.monotonic()
        share = time.monotonic() + left * min(self._plan.jobs, self._working) / (len(self._waiting) + self._working)
        for number in range(1, batch.runs + 1):
            if time.monotonic() > (share if number > 1 else self._deadline):
                left_out = batch.runs - number + 1
                self._tell(f"{batch.event.name}, {batch.net.name}: the time is used up; {left_out} runs left out")
                self.done += left_out
                return
            for loads in self._plan.loads:
                await self._once(batch, loads, number, bed)
            self.done += 1

    async def _once(self, batch: Batch, loads: Sequence[str], number: int, bed: Bed) -> None:
        what = f"{batch.event.name}, {batch.net.name}, {' + '.join(loads)}, run {number}"
        try:
            mesh = await bed.ready(batch.net, batch.event.ground)
            run = await trial(mesh, batch.net, batch.event, loads, number)
        except (NodeError, LabError, TimeoutError, OSError, grpc.aio.AioRpcError) as error:
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error) or repr(error)
            self._matrix.failures.append(f"{what}: {reason}")
            self._tell(f"{what}: FAILED {reason}")
            self._keep_logs(what, bed)
            await bed.clear()
            return
        self._matrix.runs.append(run)
        self._tell(f"{what}: {_told(run)}")
        unsettled = any(it.stall is None for it in run.findings)
        if (
            not run.intact
            or unsettled
            or any((it.stall or 0) > self._plan.slow + batch.event.outage for it in run.findings)
        ):
            self._keep_logs(what, bed)
        if not run.intact or unsettled:
            await bed.clear()  # whatever it is that went wrong shall not spoil the next run

    def _keep_logs(self, what: str, bed: Bed) -> None:
        if self._plan.logs is None or bed.folder is None:
            return
        target = self._plan.logs / what.replace(", ", "_").replace("/", "-").replace(" ", "")
        for log in bed.folder.glob("*/*.log"):
            (target / log.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(log, target / log.parent.name)
        self._tell(f"the nodes' logs are in {target}")


class Bed:
    """At most one running mesh with its echo service."""

    def __init__(self, folder: Path, numbers: itertools.count[int]) -> None:
        """Meshes get folders of their own in `folder`."""
        self.folder: Path | None = None
        """Of the mesh that runs."""
        self._parent = folder
        self._numbers = numbers
        self._kind: tuple[Net, Ground] | None = None
        self._mesh: Mesh | None = None
        self._stack = contextlib.AsyncExitStack()

    async def ready(self, net: Net, ground: Ground) -> Mesh:
        """A mesh of this kind, whole. Raises NodeError, LabError."""
        if self._mesh is None or self._kind != (net, ground):
            await self.clear()
            self._mesh = await self._start(net, ground)
        await settled(self._mesh, ground)
        return self._mesh

    async def clear(self) -> None:
        """Ends the mesh, if there is one."""
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        self._mesh = self.folder = None
        await stack.aclose()

    async def _start(self, net: Net, ground: Ground) -> Mesh:
        self.folder = folder = self._parent / str(next(self._numbers))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        mesh = net.mesh(folder, ground)
        self._stack.push_async_callback(mesh.stop)
        await mesh.start(lean=True)
        await self._stack.enter_async_context(backend(mesh))
        self._kind = (net, ground)
        return mesh


def _told(run: Run) -> str:
    """The findings in a line."""
    told = []
    for it in run.findings:
        harm = (
            ""
            if it.intact
            else f" {it.broken or 'NOT INTACT'}: {it.lost} lost, {it.repeated} doubled, {it.swapped} swapped"
        )
        stall = "never went on" if it.stall is None else f"{it.stall * 1000:.0f} ms"
        told.append(f"{it.protocol} {it.load} {stall}{harm}")
    return f"{', '.join(told)}; it took {run.took:.1f} s" if run.took > 1 else ", ".join(told)
