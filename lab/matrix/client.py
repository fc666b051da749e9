"""The applications at a: `python -m lab.matrix.client ADDRESS PORT BULK_RATE LOAD…`.

A process of its own, so that nothing the lab does meanwhile delays a time stamp. Opens all connections of these loads,
lets them run until each has been answered some times, prints {"ready": true}, and then obeys one word a line on standard
input, answered by one JSON object a line:

    use             the idle connections say something        {}
    flows           is all as usual again?                    {"flows": true}
    finish SINCE    ends all properly; what the event at the
                    monotonic time SINCE did to them          [Finding, …]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

from lab.matrix.flow import IDLE, TCP, Flow, Pace, paces

PATIENCE = 60.0  # seconds for what takes less than one when all is well; sessions are held as long
FIRST_WORDS = 3  # answers of each connection before it is ready
LAG = 0.4  # seconds behind which a connection is not as usual: more than ten round trips, with 2 % loss several resends
UDP_TAIL = 1.0  # seconds that late datagrams get at the end; the mesh drops what is older
UDP_AGAIN = 0.020  # seconds after which a UDP client asks once more: as exact as the pace of requests


class Connection(asyncio.Protocol, asyncio.DatagramProtocol):
    """One flow and the socket under it."""

    def __init__(self, pace: Pace) -> None:
        self.flow = Flow(pace)
        self.transport: Any = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._heard = asyncio.Event()
        self._ended = asyncio.Event()
        self._ending = False

    # -- called by asyncio

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.flow.receive(data, time.monotonic())
        self._heard.set()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.flow.receive(data, time.monotonic())
        self._heard.set()

    def error_received(self, exc: Exception) -> None:
        """An ICMP error: the datagram is lost, and counted as such."""

    def eof_received(self) -> None:
        if not self._ending:
            self.flow.broken = "the other end ended it"

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.flow.broken = f"{type(exc).__name__}: {exc}"
        self.stop()
        self._ended.set()
        self._heard.set()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    # -- called by the client

    async def start(self, address: str, port: int) -> None:
        """Connects, and returns when it is as usual."""
        if self.flow.pace.protocol == TCP:
            await self._loop.create_connection(lambda: self, address, port)
        else:
            await self._loop.create_datagram_endpoint(lambda: self, remote_addr=(address, port))
        if self.flow.pace.every:
            self._tick(self._loop.time())
        while len(self.flow.arrivals) < FIRST_WORDS and not self._ended.is_set():
            await (self._hear() if self.flow.pace.every else self.use())

    async def use(self) -> None:
        """Says something and waits for the answer; over UDP asks again when there is none."""
        before = len(self.flow.arrivals)
        self._send()
        while len(self.flow.arrivals) == before and not self._ended.is_set():
            try:
                async with asyncio.timeout(None if self.flow.pace.protocol == TCP else UDP_AGAIN):
                    await self._hear()
            except TimeoutError:
                self._send()

    def stop(self) -> None:
        """Sends nothing any more by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def finish(self) -> None:
        """Waits for what is under way, and ends the connection as applications do."""
        if self.flow.pace.protocol == TCP:
            self._ending = True
            if not self._ended.is_set():
                self.transport.write_eof()
            try:
                await asyncio.wait_for(self._ended.wait(), PATIENCE)
            except TimeoutError:
                self.flow.broken = self.flow.broken or f"no end of the stream within {PATIENCE:.0f} s"
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UDP_TAIL):
                    while not self.flow.complete:
                        await self._hear()
        self.transport.abort()

    async def _hear(self) -> None:
        """Waits until something comes, or the connection is lost."""
        self._heard.clear()
        await self._heard.wait()

    def _send(self) -> None:
        if self._ended.is_set():
            return
        message = self.flow.message(time.monotonic())
        if self.flow.pace.protocol == TCP:
            self.transport.write(message)
        else:
            self.transport.sendto(message)

    def _tick(self, due: float) -> None:
        # Bulk waits while nobody takes it; a request is asked all the same (some 100 bytes a second).
        if not (self._paused and self.flow.pace.batch * self.flow.pace.size > 500):
            self._send()
        due = (
            max(due, self._loop.time() - self.flow.pace.every) + self.flow.pace.every
        )  # what was missed is not made up
        self._timer = self._loop.call_at(due, self._tick, due)


class Client:
    """All connections, and the conversation with the lab."""

    def __init__(self, address: str, port: int, every: list[Pace]) -> None:
        self._address, self._port = address, port
        self._connections = [Connection(it) for it in every]
        self._uses: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until told to finish, or until nobody tells any more."""
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(it.start(self._address, self._port) for it in self._connections))
        except TimeoutError:
            heard = [
                f"{it.flow.pace.protocol} {it.flow.pace.load}: {len(it.flow.arrivals)}" for it in self._connections
            ]
            sys.exit(f"traffic did not begin within {PATIENCE:.0f} s; answers so far: {', '.join(heard)}")
        _say({"ready": True})
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            match line.split():
                case [b"use"]:
                    idle = (it for it in self._connections if it.flow.pace.load == IDLE)
                    self._uses += [asyncio.create_task(it.use()) for it in idle]
                    _say({})
                case [b"flows"]:
                    now = time.monotonic()
                    _say({"flows": all(it.flow.flows(now, LAG) for it in self._connections)})
                case [b"finish", since]:
                    _say(await self._finish(float(since)))
                    return
                case _:
                    raise ValueError(f"got {line!r}, expected use, flows or finish SINCE")

    async def _finish(self, since: float) -> list[dict[str, Any]]:
        for it in self._connections:
            it.stop()
        end = time.monotonic()
        for task in self._uses:
            task.cancel()
        await asyncio.gather(*self._uses, return_exceptions=True)
        await asyncio.gather(*(it.finish() for it in self._connections))
        return [it.flow.finding(since, end).as_dict() for it in self._connections]


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    address, port, bulk_rate, *loads = arguments
    every = [it for load in loads for it in paces(load, float(bulk_rate))]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(address, int(port), every))


async def _run(address: str, port: int, every: list[Pace]) -> None:
    await Client(address, port, every).run()


if __name__ == "__main__":
    main(sys.argv[1:])
