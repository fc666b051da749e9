"""What can go wrong, in the words of RefusalReason (protos/tunnel.proto)."""

from services.tunnel.core.frames import Reason

DENIED = 1
UNREACHABLE = 2
CONNECTION_REFUSED = 3
UNKNOWN_NODE = 4
NO_PATH = 5
LIMIT = 6
NO_LISTENER = 7
IDENTITY = 8

REASON_NAMES = {
    DENIED: "denied",
    UNREACHABLE: "unreachable",
    CONNECTION_REFUSED: "connection_refused",
    UNKNOWN_NODE: "unknown_node",
    NO_PATH: "no_path",
    LIMIT: "limit",
    NO_LISTENER: "no_listener",
    IDENTITY: "identity",
}
"""As metrics call them."""

FULL = "limit"
"""Reason of a relay that has no room (RefusedReason, as in RelayRefused)."""


MOST_RETRY_AFTER = 60.0
"""Seconds that a relay may keep us away at a time; ours asks for 5 to 10."""


class Refused(Exception):
    """A stream is not possible; `reason` says why to the caller."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.reason = Reason(code, message)


class UnknownPeer(Exception):
    """Discovery has asked whom it could, and nobody knows a node of that name."""


class LinkFailed(Exception):
    """A link could not be made: one line."""


class RelayRefused(LinkFailed):
    """The relay said no. `reason`: name of a RefusedReason without its prefix, in lower case ("no-reservation");
    `retry_after`: seconds until it wants to be asked again, 0 where it said nothing of that; `alternatives`: relays
    that it names in its place."""

    def __init__(self, reason: str, message: str, retry_after: float = 0.0, alternatives: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.alternatives = alternatives
        self.retry_after = min(retry_after, MOST_RETRY_AFTER)
