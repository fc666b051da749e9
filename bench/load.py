"""The near end of every measurement: clients that count what comes back.

`python -m bench.load KIND HOST PORT …` runs one of them and prints one line of JSON; an answer that is not
what was sent ends it with exit code 1 and a line on standard error. Each is one process with one epoll
loop, so that the load costs the same whatever is being measured.

| Kind | Arguments | What it does | Result |
|---|---|---|---|
| push | BYTES | one stream of BYTES into a sink | bytes, seconds |
| pull | BYTES | one stream of BYTES out of a source | bytes, seconds |
| rr | CONNECTIONS TOTAL | 64-byte round trips, one outstanding on each connection | count, seconds |
| connect | CONCURRENCY TOTAL | connect, 64 bytes there and back, close | count, seconds |
| ping | COUNT | one round trip after the other on one connection | count, p50_us, p99_us |
| hold | STREAMS | opens STREAMS, one round trip on each, keeps them until standard input ends | count |
| tick | PERIOD_MS | sends a numbered message every period, checks the echoes | per line on standard input: gap_ms, count, behind |
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable

from bench.serve import CHUNK, COUNT, noise

SIZE = 64  # bytes of a request and of its answer
REQUEST = bytes(range(SIZE))
OPENING = 64  # connections of `hold` that are being opened at a time

Result = dict[str, float]


class Wrong(Exception):
    """What came back is not what was sent."""


def _connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def push(address: tuple[str, int], size: int) -> Result:
    """One stream of `size` bytes into a sink; the clock stops when the sink has confirmed the count."""
    pages = noise("bench-push")
    with _connect(address) as connection:
        connection.settimeout(None)
        begin = time.monotonic()
        left = size
        while left:
            left -= os.sendfile(connection.fileno(), pages, 0, min(left, CHUNK))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while len(answer) < COUNT and (data := connection.recv(COUNT)):
            answer += data
        seconds = time.monotonic() - begin
    os.close(pages)
    if int.from_bytes(answer, "big") != size or len(answer) != COUNT:
        raise Wrong(f"sent {size} bytes, the sink counted {int.from_bytes(answer, 'big')}")
    return {"bytes": size, "seconds": seconds}


def pull(address: tuple[str, int], size: int) -> Result:
    """One stream of `size` bytes out of a source; the bytes are counted, not copied."""
    scratch = bytearray(CHUNK)
    with _connect(address) as connection:
        connection.settimeout(None)
        begin = time.monotonic()
        connection.sendall(size.to_bytes(COUNT, "big"))
        total = 0
        while count := connection.recv_into(scratch, CHUNK, socket.MSG_TRUNC):
            total += count
        seconds = time.monotonic() - begin
    if total != size:
        raise Wrong(f"asked the source for {size} bytes, got {total}")
    return {"bytes": total, "seconds": seconds}


def rr(address: tuple[str, int], connections: int, total: int) -> Result:
    """`total` round trips of 64 bytes over `connections`, each with one request outstanding."""
    epoll = select.epoll()
    sockets = [_connect(address) for _ in range(connections)]
    partial: dict[int, bytes] = {}
    for connection in sockets:
        _round_trip(connection)  # the path is up before the clock starts
        connection.setblocking(False)
        epoll.register(connection.fileno(), select.EPOLLIN)
    read, write, poll, request = os.read, os.write, epoll.poll, REQUEST
    begin = time.monotonic()
    issued = done = 0
    for connection in sockets[:total]:
        write(connection.fileno(), request)
        issued += 1
    while done < total:
        for fd, _ in poll(-1, connections):
            data = read(fd, SIZE)
            if data != request:
                data = partial.pop(fd, b"") + data
                if len(data) < SIZE and data and data == request[: len(data)]:
                    partial[fd] = data
                    continue
                if data != request:
                    raise Wrong(f"an answer differs from its request after {done} round trips: {data[:80]!r}")
            done += 1
            if issued < total:
                write(fd, request)
                issued += 1
    seconds = time.monotonic() - begin
    for connection in sockets:
        connection.close()
    return {"count": done, "seconds": seconds}


def connect(address: tuple[str, int], concurrency: int, total: int) -> Result:
    """`total` short connections, `concurrency` at a time."""
    epoll = select.epoll()
    alive: dict[int, socket.socket] = {}
    opened = done = 0
    begin = time.monotonic()

    def start() -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        code = connection.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, f"cannot connect to {address[0]}:{address[1]}: {os.strerror(code)}")
        alive[connection.fileno()] = connection
        epoll.register(connection.fileno(), select.EPOLLOUT)

    while opened < min(concurrency, total):
        start()
        opened += 1
    while done < total:
        for fd, event in epoll.poll(-1, concurrency):
            connection = alive[fd]
            if event & select.EPOLLOUT:
                connection.send(REQUEST)
                epoll.modify(fd, select.EPOLLIN)
                continue
            data = connection.recv(SIZE)
            if data != REQUEST:
                raise Wrong(f"the answer on short connection {done} is {len(data)} bytes, or not what was sent")
            del alive[fd]
            connection.close()
            done += 1
            if opened < total:
                start()
                opened += 1
    return {"count": done, "seconds": time.monotonic() - begin}


def ping(address: tuple[str, int], count: int) -> Result:
    """`count` round trips, one after the other, on one connection."""
    with _connect(address) as connection:
        connection.settimeout(None)
        _round_trip(connection)
        samples = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            _round_trip(connection)
            samples.append((time.perf_counter_ns() - begin) / 1000)
    cuts = statistics.quantiles(samples, n=100)
    return {"count": len(samples), "p50_us": cuts[49], "p99_us": cuts[98]}


def hold(address: tuple[str, int], streams: int) -> Result:
    """Opens `streams` connections, each proved by one round trip, and keeps them until standard input ends."""
    held: list[socket.socket] = []
    while len(held) < streams:
        batch = [_connect(address) for _ in range(min(OPENING, streams - len(held)))]
        for connection in batch:
            _round_trip(connection)
        held += batch
    print(json.dumps({"count": len(held)}), flush=True)
    sys.stdin.read()
    for connection in held:
        connection.close()
    return {"count": len(held)}


def tick(address: tuple[str, int], period_ms: float) -> Result:
    """A numbered message every `period_ms`; the echoes must be all of them, in order.

    Every line on standard input is answered by the longest time without an echo since the last "reset" line,
    the number of echoes so far, and how many messages are still without one. At the end of input it waits for what is still on its way (at most 30 s).
    """
    connection = _connect(address)
    connection.setblocking(False)
    epoll = select.epoll()
    epoll.register(connection.fileno(), select.EPOLLIN)
    epoll.register(0, select.EPOLLIN)
    period = period_ms / 1000
    ticker = Ticker(time.monotonic(), period)
    outbox = bytearray()
    closing = 0.0
    while True:
        now = time.monotonic()
        if closing and (ticker.echoed == ticker.sent or now > closing + 30):
            break
        if not closing and len(outbox) < CHUNK:
            outbox += ticker.due(now)
        if outbox:
            try:
                del outbox[: connection.send(outbox)]
            except BlockingIOError:
                pass  # stalled: the kernel's buffer is full, the echoes tell how long
        for fd, _ in epoll.poll(max(0.0, ticker.next_at - time.monotonic()) if not closing else 0.1, 2):
            if fd != 0:
                data = connection.recv(CHUNK)
                if not data:
                    raise Wrong(f"the stream ended after {ticker.echoed} of {ticker.sent} echoes")
                ticker.receive(data, time.monotonic())
            elif word := os.read(0, 4096):
                print(json.dumps(ticker.report(time.monotonic(), reset=b"reset" in word)), flush=True)
            else:
                epoll.unregister(0)
                closing = time.monotonic()
    connection.close()
    if ticker.echoed != ticker.sent:
        raise Wrong(f"{ticker.sent - ticker.echoed} of {ticker.sent} messages were lost")
    return {"count": ticker.echoed}


class Ticker:
    """Numbers the messages of `tick`, checks the echoes and keeps the longest gap between them."""

    def __init__(self, now: float, period: float) -> None:
        self.sent = self.echoed = 0
        self.next_at = now
        self._period = period
        self._last_echo = now
        self._gap = 0.0
        self._partial = b""

    def due(self, now: float) -> bytes:
        """The messages that should have gone out by `now`."""
        out = []
        while self.next_at <= now:
            out.append(self.sent.to_bytes(SIZE, "big"))
            self.sent += 1
            self.next_at += self._period
        return b"".join(out)

    def receive(self, data: bytes, now: float) -> None:
        self._gap = max(self._gap, now - self._last_echo)
        self._last_echo = now
        data = self._partial + data
        whole = len(data) // SIZE * SIZE
        for offset in range(0, whole, SIZE):
            number = int.from_bytes(data[offset : offset + SIZE], "big")
            if number != self.echoed:
                raise Wrong(f"echo {number} came where {self.echoed} was expected")
            self.echoed += 1
        self._partial = data[whole:]

    def report(self, now: float, *, reset: bool = False) -> Result:
        """A gap that has not ended counts as long as it is by now; `reset` starts afresh at `now`."""
        gap = max(self._gap, now - self._last_echo)
        if reset:
            self._gap = 0.0
            self._last_echo = now
        return {"gap_ms": gap * 1000, "count": self.echoed, "behind": self.sent - self.echoed}


def _round_trip(connection: socket.socket) -> None:
    connection.sendall(REQUEST)
    data = connection.recv(SIZE)
    while len(data) < SIZE and data:
        more = connection.recv(SIZE - len(data))
        if not more:
            break
        data += more
    if data != REQUEST:
        raise Wrong(f"sent {SIZE} bytes, {len(data)} came back, or others than were sent")


KINDS: dict[str, Callable[..., Result]] = {
    "push": push,
    "pull": pull,
    "rr": rr,
    "connect": connect,
    "ping": ping,
    "hold": hold,
    "tick": tick,
}


def main() -> int:
    kind, host, port, *arguments = sys.argv[1:]
    try:
        result = KINDS[kind]((host, int(port)), *map(int, arguments))
    except (OSError, Wrong) as error:
        print(f"{kind} to {host}:{port}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
