"""Network namespaces without names.

A namespace lives as long as its descriptor (or a process in it): when the process that made it ends,
however it ends, the kernel takes it away with every interface, route and rule inside. Nothing global is
created, so any number of labs run side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

CLONE_NEWNET = 0x40000000  # linux/sched.h
COMMAND_TIMEOUT = 30.0  # seconds; `ip` and `nft` answer in milliseconds

_P = ParamSpec("_P")
_T = TypeVar("_T")

libc = ctypes.CDLL(None, use_errno=True)


def _environment() -> dict[str, str]:
    """Ours, with the folders that hold `ip` and `nft`, which ordinary users often lack in PATH."""
    return {**os.environ, "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"}


class LabError(Exception):
    """The simulated network could not be built or changed; the message holds what the kernel said."""


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise LabError(f"{what}: {os.strerror(number)}; run as root or under `python -m lab.rootless`")


def _own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """One network namespace with its loopback interface up."""

    def __init__(self, name: str) -> None:
        """Raises LabError where the process may not make namespaces."""
        self.name = name
        self._fd = _make()
        self.ip("link set lo up")
        # A kernel with br_netfilter sends bridged frames through the router's NAT; a real switch does not.
        for family in ("ip", "ip6", "arp"):
            switch = f"bridge/bridge-nf-call-{family}tables"
            with contextlib.suppress(FileNotFoundError):
                self.sysctl(switch, 0)

    @property
    def fd(self) -> int:
        """Descriptor that keeps the namespace alive."""
        if self._fd is None:
            raise LabError(f"namespace {self.name} is closed")
        return self._fd

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Puts the calling *thread* into the namespace. Sockets and processes made inside stay there.

        Never `await` inside the block: other tasks of the same thread would run in the namespace too.
        """
        before = _own()
        try:
            _checked(libc.setns(self.fd, CLONE_NEWNET), f"entering namespace {self.name}")
            try:
                yield
            finally:
                _checked(libc.setns(before, CLONE_NEWNET), f"leaving namespace {self.name}")
        finally:
            os.close(before)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Runs a function inside, in this thread."""
        with self.entered():
            return function(*args, **kwargs)

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        """A socket that belongs to this namespace for good."""
        return self.call(socket.socket, family, kind)

    def run(self, argv: Sequence[str], *, text: str | None = None) -> str:
        """Runs a short command inside and returns what it printed. Raises LabError when it fails."""
        with self.entered():
            done = subprocess.run(
                argv, input=text, text=True, capture_output=True, timeout=COMMAND_TIMEOUT, env=_environment()
            )
        if done.returncode != 0:
            raise LabError(
                f"{self.name}: {' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}\n{text or ''}"
            )
        return done.stdout

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a process inside. The caller ends it."""
        with self.entered():
            return subprocess.Popen(argv, **options)

    def ip(self, *commands: str) -> None:
        """Runs `ip` commands as one batch."""
        self.run(["ip", "-batch", "-"], text="\n".join(commands) + "\n")

    def nft(self, rules: str) -> None:
        """Loads nftables rules."""
        self.run(["nft", "-f", "-"], text=rules)

    def sysctl(self, key: str, value: int | str) -> None:
        """Sets /proc/sys/net/KEY, which the kernel resolves in the writer's own namespace."""
        self.call(Path("/proc/sys/net", key).write_text, str(value))

    def close(self) -> None:
        """Lets go of the namespace; it is gone once no process is in it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __repr__(self) -> str:
        return f"Namespace({self.name})"


def _make() -> int | None:
    """A descriptor of a new namespace. A thread makes it, since unshare moves the thread that calls it."""
    box: list[int | LabError] = []

    def work() -> None:
        try:
            _checked(libc.unshare(CLONE_NEWNET), "making a network namespace")
            box.append(_own())
        except LabError as error:
            box.append(error)

    thread = threading.Thread(target=work, name="make-namespace")
    thread.start()
    thread.join()
    if isinstance(box[0], LabError):
        raise box[0]
    return box[0]


def connect(a: Namespace, a_name: str, b: Namespace, b_name: str) -> None:
    """A cable (veth pair) between two namespaces, both ends up."""
    create = ["ip", "link", "add", a_name, "type", "veth", "peer", "name", b_name]
    with a.entered():
        done = subprocess.run(
            [*create, "netns", f"/proc/self/fd/{b.fd}"],
            pass_fds=[b.fd],
            text=True,
            capture_output=True,
            timeout=COMMAND_TIMEOUT,
            env=_environment(),
        )
    if done.returncode != 0:
        raise LabError(f"cable {a.name}:{a_name} – {b.name}:{b_name}: {done.stderr.strip()}")
    a.ip(f"link set {a_name} up")
    b.ip(f"link set {b_name} up")
