"""Wires with delay, jitter, loss, rate and darkness, in user space: `python -m lab.wire`.

Many kernels come without netem. This process joins pairs of interfaces of its own namespace by raw packet
sockets and forwards every frame when its time has come. PACKET_VNET_HDR keeps 64 KiB segmentation offload
frames whole, so a frame costs one read and one write whatever its size.

Control is one JSON object a line on standard input, answered by one a line on standard output:

    {"op": "add", "id": 1, "a": "v0", "b": "v1", "forward": {...}, "backward": {...}}
    {"op": "shape", "id": 1, "forward": {...}, "backward": {...}}
    {"op": "count", "id": 1}

where forward (a → b) and backward are the fields of Shape. It ends when standard input ends.
"""

from __future__ import annotations

import ctypes
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

SOL_PACKET = 263  # linux/socket.h
PACKET_VNET_HDR = 15  # linux/if_packet.h: each frame is preceded by its offload header
PACKET_IGNORE_OUTGOING = 23  # linux/if_packet.h: do not show us what we sent ourselves
VNET_HEADER = 10  # bytes; linux/virtio_net.h, struct virtio_net_hdr
ETH_P_ALL = 3  # linux/if_ether.h
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
PR_SET_TIMERSLACK = 29  # linux/prctl.h
SOCKET_BUFFER = 16 << 20  # bytes; a burst that arrives while we handle other wires
FRAME = 70_000  # bytes; more than the largest offload frame (64 KiB + headers)
BURST = 32  # frames read from one interface before the others get their turn


@dataclass(frozen=True)
class Shape:
    """What one direction of a wire does to frames."""

    delay: float = 0.0
    """Seconds from one end to the other."""
    jitter: float = 0.0
    """Seconds; the delay varies uniformly by ± this much. Frames keep their order."""
    loss: float = 0.0
    """Share of frames that vanish, 0 to 1. A frame may be a 64 KiB offload frame: turn GSO off for realism."""
    rate: float = 0.0
    """Bits per second; 0: no limit."""
    queue: int = 2_000_000
    """Bytes that may wait for the rate; what comes on top is dropped."""
    dark: bool = False
    """Everything vanishes silently, what is under way included."""


class Direction:
    """When a frame leaves at the other end. No clock and no sockets: time is an argument."""

    def __init__(self, shape: Shape, dice: random.Random) -> None:
        self.shape = shape
        self.frames = self.bytes = self.dropped = 0
        self._dice = dice
        self._free_at = 0.0  # when the transmitter has sent what was queued before
        self._last = 0.0  # no frame overtakes another

    def due(self, now: float, size: int) -> float | None:
        """Time at which a frame of `size` bytes that arrives now comes out; None: it is lost."""
        shape = self.shape
        self.frames += 1
        self.bytes += size
        leaves = now
        if shape.dark or (shape.loss and self._dice.random() < shape.loss):
            self.dropped += 1
            return None
        if shape.rate:
            start = max(now, self._free_at)
            if (start - now) * shape.rate / 8 > shape.queue:
                self.dropped += 1
                return None
            self._free_at = leaves = start + size * 8 / shape.rate
        leaves += shape.delay
        if shape.jitter:
            leaves += self._dice.uniform(-shape.jitter, shape.jitter)
        self._last = leaves = max(leaves, self._last)
        return leaves


def _interface(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, SOCKET_BUFFER)
        except PermissionError:  # needs the right over the whole machine, not only over the namespace
            sock.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)
    sock.bind((name, ETH_P_ALL))
    sock.setblocking(False)
    return sock


class Forwarder:
    """The wires of one process."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._wires: dict[int, tuple[Direction, Direction]] = {}
        self._routes: dict[socket.socket, tuple[Direction, socket.socket]] = {}
        self._flying: list[
            tuple[float, int, Direction, socket.socket, bytes]
        ] = []  # bounded by the shapes' rates and queues
        self._ticket = 0
        self._buffer = memoryview(bytearray(FRAME))

    def command(self, message: dict[str, Any]) -> dict[str, Any]:
        """Obeys one control message."""
        wire = message["id"]
        if message["op"] == "count":
            return {
                way: {"frames": it.frames, "bytes": it.bytes, "dropped": it.dropped}
                for way, it in zip(("forward", "backward"), self._wires[wire], strict=True)
            }
        shapes = [Shape(**message[way]) for way in ("forward", "backward")]
        if message["op"] == "add":
            a, b = _interface(message["a"]), _interface(message["b"])
            there, back = (Direction(shape, self._dice) for shape in shapes)
            self._wires[wire] = (there, back)
            self._routes[a] = (there, b)
            self._routes[b] = (back, a)
        elif message["op"] == "shape":
            for direction, shape in zip(self._wires[wire], shapes, strict=True):
                direction.shape = shape
        else:
            raise ValueError(f"op is {message['op']!r}, expected add, shape or count")
        return {"ok": True}

    def run(self, control: int) -> None:
        """Forwards until the control descriptor ends."""
        pending = b""
        while True:
            wait = max(0.0, self._flying[0][0] - time.monotonic()) if self._flying else None
            # select, not epoll: its timeout has microseconds, and wires are few
            watched: list[int | socket.socket] = [control, *self._routes]
            for ready in select.select(watched, [], [], wait)[0]:
                if isinstance(ready, socket.socket):
                    self._receive(ready)
                    continue
                data = os.read(control, 65536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._answer(line)
            self._deliver()

    def _answer(self, line: bytes) -> None:
        try:
            answer = self.command(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)

    def _receive(self, source: socket.socket) -> None:
        direction, target = self._routes[source]
        for _ in range(BURST):
            try:
                size = source.recv_into(self._buffer)
            except OSError:  # nothing more, or the interface went down
                return
            now = time.monotonic()
            leaves = direction.due(now, size - VNET_HEADER)
            if leaves is None:
                continue
            if leaves <= now and not self._flying:
                self._send(direction, target, self._buffer[:size])
            else:
                self._ticket += 1  # keeps the order of frames that are due at the same time
                heapq.heappush(self._flying, (leaves, self._ticket, direction, target, bytes(self._buffer[:size])))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._flying and self._flying[0][0] <= now:
            _, _, direction, target, frame = heapq.heappop(self._flying)
            if direction.shape.dark:
                direction.dropped += 1
            else:
                self._send(direction, target, frame)

    def _send(self, direction: Direction, target: socket.socket, frame: bytes | memoryview) -> None:
        try:
            target.send(frame)
        except OSError:  # interface down or its queue full: a wire drops
            direction.dropped += 1


def main() -> None:
    """Entry point of the process."""
    # The kernel may deliver timers 50 µs late by default; at 1 µs a delay is good to 0.1 ms.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    Forwarder(random.Random()).run(sys.stdin.fileno())


def describe(shape: Shape) -> dict[str, Any]:
    """A shape as the control protocol writes it."""
    return asdict(shape)


if __name__ == "__main__":
    main()
