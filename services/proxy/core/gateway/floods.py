"""What the other side of an HTTP/2 connection may send that costs it nothing and moves nothing."""

from services.proxy.core import http2
from services.proxy.core.http2 import Frame
from services.runtime.core.bucket import TokenBucket

# Frames a second without a message in them, and at once: acknowledgements, pings, windows. A client in good faith sends
# two windows for a frame of data that it gets (see `sent`), and pings every few seconds.
IDLE_RATE, IDLE_BURST = 100.0, 1000.0
# Requests a second that are taken back, and at once (rapid reset, CVE-2023-44487); nghttp2 takes 33 and 1000, but each of
# ours may have become a connection.
RESET_RATE, RESET_BURST = 20.0, 200.0
# Frames of one head: those of MAX_HEAD in upstream.py are four, if they are full (CONTINUATION flood, CVE-2024-27316).
MAX_CONTINUED = 16

_PER_FRAME = 2.0


class Floods:
    """Of one connection."""

    def __init__(self, now: float) -> None:
        self._idle = TokenBucket(IDLE_RATE, IDLE_BURST, now)
        self._resets = TokenBucket(RESET_RATE, RESET_BURST, now)
        self._continued = 0

    def sent(self, now: float) -> None:
        """A frame of data went to the other side."""
        self._idle.take(-_PER_FRAME, now)

    def received(self, frame: Frame, now: float) -> bool:
        """Whether that is still to be borne."""
        match frame.kind:
            case http2.HEADERS:
                self._continued = 0
                return True
            case http2.DATA if frame.payload or frame.flags & http2.END_STREAM:
                return True
            case http2.RST_STREAM:
                return self._take(self._resets, now)
            case http2.CONTINUATION:
                self._continued += 1
                return self._continued <= MAX_CONTINUED
        return self._take(self._idle, now)

    @staticmethod
    def _take(bucket: TokenBucket, now: float) -> bool:
        bucket.take(1.0, now)
        return bucket.level(now) >= 0
