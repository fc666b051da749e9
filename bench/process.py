"""Child processes of the bench: started, spoken to line by line, ended by their id."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A peer or a load generator did not do what it should; one line that says what."""


class Child:
    """One process in the foreground; what it says goes to `log`. Dies with the bench where the host can.

    With `talk`, standard input and output are pipes (`write_line`, `read_line`) and only errors are logged.
    """

    def __init__(
        self, argv: list[str], log: Path, *, talk: bool = False, prefix: list[str] | None = None, cwd: Path = ROOT
    ) -> None:
        guard = shutil.which("setpriv")
        # Without a prefix the guard execs the program itself: pid and CPU time are the program's own.
        wrapped = ([guard, "--pdeathsig", "KILL"] if guard else []) + (prefix or []) + argv
        self.name = Path(argv[0]).name
        self.log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                wrapped,
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talk else errors,
                stderr=errors,
                cwd=cwd,
                bufsize=0,
            )
        self.pid = self._process.pid
        self._buffer = b""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def read_line(self, timeout: float) -> str:
        """The next line of its standard output; raises Failed when it ends or stays silent for `timeout` s."""
        assert self._process.stdout
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failed(f"{self.name}: no answer within {timeout:.0f} s; its log: {self.tail()}")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise Failed(f"{self.name} ended: {self.tail()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def write_line(self, line: str = "") -> None:
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")

    def close_input(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self, grace: float = 10) -> None:
        """SIGTERM, then SIGKILL after `grace` s."""
        if self.alive:
            self._process.terminate()
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def tail(self) -> str:
        """The last line it wrote to standard error."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "(nothing was said)"


def python(module: str, *arguments: str) -> list[str]:
    """Command line of one of our own modules under the running interpreter."""
    return [sys.executable, "-m", module, *arguments]


def run(argv: list[str], *, timeout: float = 30, cwd: Path | None = None) -> str:
    """Runs to the end; standard output. Raises Failed with the last line of its errors."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, cwd=cwd)
    except subprocess.TimeoutExpired:
        raise Failed(f"{Path(argv[0]).name}: not done within {timeout:.0f} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(f"{Path(argv[0]).name}: exit code {done.returncode}: {words[-1] if words else 'no message'}")
    return done.stdout
