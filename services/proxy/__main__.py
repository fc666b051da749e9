"""`python -m services.proxy --config FILE`: the proxy service in the foreground. `--cleanup`: takes away what a proxy that
was killed left behind."""

import contextlib
import sys

from services.proxy import driver, nft, ownership
from services.runtime import process


def cleanup() -> int:
    """Removes the nftables table of the interception; the exit code."""
    try:
        sys.stdout.write(f"{ownership.cleanup()}\n")
    except nft.NftError as error:
        sys.stderr.write(f"causeway proxy: {error}\n")
        return 1
    return 0


def tidy() -> None:
    """The same where it is possible, and silently."""
    with contextlib.suppress(nft.NftError):
        ownership.cleanup()


if __name__ == "__main__":
    sys.exit(cleanup() if sys.argv[1:] == ["--cleanup"] else process.command("proxy", driver.main))
