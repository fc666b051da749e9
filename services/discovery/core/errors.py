"""What discovery refuses, with the machine-readable reasons of protos/discovery.proto."""

from __future__ import annotations


class DiscoveryError(Exception):
    """A refusal. `reason` is what clients branch on; the message is one line for a person."""

    reason = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UnknownNode(DiscoveryError):
    """Nobody knows a node of that name."""

    reason = "UNKNOWN_NODE"


class NobodyAnswered(DiscoveryError):
    """The node is not known here, and none of those who may know it has answered."""

    reason = "NOBODY_ANSWERED"


class RevisionCompacted(DiscoveryError):
    """The revision to resume from is older than what is still known, or from another run: watch again from 0."""

    reason = "REVISION_COMPACTED"


class SlowReader(DiscoveryError):
    """The reader fell so far behind that removals it has not seen were forgotten."""

    reason = "SLOW_READER"


class NameMismatch(DiscoveryError):
    """A record is about another node than the one who signed or sent it."""

    reason = "NAME_MISMATCH"


class BadSignature(DiscoveryError):
    """A record does not decode, or its signature or certificate does not hold."""

    reason = "BAD_SIGNATURE"


class Expired(DiscoveryError):
    """A record is out of date, or from the future."""

    reason = "EXPIRED"


class TableFull(DiscoveryError):
    """No room for another peer."""

    reason = "TABLE_FULL"


class LimitReached(DiscoveryError):
    """Asked for too often, or by too many at once."""

    reason = "LIMIT"


class WorkRequired(DiscoveryError):
    """An address that is not the caller's own is dialled for work only."""

    reason = "WORK_REQUIRED"


class BadTarget(DiscoveryError):
    """An address or a port that is never dialled for others."""

    reason = "BAD_TARGET"


class TooManyCalls(DiscoveryError):
    """The caller calls more often than any honest node does."""

    reason = "TOO_MANY_CALLS"


class TooLarge(DiscoveryError):
    """A record exceeds the size limit."""

    reason = "TOO_LARGE"
