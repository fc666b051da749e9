"""Protobuf values in the words and units of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from protos import discovery_pb2, tunnel_pb2

_Value = TypeVar("_Value", bound=int)


def milliseconds(duration: Duration) -> float:
    """Milliseconds with microseconds behind the point."""
    return round(duration.ToMicroseconds() / 1000, 3)


def seconds(duration: Duration) -> float:
    """Seconds with milliseconds behind the point."""
    return round(duration.ToMilliseconds() / 1000, 3)


def path_kind(kind: tunnel_pb2.PathKind.ValueType) -> str:
    """ "direct", "punched", "relayed"; "" while there is no path."""
    return word(tunnel_pb2.PathKind.Name, kind, "PATH_KIND_")


def peer_source(source: discovery_pb2.PeerSource.ValueType) -> str:
    """ "config", "mdns", "lookup", "cache", "self", "kubernetes"."""
    return word(discovery_pb2.PeerSource.Name, source, "PEER_SOURCE_")


def word(name: Callable[[_Value], str], value: _Value, prefix: str) -> str:
    """The name of an enum's value without its prefix, in the command line's spelling: "address-dependent". A value that
    a newer service has added is "unknown-9"."""
    try:
        short = name(value).removeprefix(prefix).lower().replace("_", "-")
    except ValueError:
        return f"unknown-{value}"
    return "" if short == "unspecified" else short
