"""Running a command for whoever sits at the terminal, and getting the terminal back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import termios
from collections.abc import Sequence

from causeway.lab import wrapper
from lab.stage import Stage


class Foreground:
    """The terminal, when there is one."""

    def __init__(self, *, terminal: bool) -> None:
        self.terminal = terminal
        if terminal:
            wrapper.take_terminal()
            self._settings = termios.tcgetattr(0)

    def run(self, stage: Stage, place: str, argv: Sequence[str], *, stdin: int | None) -> int:
        """Runs a command at a place and returns its exit code, 128 + N for signal N. stdin: as for Popen.

        Ctrl-C is the command's affair meanwhile. Ctrl-Z is a key like others: nobody could continue the command.
        """
        if self.terminal:
            settings = termios.tcgetattr(0)
            settings[6][termios.VSUSP] = os.fpathconf(0, "PC_VDISABLE").to_bytes()
            termios.tcsetattr(0, termios.TCSADRAIN, settings)
        return self._attend(stage, place, argv, stdin)

    def _attend(self, stage: Stage, place: str, argv: Sequence[str], stdin: int | None) -> int:
        # A handler, not SIG_IGN: the command would inherit that.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            child = stage.namespace(place).popen(stage.command(place, argv), stdin=stdin)
            code = _wait(child)
        finally:
            signal.signal(signal.SIGINT, before)
            if self.terminal:
                wrapper.take_terminal()
                with contextlib.suppress(termios.error):
                    termios.tcsetattr(0, termios.TCSADRAIN, self._settings)
        return code if code >= 0 else 128 - code

    def shell(self, stage: Stage, place: str) -> int:
        """An interactive shell at a place, until it is left."""
        prompt = f"PS1=[{place}] \\w \\$ "
        bash = shutil.which("bash")
        # Without start-up files, which would set a prompt that does not say where one is.
        argv = [bash, "--norc", "--noprofile", "-i"] if bash else ["sh", "-i"]
        return self._attend(stage, place, ["env", prompt if bash else f"PS1=[{place}] $ ", *argv], None)


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Exit code as Popen gives it. A command that stops itself, as editors do on Ctrl-Z, goes on at once."""
    while True:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode
        with contextlib.suppress(ProcessLookupError):
            os.killpg(0, signal.SIGCONT)
