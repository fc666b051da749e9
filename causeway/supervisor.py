"""Keeps the services of a node running, and stops them in order.

One thread, no event loop: it sleeps in `sigtimedwait` until a child ends, someone wants it to stop, or a restart is
due. That keeps the process forkable (see nursery.py) for as long as it lives.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from causeway.nursery import CannotFork, fork
from causeway.restart import Backoff

# A clean stop: callers end before what they call, so that a relay can still tell discovery that it drains and
# nobody dials a tunnel that is gone. ASK_ALL bounds the waiting, KILL the whole.
ASK_ALL = 6.0  # seconds after the request: services that still wait for their turn are asked too
KILL = 10.0  # seconds after the request: SIGKILL for what is left
# timeout(1) signals its child and then its group, so one request may arrive as two signals.
AGAIN = 0.5  # seconds after the request: from then on a second signal means "at once"

_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True, slots=True)
class Program:
    """Something to keep running. `run` is called in the child; SystemExit carries its exit code."""

    name: str
    run: Callable[[], None]
    calls: Sequence[str] = ()  # names of the programs that it needs until its end


@dataclass(slots=True)
class _Child:
    program: Program
    backoff: Backoff
    pid: int = 0  # 0: not running
    started: float = 0.0
    due: float = 0.0  # when to start it, while it is not running
    asked: bool = False  # SIGTERM was sent


@dataclass
class Supervisor:
    """Runs `programs` until a signal; `say` gets one line for each start and end.

    `probe` runs in a child of its own and ends when all programs serve; `ready` is called then.
    """

    programs: Sequence[Program]
    say: Callable[[str], None]
    probe: Callable[[], None] | None = None
    ready: Callable[[], None] = lambda: None
    rng: random.Random = field(default_factory=random.Random)
    ask_all: float = ASK_ALL
    kill: float = KILL
    _children: list[_Child] = field(init=False, default_factory=list)
    _prober: int = field(init=False, default=0)  # its pid; 0: none, or done

    def run(self) -> int:
        """Returns the exit code: 0 when everything ended by itself after a request to stop, 1 when it had to be killed."""
        # Blocked, not handled: they wait in the kernel until sigtimedwait takes them. Children unblock them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP | {signal.SIGCHLD})
        self._children = [_Child(program, Backoff(self.rng)) for program in self.programs]
        self._prober = self._fork("probe", self.probe) if self.probe else 0
        while not self._wait(self._start_due()):
            self._reap()
        return self._stop()

    def _start_due(self) -> float | None:
        """Starts what is due; returns seconds until the next start, None when nothing waits for one."""
        now = time.monotonic()
        for child in self._children:
            if not child.pid and child.due <= now:
                child.started = now
                child.backoff.started(now)
                child.pid = self._fork(child.program.name, child.program.run)
                if child.pid:
                    self.say(f"{child.program.name} started (pid {child.pid})")
                else:
                    child.due = now + child.backoff.ended(now)
        return min((max(0.0, child.due - now) for child in self._children if not child.pid), default=None)

    def _fork(self, name: str, run: Callable[[], None]) -> int:
        """The pid, or 0 and a line where the system has no room for a process."""
        try:
            return fork(name, run)
        except CannotFork as error:
            self.say(f"{name} cannot be started: {error}")
            return 0

    def _wait(self, timeout: float | None) -> bool:
        """Sleeps until a signal or the timeout (seconds); True when the signal asks to stop."""
        numbers = _STOP | {signal.SIGCHLD}
        info = signal.sigtimedwait(numbers, timeout) if timeout is not None else signal.sigwaitinfo(numbers)
        return info is not None and info.si_signo in _STOP

    def _reap(self, stopping: bool = False) -> None:
        """Takes note of every child that ended. As process 1 of a container it also buries orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._prober:
                self._prober = 0
                if status == 0 and not stopping:
                    self.ready()
                continue
            child = next((child for child in self._children if child.pid == pid), None)
            if child is not None:
                self._ended(child, status, stopping)

    def _ended(self, child: _Child, status: int, stopping: bool) -> None:
        now = time.monotonic()
        ran = f"{how_it_ended(status)} after {now - child.started:.1f} s"
        child.pid = 0
        if stopping:
            self.say(f"{child.program.name} {ran}")
            return
        delay = child.backoff.ended(now)
        child.due = now + delay
        self.say(f"{child.program.name} {ran}; restarting in {delay:.1f} s")

    def _stop(self) -> int:
        begin = time.monotonic()
        if self._prober:
            os.kill(self._prober, signal.SIGKILL)
        while running := [child for child in self._children if child.pid]:
            elapsed = time.monotonic() - begin
            if elapsed >= self.kill:
                return self._kill(running, f"did not end within {self.kill:.0f} s")
            busy = {name for child in running for name in child.program.calls}
            for child in running:
                if not child.asked and (child.program.name not in busy or elapsed >= self.ask_all):
                    os.kill(child.pid, signal.SIGTERM)
                    child.asked = True
            waiting = not all(child.asked for child in running)
            signalled = self._wait(max(0.0, (self.ask_all if waiting else self.kill) - elapsed))
            if signalled and time.monotonic() - begin >= AGAIN:
                return self._kill(running, "killed by the second signal")
            self._reap(stopping=True)
        return 0

    def _kill(self, running: Sequence[_Child], why: str) -> int:
        for child in running:
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)
                self.say(f"{child.program.name}: {why}, SIGKILL")
        for child in running:
            os.waitpid(child.pid, 0)
        return 1


def how_it_ended(status: int) -> str:
    """A wait status in words: "exited with code 1", "was ended by SIGKILL"."""
    if os.WIFSIGNALED(status):
        return f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"
