"""The discovery service: python -m services.discovery --config FILE"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.runtime import process

from . import driver


def main(arguments: Sequence[str] | None = None) -> int:
    """Run in the foreground until SIGTERM; returns the exit code."""
    return process.command("discovery", driver.main, arguments)


if __name__ == "__main__":
    sys.exit(main())
