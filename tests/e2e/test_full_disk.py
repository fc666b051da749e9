"""The disk with the state is full: nothing ends, nothing that was kept is lost, status says it, and it passes."""

import errno
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import pytest

from lab.manifest import service
from lab.node import Node, together
from lab.place import Loopback
from tests.e2e.conftest import require_simulation
from tests.e2e.traffic import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]

SIZE = "64k"
"""Of the state's file system: what a small node keeps fits in twice."""
LIFETIME = 120
"""Seconds of a certificate; a tenth of it is the pause between two looks at the credentials."""
STATE = ("node.pem", "registry.json", "services.last", "reachability.json")


@dataclass
class Disk:
    """A file system of its own, which can be filled to the last byte."""

    folder: Path

    def fill(self) -> None:
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()

    def files(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.fixture
def disk(short_path: Path) -> Iterator[Disk]:
    require_simulation()
    folder = short_path / "disk"
    folder.mkdir()
    # The wrapper of the lab has mounts of its own; nothing outside sees this one.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "full", str(folder)], check=True)
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
async def nodes(short_path: Path, disk: Disk) -> AsyncIterator[tuple[Node, Node]]:
    """One that earns the role of a relay, with its state on that disk, and one that dials it back."""
    network, psk = Loopback(SystemRandom()), secrets.token_hex(32)
    place = network.place("a")
    modules = {"edgeTunnel": {"psk": {"certificateLifetimeSeconds": LIFETIME}}}
    a = Node(
        place,
        short_path / "a",
        psk=psk,
        services=offered("early", place.address),
        modules=modules,
        config={"stateDir": str(disk.folder)},
    )
    contact = {"edgeDiscovery": {"bootstrap": [f"{place.address}:20008"]}}
    b = Node(network.place("b"), short_path / "b", psk=psk, relay_mode="off", modules=contact)
    try:
        yield a, b
    except BaseException:
        for node in (a, b):
            for name in node.started:
                print(f"--- {node.name} {name}\n{node.tail(name)}")
        raise
    finally:
        await together(node.stop(timeout=5) for node in (a, b))


def offered(name: str, address: str) -> list[dict[str, object]]:
    return service(name, cluster_ip="127.88.0.1", port=8000, node="b", address=address, target_port=8000)


async def unwritten(node: Node) -> set[str]:
    """Files that some service says it cannot write, for want of room."""
    found = set()
    for status in (await node.discovery(), await node.relay(), await node.tunnel(), await node.proxy()):
        for warning in status.warnings:
            assert "\n" not in warning
            if "cannot be written: No space left on device; " in warning:
                found.add(Path(warning.partition(" cannot be written")[0]).name)
    return found


async def test_a_full_disk_ends_nothing_and_loses_nothing(disk: Disk, nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    disk.fill()
    a.start()
    b.start("discovery")
    await together((a.ready(timeout=60), b.ready("discovery", timeout=60)))

    async def all_complain() -> bool:
        return await unwritten(a) == set(STATE)

    await eventually(all_complain, "status names every file")
    assert not disk.files() & set(STATE)

    async def known() -> bool:
        return any(peer.record.node_name == "a" and peer.verified for peer in (await b.discovery()).peers)

    await eventually(known, "it works all the same")

    async def all_written() -> bool:
        return not await unwritten(a)

    disk.make_room()
    await eventually(all_written, "what could not be kept is kept now")
    assert disk.files() == set(STATE), "and nothing else is left behind"

    disk.fill()
    a.publish(offered("late", a.place.address))
    await b.restart("discovery")

    async def new_is_unwritten() -> bool:
        return {"registry.json", "services.last"} <= await unwritten(a)

    await eventually(new_is_unwritten, "what is new cannot be kept")
    key = (disk.folder / "identity" / "node.pem").read_bytes()
    await a.kill()
    await b.kill()
    a.services_file.unlink()
    a.start()
    await a.ready(timeout=60)
    status = await a.discovery()
    assert status.services == 1
    assert "1 peers remembered" in status.sources["cache"]
    assert any("services that it had when it was last read are used" in it for it in status.warnings)
    assert key == (disk.folder / "identity" / "node.pem").read_bytes()
    disk.make_room()
    await eventually(all_written, "all is kept again")
    for name in a.started:
        assert "Traceback" not in a.log(name).read_text()
