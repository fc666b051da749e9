"""A supervisor over small programs, for test_supervisor.py: `python -m tests.causeway.small_node FOLDER SPEC…`.

A SPEC is NAME:KIND[:CALLS,…]. Kinds: serve (ends on SIGTERM), deaf (does not), crash (ends at once with 3).
With a file FOLDER/ready the probe succeeds. --ask-all and --kill set the supervisor's patience in seconds. With
--no-room N the system refuses the Nth fork.
"""

import argparse
import errno
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from causeway import nursery
from causeway.supervisor import Program, Supervisor


def say(line: str) -> None:
    # One write: lines of several processes must not be cut into each other.
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def serve(name: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    say(f"{name} is up, pid {os.getpid()}, stdin {os.read(0, 1)!r}")
    signal.sigwait({signal.SIGTERM})
    say(f"{name} is down")


def deaf(name: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: say(f"{name} was asked"))
    say(f"{name} is up, pid {os.getpid()}, stdin {os.read(0, 1)!r}")
    while True:
        time.sleep(60)


def crash(name: str) -> None:
    sys.exit(3)


KINDS: dict[str, Callable[[str], None]] = {"serve": serve, "deaf": deaf, "crash": crash}


def probe(folder: Path) -> None:
    while not (folder / "ready").exists():
        time.sleep(0.01)


def refuse_fork(which: int) -> None:
    # RLIMIT_NPROC would do it, but not for root.
    real, count = os.fork, itertools.count(1)

    def fork() -> int:
        if next(count) == which:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return real()

    os.fork = fork


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("spec", nargs="+")
    parser.add_argument("--ask-all", type=float, default=60.0)
    parser.add_argument("--kill", type=float, default=60.0)
    parser.add_argument("--no-room", type=int, default=0)
    options = parser.parse_args()
    refuse_fork(options.no_room)
    programs = []
    for spec in options.spec:
        name, kind, *calls = spec.split(":")
        programs.append(Program(name, partial(KINDS[kind], name), calls[0].split(",") if calls else ()))
    nursery.preload(("json",))
    supervisor = Supervisor(
        programs,
        say,
        probe=partial(probe, options.folder),
        ready=lambda: say("ready"),
        ask_all=options.ask_all,
        kill=options.kill,
    )
    sys.exit(supervisor.run())


if __name__ == "__main__":
    main()
