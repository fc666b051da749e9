"""`causeway up`: the node."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from causeway import nursery, options, place, readiness, service
from causeway.errors import USAGE, CommandError
from causeway.supervisor import Program, Supervisor

if TYPE_CHECKING:
    from services.runtime.config import Config


@click.command()
@options.config
@click.option(
    "--without",
    metavar="SERVICE",
    type=click.Choice(service.NAMES),
    multiple=True,
    help="Leave this service out, to run it (or a replacement of yours) by other means. May be repeated.",
)
def up(config: Path | None, without: tuple[str, ...]) -> None:
    """Run this machine's node: discovery, tunnel, relay and proxy under one supervisor.

    A service that ends is started again, at first after 0.2 s, later after up to 10 s. Ctrl-C or SIGTERM
    stops the node in order (at most 10 s); a second one stops it at once.

    \b
    Examples:
      causeway up                                  with ./causeway.yaml, or built-in values
      causeway up --config /etc/causeway/causeway.yaml
      causeway up --without relay & causeway relay --config my.yaml

    \b
    Exit codes: 0 stopped as asked, 1 something had to be killed, 2 wrong configuration.
    """
    settings = place.load(config)
    path = place.find(config)
    names = [name for name in service.NAMES if name not in without]
    if "proxy" in names and not settings.modules.edge_proxy.enable:
        names.remove("proxy")
        _say("proxy is left out: modules.edgeProxy.enable is false")
    _introduce(settings)
    lock = _lock(settings.run_dir)
    nursery.preload()
    supervisor = Supervisor(
        programs=[Program(name, partial(service.run, name, path), service.CALLS[name]) for name in names],
        say=_say,
        probe=partial(readiness.wait, settings.run_dir, names),
        ready=lambda: _say(
            f"ready in {_age():.2f} s: node {settings.node_name}, cluster {settings.cluster}, sockets in {settings.run_dir}"
        ),
    )
    code = supervisor.run()
    if "proxy" in names and settings.modules.edge_proxy.interception.enable != "off":
        _tidy()
    os.close(lock)
    sys.exit(code)


def _tidy() -> None:
    """A proxy leaves its nftables table, idle, for the connections that outlive it. None does any more."""
    from services.proxy.__main__ import tidy

    tidy()


def _introduce(settings: Config) -> None:
    """Makes the node's key and certificate where there are none: one clear error here instead of four in a loop."""
    from services.runtime.identity import Identity, IdentityError

    try:
        Identity.load(settings)
    except IdentityError as error:
        raise CommandError(str(error), code=USAGE) from None


def _lock(run_dir: Path) -> int:
    """Two supervisors on one run directory would take each other's sockets away. Held until the process ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        descriptor = os.open(run_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(
            f"{run_dir}: cannot be used: {error.strerror}; set runDir to a folder that can be written", code=USAGE
        ) from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process only: children do not inherit it
    except OSError:  # EACCES or EAGAIN, fcntl(2)
        holder = os.read(descriptor, 20).decode().strip()
        raise CommandError(
            f"another causeway up (pid {holder}) runs on {run_dir}: stop it, or choose another runDir"
        ) from None
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _age() -> float:
    """Seconds since this process started, the interpreter's own start included."""
    # proc(5): field 22 of stat, in clock ticks since boot; the name before it may hold spaces but ends with ')'.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads, or a disk is full: no reason to stop the node
        print(f"causeway: {line}", file=sys.stderr, flush=True)
