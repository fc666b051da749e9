"""What a command may fail with. `causeway.__main__` prints it as one line a problem and exits with its code."""

from __future__ import annotations

from collections.abc import Sequence

USAGE = 2  # the command line or the configuration is wrong: trying again will not help
RUNTIME = 1  # something that may be different next time


class CommandError(Exception):
    """One or more lines for a person, and the exit code of the process."""

    def __init__(self, *lines: str, code: int = RUNTIME) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines
        self.code = code


def printable(line: str) -> str:
    """`line` as it may be shown. Parts may come from another node: nothing may move the cursor or make a second line."""
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
