"""Runs a tunnel whose clock can be set: `python -m tests.tunnel.shifted FILE BACKOFF services.tunnel arguments…`.

FILE holds the seconds that the machine has slept; BACKOFF is the pause after a failed attempt, in seconds.
"""

import runpy
import sys
import time
from pathlib import Path

from services.tunnel import backoff, keeper

_ask = time.clock_gettime


def shifted(clock: int) -> float:
    """As the kernel would say after a suspend."""
    slept = float(FILE.read_text()) if clock == time.CLOCK_BOOTTIME else 0.0
    return _ask(clock) + slept


if __name__ == "__main__":
    FILE = Path(sys.argv[1])
    backoff.FIRST = keeper.BACKOFF_URGENT = keeper.BACKOFF_CALM = float(sys.argv[2])
    time.clock_gettime = shifted
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
