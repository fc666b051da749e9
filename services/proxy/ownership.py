"""Who may touch the nftables table, and its end when nobody does."""

import socket
from pathlib import Path

from services.proxy import nft
from services.proxy.core import kernel, ruleset

# One proxy in a network namespace: an abstract Unix socket is of the namespace, and goes with its process, however that
# ends.
_NAME = "\0causeway/interception"

TAKEN = "another proxy intercepts on this machine"


def lock() -> socket.socket | None:
    """The right to touch the table, for as long as the socket is open; None when another process has it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(_NAME)
    except OSError:
        sock.close()
        return None
    return sock


def streams(port: int) -> bool:
    """Whether connections live that came in through the redirection to this port, and that some process holds."""
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        if path.exists() and kernel.connected(path.read_text(), port):  # a kernel without IPv6 has no tcp6
            return True
    return False


def cleanup() -> str:
    """Takes the table away for good, and says what was done. Raises NftError."""
    held = lock()
    if held is None:
        raise nft.NftError(f"{TAKEN}: stop it first, it would put everything back")
    with held:
        if nft.listing() is None:
            return f"there is no nftables table {ruleset.TABLE}"
        nft.load(ruleset.remove())
    return f"nftables table {ruleset.TABLE} removed"
