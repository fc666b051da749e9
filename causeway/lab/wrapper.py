"""The outer of the two processes of `causeway lab`.

It starts the command again in namespaces of its own (lab/rootless.py), whose first process dies with it and
takes everything in there along. So nothing has to be cleaned up, and a SIGKILL is as good an end as any.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from types import FrameType

from lab import rootless
from lab.tether import tether

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INSIDE = "--inside"  # option of `causeway lab`: this is the inner process
TERMINAL = "--terminal"  # and the terminal is its own


def run(arguments: Sequence[str]) -> int:
    """Runs `causeway lab ARGUMENTS` inside until it ends. Returns its exit code, or 128 + the signal that ended us."""
    wrapper: subprocess.Popen[bytes] | None = None
    ended_by = 0

    def end(number: int, _: FrameType | None) -> None:
        nonlocal ended_by
        ended_by = ended_by or number
        if wrapper is not None:
            rootless.kill(wrapper)

    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        with _terminal() as ours:
            options = [INSIDE, TERMINAL] if ours else [INSIDE]
            command = rootless.wrapped([sys.executable, "-m", "causeway", "lab", *options, *arguments])
            wrapper = subprocess.Popen([*tether(), *command])
            if ended_by:  # before there was a wrapper to end
                rootless.kill(wrapper)
            code = wrapper.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended_by:
        return 128 + ended_by
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _terminal() -> Iterator[bool]:
    """Whether standard input is a terminal that is ours, to be handed on; afterwards it is as it was.

    Inside, the shell and its jobs have process groups of their own, and one of them has the terminal. So Ctrl-C
    never comes here: it interrupts what runs in the foreground inside.
    """
    try:
        settings = termios.tcgetattr(0)
        ours = os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, termios.error):
        ours = False
    if not ours:
        yield False
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # sent to a background group that takes the terminal
    try:
        yield True
    finally:
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            os.tcsetpgrp(0, os.getpgrp())
            termios.tcsetattr(0, termios.TCSADRAIN, settings)
        signal.signal(signal.SIGTTOU, before)


def take_terminal() -> None:
    """In the inner process: makes the terminal ours, at the start and after others have had it."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)  # a group that has a number in this process namespace
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, before)
