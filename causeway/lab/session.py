"""The inner process of `causeway lab`: builds the network, starts everything, and does what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from causeway.errors import CommandError
from causeway.lab import view
from causeway.lab.foreground import Foreground
from causeway.lab.orders import Orders
from causeway.lab.prompt import Prompt
from lab.namespace import LabError
from lab.node import NodeError
from lab.stage import Stage
from lab.topology import Topology

# Covered by a file system of our own, which only exists in here: what the nodes write is gone with the last
# process. There is such a folder on every Linux, and its path is short enough for sockets.
MEMORY = Path("/dev/shm")
MEMORY_SIZE = "1g"  # most bytes of files in memory: nodes write some 100 KiB each, and logs
PIPE_WIDTH = 400  # columns when nobody looks: grep wants whole lines


def run(topology: Topology, folder: Path | None, command: list[str], *, describe: str, terminal: bool) -> int:
    """Builds, starts, serves and ends a lab. Returns the exit code.

    describe: how to show it, "text" or "json"; not with a command, which is all that is run then.
    """
    foreground = Foreground(terminal=terminal)
    _settle()
    asked = not command and sys.stdin.isatty()
    console = Console(stderr=bool(command) or describe == "json", highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    with asyncio.Runner() as runner, _told():
        with _progress(talkative=not command or console.is_terminal) as progress:
            progress.update(f"building {len(topology.machines)} hosts and {len(topology.lans)} LANs")
            stage = Stage(topology, folder or MEMORY / "lab")
            _name_hosts(stage)
        try:
            with _progress(talkative=not command or console.is_terminal) as progress:
                runner.run(stage.start(progress.count))
            if command:
                return foreground.run(stage, command[0], command[1:], stdin=None)
            if describe == "json":
                print(json.dumps(stage.describe(), indent=2), flush=True)
            else:
                console.print(view.overview(stage.describe()))
            orders = Orders(stage, runner, foreground, console, at_terminal=asked)
            return Prompt(orders, at_terminal=asked).serve()
        finally:
            runner.run(stage.stop())


def _settle() -> None:
    """This mount namespace's own folder in memory, and the tools of the lab in PATH."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"mode=1777,size={MEMORY_SIZE}", "causeway-lab", str(MEMORY)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise CommandError(
            f"no file system in memory: {' '.join(done.stderr.split())}: name a --folder on a host that allows it"
        )
    path = os.environ.get("PATH", "/usr/bin:/bin")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{path}:/usr/sbin:/sbin"


def _name_hosts(stage: Stage) -> None:
    """Hosts know each other by name, as by a hosts file on each. Nothing else can be asked: there is no DNS in a
    lab, and a question to the machine's own servers, which are not in it, would take 10 s to fail."""
    names = ["127.0.0.1 localhost", "::1 localhost"]
    for host in stage.hosts.values():
        names += [f"{address} {host.name}" for address in (host.address, host.address6) if address]
    for file, lines in (("hosts", names), ("resolv.conf", ["nameserver 127.0.0.1"])):
        ours, theirs = MEMORY / file, Path("/etc") / file
        ours.write_text("\n".join(lines) + "\n")
        if theirs.exists():
            subprocess.run(["mount", "--bind", str(ours), str(theirs)], capture_output=True, check=False)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the lab complains about, as the command's one-line errors."""
    try:
        yield
    except (LabError, NodeError) as error:
        raise CommandError(*str(error).splitlines()) from None


class _Progress:
    """One changing line on a terminal, else nothing but the end."""

    def __init__(self, console: Console, *, talkative: bool) -> None:
        self._status = console.status("") if talkative and console.is_terminal else None
        self._console = console
        self._talkative = talkative
        self._began = time.monotonic()
        self.ready = ""

    def update(self, text: str) -> None:
        """What is being waited for."""
        if self._status is not None:
            self._status.update(text)

    def count(self, done: int, of: int) -> None:
        """Services that serve, of those that should."""
        self.update(f"starting nodes: {done} of {of} services ready")
        if done == of:
            self.ready = f"{of} services ready in {time.monotonic() - self._began:.1f} s" if of else ""

    def show(self, *, shown: bool) -> None:
        """Begins or ends the line."""
        if self._status is not None:
            (self._status.start if shown else self._status.stop)()
        if not shown and self.ready and self._talkative:
            self._console.print(self.ready, style="dim")


@contextlib.contextmanager
def _progress(*, talkative: bool) -> Iterator[_Progress]:
    progress = _Progress(Console(stderr=True, highlight=False), talkative=talkative)
    progress.show(shown=True)
    try:
        yield progress
    finally:
        progress.show(shown=False)
