"""How refusals of the core look on the wire."""

from __future__ import annotations

import grpc

from .core.errors import (
    BadSignature,
    BadTarget,
    DiscoveryError,
    Expired,
    LimitReached,
    NameMismatch,
    NobodyAnswered,
    RevisionCompacted,
    SlowReader,
    TableFull,
    TooLarge,
    UnknownNode,
    WorkRequired,
)

_CODES: dict[type[DiscoveryError], grpc.StatusCode] = {
    UnknownNode: grpc.StatusCode.NOT_FOUND,
    NobodyAnswered: grpc.StatusCode.UNAVAILABLE,
    RevisionCompacted: grpc.StatusCode.OUT_OF_RANGE,
    SlowReader: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NameMismatch: grpc.StatusCode.PERMISSION_DENIED,
    BadSignature: grpc.StatusCode.PERMISSION_DENIED,
    Expired: grpc.StatusCode.FAILED_PRECONDITION,
    TableFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WorkRequired: grpc.StatusCode.FAILED_PRECONDITION,
    BadTarget: grpc.StatusCode.INVALID_ARGUMENT,
}


def code_of(error: DiscoveryError) -> grpc.StatusCode:
    """The gRPC code that goes with the error's reason."""
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)
