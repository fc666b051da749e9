"""The tunnel's side of `tunnel.attach` as protos/tunnel.proto tells it, scripted by the test.

For what a real tunnel does only rarely and by chance: a result that comes after the end of the stream, a tunnel that
dies between the two.
"""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from protos import tunnel_pb2

Script = Callable[[socket.socket, tunnel_pb2.Attach, socket.socket], None]


class AttachEnd:
    """Listens at `folder`/tunnel.attach, takes one Attach with its descriptor, and runs `script(control, attach, stream)`."""

    def __init__(self, folder: Path, script: Script) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(folder / "tunnel.attach"))
        self._listener.listen(1)
        self._listener.settimeout(60)
        self._script = script
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "AttachEnd":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(60)
        self._listener.close()
        if self._error and not error:
            raise self._error

    def _run(self) -> None:
        try:
            control, _ = self._listener.accept()
            with control:
                message, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
                assert len(descriptors) == 1
                with socket.socket(fileno=descriptors[0]) as stream:
                    self._script(control, tunnel_pb2.Attach.FromString(message), stream)
        except BaseException as error:
            self._error = error


def answer(control: socket.socket, attach: tunnel_pb2.Attach, refusal: tunnel_pb2.Refusal | None = None) -> None:
    control.send(
        tunnel_pb2.AttachResult(id=attach.id, refusal=refusal, path=tunnel_pb2.PATH_KIND_DIRECT).SerializeToString()
    )
