"""A running mesh of four nodes: on loopback for every test, behind real NATs for tests marked `lab`."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import NoReturn

import pytest

from lab.folder import short_folder
from lab.mesh import Mesh
from lab.rootless import available, probe
from tests.e2e.many import raise_limit
from tests.e2e.scale import Two
from tests.e2e.traffic import PORT, TARGET_PORT, echo_server, eventually

DESCRIPTORS = 6000  # of each process, for the largest crowd of the tests


@pytest.fixture(scope="module", params=["loopback", pytest.param("simulated", marks=pytest.mark.lab)])
def running_mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Started once a module; `mesh` repairs it before each test."""
    if request.param == "simulated":
        require_simulation()
    with short_folder() as folder:
        mesh = Mesh.simulated(folder) if request.param == "simulated" else Mesh.loopback(folder)
        try:
            mesh.publish("echo", PORT, TARGET_PORT)
            asyncio.run(mesh.start(lean=True))
            yield mesh
        finally:
            asyncio.run(mesh.stop())


@pytest.fixture
async def mesh(running_mesh: Mesh, request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    """Everything runs, a and b have a session with a link over each relay, and an echo server listens at b."""
    mesh = running_mesh
    await mesh.heal()
    async with echo_server(mesh.b.place):
        try:
            await mesh.a.ping("b", timeout=60)
            await eventually(mesh.warm, "a and b have a link over each relay")
            yield mesh
        except BaseException:
            print_logs(mesh)
            raise
    if request.node.stash.get(FAILED, False):
        print_logs(mesh)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Two]:
    """Two nodes on loopback with a direct path, started once a module: each test leaves them as it found them."""
    if raise_limit() < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors (ulimit -Hn)")
    with short_folder() as folder:
        made = Two(folder)
        try:
            asyncio.run(made.start())
            yield made
        finally:
            asyncio.run(made.stop())


def require_simulation() -> None:
    """Skips where networks cannot be simulated; fails instead with NATLAB_REQUIRED=1."""
    why = probe()
    if why is not None:
        refuse(f"{available() or 'run the tests under `python -m lab.rootless`'}: {why}")


def refuse(why: str) -> NoReturn:
    """Skips what needs something that is not here; fails instead with NATLAB_REQUIRED=1."""
    if os.environ.get("NATLAB_REQUIRED") == "1":
        pytest.fail(why)
    pytest.skip(why)


def print_logs(mesh: Mesh) -> None:
    """What the nodes said, for the report of a failed test."""
    for node in mesh.nodes.values():
        for service in ("discovery", "relay", "tunnel", "proxy"):
            print(f"--- {node.name} {service}\n{node.tail(service)}")


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remembers failures, so that fixtures can say more about them."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report
