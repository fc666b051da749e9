"""Whoever rehearses a network says what to do, one order a line."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys

from causeway.errors import RUNTIME, USAGE
from causeway.lab.orders import Leave, Orders, Refused
from lab.namespace import LabError
from lab.node import NodeError

PROMPT = "lab> "


class Prompt:
    """Reads orders until there are no more."""

    def __init__(self, orders: Orders, *, at_terminal: bool) -> None:
        self._orders = orders
        self._at_terminal = at_terminal

    def serve(self) -> int:
        """Obeys until the end of input or `quit`. Returns the code of the last order; 0 at a terminal."""
        code = 0
        if self._at_terminal:
            self._complete()
            print("help shows what can be done; quit, Ctrl-D or Ctrl-C ends everything")
        with contextlib.suppress(Leave, EOFError):
            while True:
                code = self.obey(self._read())
        return 0 if self._at_terminal else code

    def obey(self, line: str) -> int:
        """Does what one line says and returns an exit code. Raises Leave."""
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            return _complain(f"{error}: {line.strip()}", USAGE)
        try:
            return self._orders.obey(words) if words else 0
        except Refused as refusal:
            return _complain(str(refusal), refusal.code)
        except (LabError, NodeError, OSError, subprocess.SubprocessError) as error:
            return _complain(str(error), RUNTIME)

    def _read(self) -> str:
        if self._at_terminal:
            return input(PROMPT)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def _complete(self) -> None:
        """Words on Tab, and earlier lines on the arrow keys, where Python has readline."""
        try:
            import readline
        except ImportError:
            return
        found: list[str] = []

        def completer(text: str, state: int) -> str | None:
            if state == 0:
                before = readline.get_line_buffer()[: readline.get_begidx()].split()
                found[:] = [word for word in self._orders.candidates(before) if word.startswith(text)]
            if state >= len(found):
                return None
            return found[state] if found[state].endswith("=") else f"{found[state]} "

        readline.set_completer(completer)
        readline.set_completer_delims(" \t")
        readline.parse_and_bind("tab: complete")


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code
