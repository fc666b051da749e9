"""Two nodes beside each other on loopback, and crowds of clients between them.

`python -m tests.e2e.scale` runs everything with the numbers of the requirement and prints what it took;
tests/e2e/test_scale.py runs the same with smaller ones.
"""

import asyncio
import contextlib
import os
import random
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.child import Child
from lab.folder import short_folder
from lab.manifest import Document, service
from lab.node import Node, together
from lab.place import Loopback
from tests.e2e.many import PATIENCE, crowd, raise_limit
from tests.e2e.traffic import eventually

PORT, TARGET_PORT = 7000, 7001
HELD_PORT, HELD_TARGET = 7002, 7003
SERVICES = ("discovery", "tunnel", "proxy")
IDLE = 2.0  # seconds until a UDP flow without datagrams ends
LEAK = 24 << 20  # bytes that a process may have grown between one full round and the last: allocators are not exact
MIB = 1 << 20
HOLD = 3  # seconds, instead of 60
RESEND, POOL = (
    16 << 20,
    32 << 20,
)  # bytes that a session keeps for its peer (resendBufferMiB), and a tunnel of free buffers
FEW = 500  # descriptors of a process that is to run out of them


@dataclass(frozen=True, slots=True)
class Use:
    """What one process holds."""

    descriptors: int
    memory: int
    """Bytes, resident."""


class Two:
    """a and b, with a service at b that answers what it is sent, and one whose backend the test is (HELD_PORT)."""

    def __init__(self, folder: Path) -> None:
        loopback = Loopback(random.Random())
        places = [loopback.place(name) for name in ("a", "b")]
        psk = secrets.token_hex(32)
        self.nodes = [
            Node(
                place,
                folder / place.name,
                psk=psk,
                relays=places[1:],
                relay_mode="off",
                modules={"edgeProxy": {"udpIdleSeconds": IDLE}},
            )
            for place in places
        ]
        self.a, self.b = self.nodes
        self.addresses: list[tuple[str, int]] = []
        """Of the service, at a and at b."""
        self.backend: Child | None = None
        self._folder = folder
        for node in self.nodes:
            ip = loopback.address()
            self.addresses.append((ip, PORT))
            node.publish(
                [
                    *self._service("many-tcp", ip, PORT, TARGET_PORT, "TCP"),
                    *self._service("many-udp", ip, PORT, TARGET_PORT, "UDP"),
                    *self._service("held", ip, HELD_PORT, HELD_TARGET, "TCP"),
                ]
            )

    def _service(self, name: str, ip: str, port: int, target_port: int, protocol: str) -> list[Document]:
        address = self.b.place.address
        return service(
            name, cluster_ip=ip, port=port, node="b", address=address, target_port=target_port, protocol=protocol
        )

    async def start(self) -> None:
        """Until there is a path and the service answers."""
        argv = [sys.executable, "-m", "tests.e2e.many", self.b.place.address, str(TARGET_PORT)]
        self.backend = Child(argv, output=self._folder / "backend.log")
        for node in self.nodes:
            node.start(*SERVICES)
        await together(node.ready(*SERVICES) for node in self.nodes)
        await self.a.ping("b", timeout=60)
        for address in self.addresses:
            await eventually(lambda address=address: answers(address), f"the service answers at {address}")

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop(timeout=5) for node in self.nodes))
        if self.backend is not None:
            await self.backend.stop(timeout=3)

    def uses(self) -> dict[str, Use]:
        """Of proxies and tunnels."""
        return {f"{node.name} {name}": use_of(node.pid(name)) for node in self.nodes for name in ("proxy", "tunnel")}

    async def quiet(self) -> None:
        """Until no stream is open."""

        async def none() -> bool:
            return not any([(await node.tunnel()).streams for node in self.nodes])

        await eventually(none, "all streams have ended", 120)


def use_of(pid: int) -> Use:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Use(len(os.listdir(f"/proc/{pid}/fd")), pages * os.sysconf("SC_PAGE_SIZE"))


async def answers(address: tuple[str, int]) -> bool:
    with crowd(address) as one:
        await asyncio.to_thread(one.grow, 1)
        return not one.refused


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[Two]:
    """Two running nodes."""
    with short_folder() as folder:
        mesh = Two(folder)
        try:
            await mesh.start()
            yield mesh
        except BaseException:
            for node in mesh.nodes:
                for name in ("tunnel", "proxy"):
                    print(f"--- {node.name} {name}\n{node.tail(name)}")
            raise
        finally:
            await mesh.stop()


