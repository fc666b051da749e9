"""A process under test whose lines can be waited for."""

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType

PATIENCE = 60.0  # seconds until a line or an end that must come counts as missing; machines are noisy


class Process:
    """Runs a command in a process group of its own; `lines` is what it has said so far (both outputs)."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None, cwd: str | None = None) -> None:
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._rest = b""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first line from number `after` on that matches; waits for it."""
        deadline = time.monotonic() + PATIENCE
        seen = after
        while True:
            for line in self.lines[seen:]:
                seen += 1
                if match := re.search(pattern, line):
                    return match
            if not self._read(deadline):
                raise AssertionError(f"no line matches {pattern!r} in:\n" + "\n".join(self.lines))

    def end(self) -> int:
        """Waits until every holder of its output is gone, and returns its exit code (minus the signal)."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.popen.wait(PATIENCE)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)  # its children die with it
            self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()

    def _read(self, deadline: float) -> bool:
        """More output into `lines`; False at the end of it, or of patience."""
        assert self.popen.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.popen.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return False
        chunk = os.read(self.popen.stdout.fileno(), 65536)
        if not chunk:
            return False
        *complete, self._rest = (self._rest + chunk).split(b"\n")
        self.lines += [line.decode(errors="replace") for line in complete]
        return True


def alive(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
