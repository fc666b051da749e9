"""The command's connection to `tunnel.attach`: sockets go in, results come back (protos/tunnel.proto)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from causeway import place, wording
from causeway.errors import CommandError

if TYPE_CHECKING:
    from causeway.forward.target import Backend
    from protos.tunnel_pb2 import AttachResult

_RESULT_SIZE = 64 * 1024  # bytes of the largest message on tunnel.attach
GONE = "gone"
"""No word of the contract's: the client itself gave up while it waited."""
_FULL = 0.01  # seconds until the tunnel may have taken what it was sent
_PATIENCE = 5.0  # seconds for the tunnel to take a socket


@dataclass(slots=True)
class Outcome:
    """What became of a client. reason: "" when it was accepted, else one word; message: one line."""

    reason: str = ""
    message: str = ""
    head: bytes = b""  # read from the client, and taken by nobody


class Control:
    """Asks for streams. A tunnel that went away is looked for again with the next client."""

    def __init__(self, path: Path, timeout: float) -> None:
        """timeout: seconds for a path to come up. Raises CommandError when there is no tunnel."""
        self._path = path
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._last = 0
        self._connect()

    async def open(
        self, backend: Backend, sock: socket.socket, client: str, *, udp: bool, head: bytes = b""
    ) -> Outcome:
        """Hands a copy of `sock` to the tunnel, and returns when the exit has answered. For TCP `sock` stays the caller's.
        For UDP it is closed as soon as the tunnel has its own: else nobody would see that the flow has ended there."""
        from protos import tunnel_pb2

        self._last += 1
        number = self._last
        attach = tunnel_pb2.Attach(
            id=number,
            open=tunnel_pb2.Outbound(
                node=backend.node,
                target=tunnel_pb2.Target(
                    network=tunnel_pb2.NETWORK_UDP if udp else tunnel_pb2.NETWORK_TCP, address=backend.address
                ),
                head=head,
                client=client,
                keep=not udp,
            ),
        )
        attach.open.timeout.FromMilliseconds(int(self._timeout * 1000))
        outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting[number] = outcome
        try:
            await self._send(attach.SerializeToString(), sock)
            if udp:
                sock.close()
            return await outcome
        except (OSError, CommandError) as error:
            return Outcome("no-tunnel", str(error), head)
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """The tunnel keeps what it has."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _connect(self) -> socket.socket:
        if self._sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                sock.connect(str(self._path))
            except OSError:
                sock.close()
                raise CommandError(place.not_running("tunnel", self._path)) from None
            self._sock = sock
            self._loop.add_reader(sock, self._receive)
        return self._sock

    async def _send(self, message: bytes, sock: socket.socket) -> None:
        """One message with one descriptor, which the kernel takes whole or not at all."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        deadline = self._loop.time() + _PATIENCE
        while True:
            try:
                self._connect().sendmsg([message], rights)
                return
            except BlockingIOError:
                if self._loop.time() > deadline:
                    raise CommandError("the tunnel takes no more") from None
                await asyncio.sleep(_FULL)
            except (BrokenPipeError, ConnectionResetError):
                self._lost()  # the next one may be there already

    def _receive(self) -> None:
        from protos import tunnel_pb2

        assert self._sock is not None
        with contextlib.suppress(BlockingIOError):
            try:
                message = self._sock.recv(_RESULT_SIZE)
            except ConnectionResetError:
                message = b""
            if not message:
                self._lost()
                return
            result = tunnel_pb2.AttachResult.FromString(message)
            waiting = self._waiting.get(result.id)
            if waiting is not None and not waiting.done():
                waiting.set_result(_outcome(result))

    def _lost(self) -> None:
        self.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(Outcome("no-tunnel", "the tunnel went away: see its log"))


def _outcome(result: AttachResult) -> Outcome:
    from protos import tunnel_pb2

    if not result.HasField("refusal"):
        return Outcome()
    reason = wording.word(tunnel_pb2.RefusalReason.Name, result.refusal.reason, "REFUSAL_REASON_")
    return Outcome(reason or GONE, result.refusal.message, result.head)
