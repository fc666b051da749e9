"""One connection back to a client: connect, say the token, hang up."""

from services.runtime import dialback
from services.runtime.dialback import End

from .core.messages import Outcome

TIMEOUT = 2.0
"""Seconds for the connection: one repetition of the SYN (after 1 s) fits."""
LINGER = 0.5
"""Seconds for the client to hang up first: it then has read the token."""

_OUTCOMES = {
    End.CONNECTED: Outcome.CONNECTED,
    End.RESET: Outcome.RESET,
    End.SILENCE: Outcome.SILENCE,
    End.UNREACHABLE: Outcome.UNREACHABLE,
    End.NO_WAY: Outcome.UNREACHABLE,
}


async def dial(ip: str, port: int, token: bytes, *, source: str) -> Outcome:
    """How it went. `source`: local IP, empty: any."""
    end = await dialback.dial(ip, port, token, source=source, connect=TIMEOUT, read=LINGER, most=1)
    return _OUTCOMES[end]
