"""One dial for another node, which measures its throughput by what we read."""

from services.runtime import dialback
from services.runtime.dialback import End

from .core.vantage import DialOutcome

CONNECT = 3.5
"""Seconds for the connection: two repetitions of the SYN (after 1 and 3 s) fit."""
READ = 5.0
"""Seconds for what the other side sends."""
MAX_BYTES = 256 * 1024
"""Bytes that are read: what the other side measures itself by."""

_OUTCOMES = {
    End.CONNECTED: DialOutcome.CONNECTED,
    End.RESET: DialOutcome.RESET,
    End.SILENCE: DialOutcome.SILENCE,
    End.UNREACHABLE: DialOutcome.UNREACHABLE,
    End.NO_WAY: None,
}


async def dial(ip: str, port: int, token: bytes, *, source: str) -> DialOutcome | None:
    """How it went; None: this host has no way to such an address. `source`: local IP, empty: any."""
    end = await dialback.dial(ip, port, token, source=source, connect=CONNECT, read=READ, most=MAX_BYTES)
    return _OUTCOMES[end]
