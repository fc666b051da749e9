"""Labs without root: `python -m lab.rootless COMMAND…`.

Runs a command as "root" of fresh user, network, mount and process namespaces. Whatever it builds or starts
ends with it, however it ends. As real root it does the same, so that nothing can be left on the machine.
`python -m lab.rootless` without a command says whether this machine allows it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.namespace import LabError, connect
from lab.nat import Nat
from lab.network import Network
from lab.tether import tether
from lab.wire import Shape

MARK = "CAUSEWAY_LAB_WRAPPED"  # environment variable: set inside the wrapper
PROBE_TIMEOUT = 20.0  # seconds; the probe takes about 0.3
GONE_TIMEOUT = 10.0  # seconds for the kernel to end what was killed; some milliseconds, unless it waits for a disk
TOOLS = {"unshare": "util-linux", "ip": "iproute2", "nft": "nftables"}


def wrapped(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` inside."""
    return ["unshare", "-Urnmpf", "--kill-child", "--mount-proc", "env", f"{MARK}=1", *argv]


def inside() -> bool:
    """Whether this process runs in the wrapper."""
    return os.environ.get(MARK) == "1"


def supervise(argv: Sequence[str], *, patience: float = 15.0) -> int:
    """Runs a command inside until it ends, and returns its exit code. Nothing in there outlives this call.

    SIGTERM and SIGINT are passed on, as soon as the command has a handler for them; who has not ended `patience` seconds later
    is killed. From a terminal the command gets SIGINT twice, since it belongs to the same process group: it must take the
    second one for the first.
    """
    told: list[int] = []
    with subprocess.Popen([*tether(), *wrapped(argv)]) as wrapper:
        before = {
            number: signal.signal(number, lambda number, _: told.append(number))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            ended_by, passed = 0.0, False
            while True:
                try:
                    return 128 - code if (code := wrapper.wait(0.1)) < 0 else code
                except subprocess.TimeoutExpired:
                    if told and not passed:
                        passed = _passed_on(wrapper, told[0])
                    ended_by = ended_by or (time.monotonic() + patience if told else 0.0)
                    if ended_by and time.monotonic() > ended_by:
                        return 128 + told[0]
        finally:
            kill(wrapper)
            for number, handler in before.items():
                signal.signal(number, handler)


def enter(module: str, *, patience: float) -> int | None:
    """For the entry point of a module that needs simulated networks: None inside the wrapper; elsewhere the exit code of the
    same command in there, see `supervise`, or 1 with the reason on standard error."""
    if inside():
        return None
    if (why := available()) is not None:
        print(f"no simulated networks here: {why}", file=sys.stderr)
        return 1
    return supervise([sys.executable, "-m", module, *sys.argv[1:]], patience=patience)


def kill(wrapper: subprocess.Popen[Any]) -> None:
    """Ends everything inside, and returns when it is gone."""
    with _first(wrapper) as first:
        wrapper.kill()  # the kernel then ends the first process inside, after all others in there: pid_namespaces(7)
        if first is not None:
            select.select([first[1]], [], [], GONE_TIMEOUT)


def _passed_on(wrapper: subprocess.Popen[Any], number: int) -> bool:
    """Signals the first process inside (`unshare` itself ignores it). False where it would not notice, which without a handler
    no first process of a namespace does: signal(7)."""
    with _first(wrapper) as first, contextlib.suppress(OSError, StopIteration):
        if first is not None:
            pid, pidfd = first
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            caught = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
            if caught >> number - 1 & 1:
                signal.pidfd_send_signal(pidfd, number)
                return True
    return False


@contextlib.contextmanager
def _first(wrapper: subprocess.Popen[Any]) -> Iterator[tuple[int, int] | None]:
    """The id and a pidfd of the first process inside; None before there is one, after its end, and where the kernel does not
    tell (CONFIG_PROC_CHILDREN)."""
    first = None
    with contextlib.suppress(OSError, IndexError):
        if wrapper.poll() is None:
            pid = int(Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children").read_text().split()[0])
            first = pid, os.pidfd_open(pid)
    try:
        yield first
    finally:
        if first is not None:
            os.close(first[1])


def available() -> str | None:
    """None when labs can be built here, in this process or in the wrapper; else why not, in one line."""
    search = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    missing = [f"{tool} (package {package})" for tool, package in TOOLS.items() if not shutil.which(tool, path=search)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if inside():
        return probe()
    command = wrapped([sys.executable, "-m", "lab.rootless", "--probe"])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"making namespaces did not end within {PROBE_TIMEOUT:.0f} s"
    if done.returncode == 0:
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"unshare ended with {done.returncode}"


def probe() -> str | None:
    """Builds one of everything in this process: None, or what failed."""
    try:
        with Network() as network:
            network.lan("probe", Nat(hairpin=True), shape=Shape(delay=0.001)).host("host")
            connect(network.internet, "x", network.namespace("other"), "x")
    except (LabError, OSError, subprocess.SubprocessError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


def main(argv: Sequence[str]) -> int:
    """Entry point."""
    if list(argv) == ["--probe"]:
        why = probe()
        print(why or "ok")
        return 1 if why else 0
    if argv:
        command = wrapped(argv)
        os.execvp(command[0], command)
    why = available()
    print(f"no simulated networks here: {why}" if why else "simulated networks work here")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
