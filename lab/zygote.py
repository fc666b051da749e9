"""Services of the lab's nodes, forked from one interpreter that has imported them all.

A fresh interpreter spends 0.7 s of CPU on imports, and a lab starts dozens of services; `causeway up` forks for the
same reason (`causeway/nursery.py`, which says what makes it safe). Each process of ours that starts services has one
zygote, which ends with it, and takes along what it forked.

The two talk over a pair of SOCK_SEQPACKET sockets: a request is JSON with two or three descriptors (output, where the
exit code goes, network namespace), the answer a process id. The exit code comes later, from who is the parent.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from causeway import nursery
from lab.namespace import CLONE_NEWNET, LabError, Namespace, libc
from lab.tether import tether
from services.tunnel import native

PATIENCE = 120.0  # seconds for a fork; the first waits for the imports, on a machine that may be very busy
MESSAGE = 128 * 1024  # bytes; a request is mostly the environment. Below SO_SNDBUF's default of 208 KiB
CODE = struct.Struct("=i")

SERVICES = ("discovery", "tunnel", "relay", "proxy")
_MODULES = (*nursery.SHARED, *(f"services.{name}.driver" for name in SERVICES))


class Forked:
    """A process that the zygote made: what subprocess.Popen is for one of our own."""

    stdin: IO[bytes] | None = None
    stdout: IO[bytes] | None = None

    def __init__(self, pid: int, end: int) -> None:
        self.pid = pid
        self._end = end
        self._code: int | None = None

    def watch(self) -> int:
        """A descriptor that is readable once the process has ended; the caller closes it."""
        return os.dup(self._end)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None and select.select([self._end], [], [], 0)[0]:
            self.wait()
        return self._code

    def wait(self) -> int:
        """The exit code, once it has ended."""
        if self._code is None:
            data = os.read(self._end, CODE.size)
            # Without a word: the zygote is gone, and its children were killed with it.
            self._code = CODE.unpack(data)[0] if data else -signal.SIGKILL
        return self._code

    def __del__(self) -> None:
        os.close(self._end)


class Zygote:
    """The warm interpreter, as seen by who wants processes. Make it in the main thread."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(PATIENCE)
        self._lock = threading.Lock()
        with theirs:
            argv = [*tether(), sys.executable, "-m", "lab.zygote", str(theirs.fileno())]
            self._process = subprocess.Popen(
                argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Ends it, and with it whatever it forked."""
        self._sock.close()
        self._process.wait()

    def fork(
        self, service: str, arguments: Sequence[str], output: int, env: Mapping[str, str], namespace: Namespace | None
    ) -> Forked:
        """Starts `python -m services.SERVICE ARGUMENTS…` in our working directory."""
        request = {"service": service, "arguments": list(arguments), "env": dict(env), "cwd": str(Path.cwd())}
        end, theirs = os.pipe()
        try:
            descriptors = [output, theirs] + ([] if namespace is None else [namespace.fd])
            with self._lock:
                socket.send_fds(self._sock, [json.dumps(request).encode()], descriptors)
                answer = self._sock.recv(64)
            if not answer:
                raise LabError("the process that forks services has ended")
        except OSError as error:
            os.close(end)
            raise LabError(f"the process that forks services does not answer: {error}") from None
        finally:
            os.close(theirs)
        return Forked(int(answer), end)


_zygotes: dict[int, Zygote] = {}


def fork(
    service: str,
    arguments: Sequence[str],
    output: int,
    *,
    env: Mapping[str, str] = os.environ,
    namespace: Namespace | None = None,
) -> Forked:
    """`Zygote.fork` of this process's own zygote, which is started when there is none. `output`: a descriptor."""
    zygote = _zygotes.get(os.getpid())
    if zygote is None or not zygote.alive:
        zygote = _zygotes[os.getpid()] = Zygote()
        atexit.register(zygote.close)
    return zygote.fork(service, arguments, output, env, namespace)


# ── in the zygote ──


class _Order:
    """One request, with its descriptors."""

    def __init__(self, data: bytes, descriptors: Sequence[int]) -> None:
        told = json.loads(data)
        self.service: str = told["service"]
        self.arguments: list[str] = told["arguments"]
        self.env: dict[str, str] = told["env"]
        self.cwd: str = told["cwd"]
        self.output, self.end, *rest = descriptors
        self.namespace = rest[0] if rest else -1

    def close(self) -> None:
        os.close(self.output)
        if self.namespace >= 0:
            os.close(self.namespace)

    def run(self) -> None:
        """In the child: becomes the service. Leaves by SystemExit."""
        if self.namespace >= 0 and libc.setns(self.namespace, CLONE_NEWNET) != 0:
            sys.exit("cannot enter the network namespace")
        signal.set_wakeup_fd(-1)
        os.dup2(self.output, 1)
        os.dup2(self.output, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.cwd)
        sys.argv = [f"services.{self.service}", *self.arguments]
        runpy.run_module(f"services.{self.service}", run_name="__main__")


def main(sock: socket.socket) -> None:
    """Forks on request until the other end is closed."""
    native.use()
    nursery.preload(_MODULES)
    ends: dict[int, int] = {}
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us; we end with it
    while True:
        ready = select.select([sock.fileno(), wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
            while ends:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                _tell(ends.pop(pid), os.waitstatus_to_exitcode(status))
        if sock.fileno() in ready:
            data, descriptors, _, _ = socket.recv_fds(sock, MESSAGE, 3)
            if not data:
                return
            order = _Order(data, descriptors)
            pid = nursery.fork(order.service, order.run)
            ends[pid] = order.end
            order.close()
            sock.send(str(pid).encode())


def _tell(end: int, code: int) -> None:
    try:
        os.write(end, CODE.pack(code))
    except BrokenPipeError:  # nobody wants to know
        pass
    os.close(end)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
