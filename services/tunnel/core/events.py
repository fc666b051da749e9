"""What a session tells its shell. Events are plain tuples `(kind, subject, detail)`: they are on the hot path."""

from typing import Any

Event = tuple[int, Any, Any]

OPENED = 1
"""The peer opened a stream: subject is the Stream, detail the Opening."""
ACCEPTED = 2
"""The exit connected our stream."""
DATA = 3
"""Bytes of a stream: detail is a memoryview that is valid until the next call."""
FINISHED = 4
"""The peer sends no more on this stream."""
RESET = 5
"""The stream is over: detail is the Reason."""
CREDIT = 6
"""The stream, out of credit before, may be read again."""
DATAGRAM = 7
"""One datagram of a stream: detail is a memoryview that is valid until the next call."""
UNBLOCKED = 8
"""The session may take data of streams again."""
LINK_READY = 9
"""Subject is a Link that can carry records now."""
SWITCHED = 10
"""The active link changed: subject is the new one or None, detail the cause."""
SUSPECTED = 11
"""Subject is a Link that does not answer; a session without a standby needs another one now."""
RECOVERED = 12
"""Subject is a Link that answers again."""
CLOSE_LINK = 13
"""The shell shall close this link, in order: all that was on it has been heard (or time is up)."""
STALLED = 14
"""Streams stood still: subject is the cause, detail the seconds."""
NOTE = 15
"""Signalling from the peer's driver: detail is bytes (JSON)."""
ENDED = 16
"""The peer ended the session in order."""
MEASURED = 17
"""Subject is a Link, detail the round trip that was just measured on it, seconds."""
