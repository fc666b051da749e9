"""Child processes that never outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lab import zygote
from lab.namespace import Namespace
from lab.tether import tether


class Child:
    """One running command, in a process group of its own. Start it from the main thread.

    `output` is a file to which standard output and error are appended, or None to give the caller
    `stdout` (and `stdin`) as pipes; standard error then goes to ours.
    """

    _process: subprocess.Popen[bytes] | zygote.Forked

    def __init__(self, argv: Sequence[str], *, output: Path | None, namespace: Namespace | None = None) -> None:
        self.argv = list(argv)
        command = [*tether(), *argv]
        if output is None:
            self._process = _start(namespace, command, subprocess.PIPE, subprocess.PIPE, None)
        else:
            with output.open("ab") as file:
                self._process = _start(namespace, command, subprocess.DEVNULL, file, subprocess.STDOUT)

    @classmethod
    def service(
        cls,
        name: str,
        config: Path,
        *,
        output: Path,
        namespace: Namespace | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """`python -m services.NAME --config CONFIG`, forked from an interpreter that has imported it already.
        `environment`: beside ours."""
        child = cls.__new__(cls)
        arguments = ["--config", str(config)]
        child.argv = [sys.executable, "-m", f"services.{name}", *arguments]
        with output.open("ab") as file:
            env = os.environ | (environment or {})
            child._process = zygote.fork(name, arguments, file.fileno(), env=env, namespace=namespace)
        return child

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def stdin(self) -> IO[bytes]:
        """Pipe to the command."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Pipe from the command."""
        assert self._process.stdout is not None
        return self._process.stdout

    def signal(self, number: int) -> None:
        """Sends a signal to the command's process group; nothing happens when it is gone."""
        if self._process.poll() is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass

    async def wait(self, timeout: float) -> int:
        """Exit code. Raises TimeoutError after `timeout` seconds."""
        if self._process.poll() is None:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            end = self._process.watch() if isinstance(self._process, zygote.Forked) else os.pidfd_open(self.pid)
            loop.add_reader(end, ended.set)
            try:
                async with asyncio.timeout(timeout):
                    await ended.wait()
            finally:
                loop.remove_reader(end)
                os.close(end)
        return self._process.wait()

    async def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, then after `timeout` seconds SIGKILL. Returns the exit code."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # one that was stopped must run to obey
        try:
            return await self.wait(timeout)
        except TimeoutError:
            return self.kill()
        finally:
            self._close_pipes()

    def kill(self) -> int:
        """SIGKILL, and waits for the end (microseconds)."""
        self.signal(signal.SIGKILL)
        code = self._process.wait()
        self._close_pipes()
        return code

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


def _start(
    namespace: Namespace | None, command: Sequence[str], stdin: int, stdout: int | IO[bytes], stderr: int | None
) -> subprocess.Popen[bytes]:
    if namespace is None:
        return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
    return namespace.popen(command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
