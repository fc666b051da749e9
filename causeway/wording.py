"""Protobuf values in the words and units of the command line."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from protos import discovery_pb2, tunnel_pb2


def milliseconds(duration: Duration) -> float:
    """Milliseconds with microseconds behind the point."""
    return round(duration.ToMicroseconds() / 1000, 3)


def seconds(duration: Duration) -> float:
    """Seconds with milliseconds behind the point."""
    return round(duration.ToMilliseconds() / 1000, 3)


def path_kind(kind: tunnel_pb2.PathKind.ValueType) -> str:
    """ "direct", "punched", "relayed"; "" while there is no path."""
    return word(tunnel_pb2.PathKind.Name(kind), "PATH_KIND_")


def peer_source(source: discovery_pb2.PeerSource.ValueType) -> str:
    """ "config", "mdns", "lookup", "cache", "self", "kubernetes"."""
    return word(discovery_pb2.PeerSource.Name(source), "PEER_SOURCE_")


def word(name: str, prefix: str) -> str:
    """Name of an enum's value without its prefix, in the command line's spelling: "address-dependent"."""
    short = name.removeprefix(prefix).lower().replace("_", "-")
    return "" if short == "unspecified" else short