def no_leak(before: dict[str, Use], after: dict[str, Use], leak: int = LEAK) -> None:
    """Raises AssertionError where a process holds more than it did."""
    for name, use in after.items():
        assert use.descriptors <= before[name].descriptors + 16, f"{name}: {before[name]} became {use}"
        assert use.memory <= before[name].memory + leak, f"{name}: {before[name]} became {use}"


# ── scenarios ──


async def flows(mesh: Two, count: int, rounds: int, tell: Callable[[str], None] = print) -> None:
    """UDP flows are opened, answered, and end because nothing comes any more; over and over."""
    before = first = mesh.uses()
    for number in range(rounds):
        with crowd(mesh.addresses[0], socket.SOCK_DGRAM) as clients:
            # As many at once as a socket's receive buffer takes: what is beyond is lost, as it is with UDP.
            await asyncio.to_thread(clients.grow, count, at_once=100)
            assert len(clients.socks) == count and not clients.refused
            full = mesh.uses()
        await mesh.quiet()
        after = mesh.uses()
        tell(f"round {number + 1}, {clients.again} asked again: {_shown(full)}; afterwards {_shown(after)}")
        for name, use in after.items():
            assert use.descriptors <= before[name].descriptors + 16, f"{name}: {before[name]} became {use}"
        first = after if number == 0 else first
    no_leak(first, mesh.uses())


async def connections(mesh: Two, count: int, tell: Callable[[str], None] = print) -> None:
    """Connections that all stay open, and all are answered again."""
    before = mesh.uses()
    with crowd(mesh.addresses[0]) as clients:
        await asyncio.to_thread(clients.grow, count, at_once=500)
        assert len(clients.socks) == count and not clients.refused
        full = mesh.uses()
        assert await asyncio.to_thread(clients.talk) == count
    tell(f"{count} open: {_shown(full)}")
    for name, use in full.items():
        assert use.memory <= before[name].memory + count * 16 * 1024, f"{name}: {before[name]} became {use}"
    await mesh.quiet()
    for name, use in mesh.uses().items():
        assert use.descriptors <= before[name].descriptors + 16, f"{name}: {before[name]} became {use}"


async def storm(mesh: Two, count: int, tell: Callable[[str], None] = print) -> None:
    """As many connections as fast as this machine makes them: each is served or refused, none hangs."""
    before = mesh.uses()
    start = time.monotonic()
    with crowd(mesh.addresses[0]) as clients:
        await asyncio.to_thread(clients.grow, count)
        seconds = time.monotonic() - start
        tell(f"{count} in {seconds:.1f} s ({count / seconds:.0f}/s), {clients.refused} refused: {_shown(mesh.uses())}")
        assert not clients.refused
        assert await asyncio.to_thread(clients.talk) == count
    await mesh.quiet()
    no_leak(before, mesh.uses(), LEAK + count * 4096)


async def vanish(mesh: Two, count: int, tell: Callable[[str], None] = print) -> None:
    """Clients that go without a word: their connections end at both nodes, and others do not notice."""
    before = mesh.uses()
    with crowd(mesh.addresses[0]) as others:
        await asyncio.to_thread(others.grow, 10)
        with crowd(mesh.addresses[0]) as clients:
            await asyncio.to_thread(clients.grow, count, at_once=500)
            clients.close(reset=True)
        assert await asyncio.to_thread(others.talk) == 10
    await mesh.quiet()
    tell(f"{count} vanished: {_shown(mesh.uses())}")
    no_leak(before, mesh.uses(), LEAK + count * 4096)


async def gone(mesh: Two, count: int, tell: Callable[[str], None] = print) -> None:
    """b falls silent while clients at a send it as much as is taken: what waits is bounded, and given back when the session's
    hold is over and the clients have been told."""
    before = mesh.uses()["a tunnel"]
    hold(mesh.a, HOLD)
    with crowd(mesh.addresses[0]) as clients:
        await asyncio.to_thread(clients.grow, count)
        mesh.b.signal(signal.SIGSTOP, "tunnel")
        try:
            sent = await asyncio.to_thread(fill, clients.socks)
            full = mesh.uses()["a tunnel"]
            await asyncio.to_thread(until_reset, clients.socks)
        finally:
            mesh.b.signal(signal.SIGCONT, "tunnel")
    hold(mesh.a, None)
    await mesh.a.ping("b", timeout=60)
    await mesh.quiet()
    after = mesh.uses()["a tunnel"]
    sizes = " and ".join(f"{use.memory / MIB:.0f}" for use in (before, full, after))
    tell(
        f"{count} streams towards a node that is gone took {sent / MIB:.0f} MiB: a tunnel {sizes} MiB before, with and after them"
    )
    assert full.memory <= before.memory + 2 * RESEND + LEAK
    assert after.memory <= before.memory + POOL + LEAK


