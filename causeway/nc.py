"""`causeway nc`: a stream of the mesh on stdin and stdout.

One end of a socket pair goes to the tunnel by SCM_RIGHTS, as the proxy does it; the other end is pumped by two
threads. Threads, because O_NONBLOCK on stdin or stdout would also hold for whoever shares them (a shell, ssh).
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from causeway import options, place
from causeway.errors import USAGE, CommandError

if TYPE_CHECKING:
    from protos.tunnel_pb2 import AttachResult

_CHUNK = 256 * 1024  # bytes a read; the largest record of a session
_HOST_MAX = (
    255  # characters; DNS names have 253 (RFC 1035), and a longer text may not fit into the message to the tunnel
)
_RESULT_SIZE = 64 * 1024  # largest message on tunnel.attach
_ATTACH_ID = 1  # any number but 0: we want a result
_RESULT_GRACE = 2.0  # seconds that the result may come after the stream's end


@click.command()
@click.argument("node")
@click.argument("target", metavar="HOST:PORT")
@options.timeout("-w")
@options.run_dir
def nc(node: str, target: str, timeout: float, config: Path | None, run_dir: Path | None) -> None:
    """Connect stdin and stdout to HOST:PORT as seen from NODE.

    End of file on stdin is passed on (the other direction stays open); the command ends when the other side
    closes. NODE's proxy decides whether HOST:PORT may be dialled: endpoints of known services, and what its
    modules.edgeProxy.allowedTargets lists.

    \b
    Examples:
      printf 'GET / HTTP/1.0\\r\\n\\r\\n' | causeway nc edge-b 127.0.0.1:8080
      ssh -o ProxyCommand='causeway nc edge-b 127.0.0.1:22' user@edge-b

    \b
    Exit codes: 0 the stream ended, 1 refused or no path, 2 wrong usage.
    """
    host, _, port = target.rpartition(":")
    if not 0 < len(host) <= _HOST_MAX or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise CommandError(f"'{target:.80}' is not HOST:PORT, such as 127.0.0.1:22 or [::1]:22", code=USAGE)
    if len(node) > _HOST_MAX:
        raise CommandError(f"'{node:.80}…' is too long for a node's name", code=USAGE)
    with _attach(place.run_directory(config, run_dir) / "tunnel.attach") as control:
        stream = _open(control, node, target, timeout)
        threading.Thread(target=_push, args=(stream,), daemon=True).start()
        _pull(stream, control)


def _attach(path: Path) -> socket.socket:
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect(str(path))
    except OSError:
        control.close()
        raise CommandError(place.not_running("tunnel", path)) from None
    return control


def _open(control: socket.socket, node: str, target: str, timeout: float) -> socket.socket:
    """Hands one end of a new socket pair to the tunnel and returns the other."""
    from protos import tunnel_pb2

    attach = tunnel_pb2.Attach(
        id=_ATTACH_ID,
        open=tunnel_pb2.Outbound(
            node=node,
            target=tunnel_pb2.Target(network=tunnel_pb2.NETWORK_TCP, address=target),
            client="nc",
        ),
    )
    attach.open.timeout.FromMilliseconds(int(timeout * 1000))
    ours, theirs = socket.socketpair()
    with theirs:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))
        control.sendmsg([attach.SerializeToString()], [rights])
    return ours


def _push(stream: socket.socket) -> None:
    """stdin → stream, until end of file, which becomes a half-close."""
    with contextlib.suppress(OSError):  # the stream is gone; _pull says why
        while chunk := os.read(sys.stdin.fileno(), _CHUNK):
            stream.sendall(chunk)
        stream.shutdown(socket.SHUT_WR)


def _pull(stream: socket.socket, control: socket.socket) -> None:
    """stream → stdout, until the other side closes; raises CommandError on a refusal."""
    buffer = memoryview(bytearray(_CHUNK))
    pending = True  # no result yet
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        events = dict(poll.poll())
        if control.fileno() in events:
            _check(_receive(control))
            pending = False
            poll.unregister(control)
        if stream.fileno() in events:
            try:
                size = stream.recv_into(buffer)
            except ConnectionResetError:
                size = -1
            if size <= 0:
                break
            _write(buffer[:size])
    if pending and select.select([control], [], [], _RESULT_GRACE)[0]:
        _check(_receive(control))
    if size < 0:
        raise CommandError("the connection was reset by the other side")


def _receive(control: socket.socket) -> AttachResult:
    from protos import tunnel_pb2

    try:
        message = control.recv(_RESULT_SIZE)
    except ConnectionResetError:
        message = b""
    if not message:
        raise CommandError("the tunnel went away before the stream was accepted: see its log")
    return tunnel_pb2.AttachResult.FromString(message)


def _check(result: AttachResult) -> None:
    from causeway import wording
    from protos import tunnel_pb2

    if result.HasField("refusal"):
        reason = wording.word(tunnel_pb2.RefusalReason.Name, result.refusal.reason, "REFUSAL_REASON_")
        raise CommandError(f"refused ({reason}): {result.refusal.message}")


def _write(data: memoryview) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
