"""CPU time of the proxy for one connection, on the entry and on the exit side. Not a test: prints a table.

    python -m tests.proxy.measure_handover [connections]

The proxy runs as its own process; this one plays tunnel and discovery, and children of it the clients and the backend.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import psutil
import yaml

from protos import tunnel_pb2
from tests.proxy.conftest import until
from tests.proxy.neighbours import Discovery, Tunnel, service

IP = "127.77.31.7"


def clients(count: int, width: int) -> None:
    """Connects `count` times, `width` at once; each waits until the far end closes."""
    import selectors

    selector = selectors.EpollSelector()

    def connect() -> None:
        sock = socket.socket()
        sock.connect((IP, 80))
        selector.register(sock, selectors.EVENT_READ)

    for _ in range(width):
        connect()
    started = width
    while started < count or len(selector.get_map()) > 0:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            selector.unregister(sock)
            sock.close()
            if started < count:
                started += 1
                connect()


def backend() -> None:
    """Accepts and closes for ever."""
    listening = socket.create_server((IP, 8080), backlog=1024)
    while True:
        listening.accept()[0].close()


class FastTunnel(Tunnel):
    """Closes what it is given at once."""

    count = 0

    def _receive(self, connection: socket.socket) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
            except BlockingIOError:
                return
            if not data:
                self._loop.remove_reader(connection)
                return
            for fd in fds:
                os.close(fd)
            self.count += 1


async def measure(count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    (folder / "psk").write_text("only-for-this-measurement-0123456789\n")
    (folder / "run").mkdir()
    (folder / "causeway.yaml").write_text(yaml.safe_dump({"nodeName": "n"}))
    tunnel, discovery = FastTunnel(folder / "run"), Discovery(folder / "run")  # type: ignore[abstract]
    own = (sys.executable, "-m", "tests.proxy.measure_handover")  # not forked: gRPC has threads by now
    children = [await asyncio.create_subprocess_exec(*own, "backend")]
    await tunnel.start()
    await discovery.start()
    discovery.put(service("web", IP, ("b", "10.0.0.1", 1), ("c", "10.0.0.2", 2)), service("own", "", ("n", IP, 8080)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.proxy", "--config", str(folder / "causeway.yaml")
    )
    watched = psutil.Process(process.pid)

    def spent() -> float:
        times = watched.cpu_times()
        return times.user + times.system

    try:
        await until(lambda: tunnel.listeners)
        await asyncio.sleep(0.5)
        print(f"idle: {watched.memory_full_info().pss / 2**20:.0f} MiB PSS, {len(watched.threads())} threads")
        for width in (1, 32, 256):
            before, tunnel.count = spent(), 0
            started = asyncio.get_running_loop().time()
            child = await asyncio.create_subprocess_exec(*own, "clients", str(count), str(width))
            children.append(child)
            await until(lambda: tunnel.count >= count)
            wall = asyncio.get_running_loop().time() - started
            print(
                f"entry, {width:3} clients at once: {(spent() - before) / count * 1e6:.1f} µs a connection, {count / wall:.0f}/s"
            )
        for batch in (1, 8, 32):
            before, tunnel.count = spent(), 0
            target = tunnel_pb2.Target(network=tunnel_pb2.NETWORK_TCP, address=f"{IP}:8080", service="default/own")
            rest = count
            while rest:
                now = min(batch, rest)
                made = {
                    (token := os.urandom(16)): tunnel_pb2.Offer(
                        token=token, peer="a", target=target, client="1.2.3.4:5"
                    )
                    for _ in range(now)
                }
                goal = tunnel.count + now
                tunnel.push(made)
                while tunnel.count < goal:  # noqa: ASYNC110 (an event would be one more thing to measure)
                    await asyncio.sleep(0)
                rest -= now
            print(f"exit, {batch:2} offers a message: {(spent() - before) / count * 1e6:.1f} µs a stream")
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        for child in children:
            if child.returncode is None:
                child.kill()
            await child.wait()
        await tunnel.stop()
        await discovery.stop()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["backend"]:
            backend()
        case ["clients", number, width]:
            clients(int(number), int(width))
        case [number]:
            asyncio.run(measure(int(number)))
        case _:
            asyncio.run(measure(10_000))