def hold(node: Node, seconds: float | None) -> None:
    """How long a session without a path is kept; None: the default."""
    config = yaml.safe_load(node.config_file.read_text())
    tunnel = config["modules"]["edgeTunnel"]
    tunnel.pop("sessionHoldSeconds", None)
    if seconds is not None:
        tunnel["sessionHoldSeconds"] = seconds
    node.configure(config)


def fill(socks: list[socket.socket]) -> int:
    """Sends on all of them until none has taken anything for a second. Returns the bytes."""
    chunk, sent, last = bytes(64 * 1024), 0, time.monotonic()
    while time.monotonic() - last < 1.0:
        for sock in socks:
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(chunk)
                last = time.monotonic()
        time.sleep(0.01)
    return sent


def until_reset(socks: list[socket.socket]) -> None:
    """Reads what comes, until all are reset. TimeoutError after PATIENCE."""
    for sock in socks:
        sock.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            while sock.recv(64 * 1024):
                pass


async def drip(mesh: Two, count: int, tell: Callable[[str], None] = print) -> None:
    """Clients that send a byte now and then, and never read: bounded memory, and others are served as ever."""
    before = mesh.uses()
    with crowd(mesh.addresses[0]) as slow:
        await asyncio.to_thread(slow.grow, count, at_once=500)
        for _ in range(5):
            for sock in slow.socks:
                sock.send(b"x")
            with crowd(mesh.addresses[0]) as others:
                await asyncio.to_thread(others.grow, 20)
                assert await asyncio.to_thread(others.talk) == 20
        full = mesh.uses()
    tell(f"{count} slow senders: {_shown(full)}")
    for name, use in full.items():
        assert use.memory <= before[name].memory + LEAK + count * 16 * 1024, f"{name}: {before[name]} became {use}"
    await mesh.quiet()


async def limit(
    mesh: Two, name: str, node: Node, address: tuple[str, int], tell: Callable[[str], None] = print
) -> None:
    """A process that has hardly any descriptors left refuses new clients at once. Who is connected does not notice, and
    when some have gone, others are served."""
    pid = node.pid(name)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (FEW, before[1]))
    try:
        with crowd(address) as clients:
            await asyncio.to_thread(clients.grow, FEW + 200, at_once=50)
            served = len(clients.socks)
            tell(f"{node.name} {name}, {FEW} descriptors: {served} served, {clients.refused} refused")
            assert clients.refused >= 200
            assert served >= FEW // 3, "a pump of the proxy has two descriptors for each of them"
            assert await asyncio.to_thread(clients.talk) == served
            for sock in clients.socks[:100]:
                sock.close()
            del clients.socks[:100]

            async def room_again() -> bool:
                with crowd(address) as more:
                    await asyncio.to_thread(more.grow, 20)
                    return not more.refused

            await eventually(room_again, "who comes now is served")
            assert await asyncio.to_thread(clients.talk) == served - 100
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    await mesh.quiet()


def _shown(uses: dict[str, Use]) -> str:
    return ", ".join(f"{name} {use.descriptors} fds {use.memory / MIB:.0f} MiB" for name, use in uses.items())


async def main() -> None:
    raise_limit()
    async with two() as mesh:
        print("idle:", _shown(mesh.uses()))
        for name, scenario in {
            "flows": lambda: flows(mesh, 5000, 10),
            "connections": lambda: connections(mesh, 10_000),
            "storm": lambda: storm(mesh, 5000),
            "vanish": lambda: vanish(mesh, 2000),
            "gone": lambda: gone(mesh, 50),
            "limit at the entry": lambda: limit(mesh, "tunnel", mesh.a, mesh.addresses[0]),
            "limit at the exit": lambda: limit(mesh, "tunnel", mesh.b, mesh.addresses[0]),
            "limit on the spot": lambda: limit(mesh, "proxy", mesh.b, mesh.addresses[1]),
            "drip": lambda: drip(mesh, 2000),
        }.items():
            if sys.argv[1:] and name.split()[0] not in sys.argv[1:]:
                continue
            start = time.monotonic()
            await scenario()
            print(f"{name}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    asyncio.run(main())
