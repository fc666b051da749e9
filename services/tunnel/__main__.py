"""The tunnel service: python -m services.tunnel --config FILE"""

import sys
from collections.abc import Sequence

from services.runtime import process
from services.tunnel import native


def main(arguments: Sequence[str] | None = None) -> int:
    """Run in the foreground until SIGTERM; returns the exit code."""
    native.use()
    from services.tunnel import driver  # not before: what it imports may be compiled

    return process.command("tunnel", driver.main, arguments)


if __name__ == "__main__":
    sys.exit(main())
