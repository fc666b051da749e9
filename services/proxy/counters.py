"""What the proxy counts. Plain integers: an increment on the path of every connection must cost nothing."""

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field

FIRST_BYTE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Bounds of the buckets of the time to the first byte, in seconds: those of causeway_tunnel_first_byte_seconds."""


class Local:
    """What a service's connections and flows carried that stayed on this node; the tunnel counts the others."""

    def __init__(self) -> None:
        self.bytes = [0, 0]  # from clients, and from backends
        self.first = [0] * (len(FIRST_BYTE) + 1)  # first bytes of backends, by bucket; the last: later than all bounds
        self.waited = 0.0  # s until then, of all together

    def first_byte(self, seconds: float) -> None:
        """A backend has sent its first, so long after the client came."""
        self.first[bisect_left(FIRST_BYTE, seconds)] += 1
        self.waited += seconds


@dataclass(slots=True)
class Counters:
    """Since the start of the service. Service keys are "namespace/name", "" where no service is known."""

    accepted: Counter[str] = field(default_factory=Counter)  # connections and flows from applications, by service
    dialled: Counter[str] = field(default_factory=Counter)  # connections to backends on this node, by service
    refused_inbound: Counter[str] = field(default_factory=Counter)  # streams of other nodes, by reason
    refused_local: Counter[tuple[str, str]] = field(default_factory=Counter)  # clients, by service and reason
    local: defaultdict[str, Local] = field(default_factory=lambda: defaultdict(Local))  # by service
    retried: Counter[str] = field(default_factory=Counter)  # attempts beyond a client's first, by service
    ejected: Counter[str] = field(default_factory=Counter)  # times a backend was left out, by service
    dns: Counter[tuple[str, str]] = field(default_factory=Counter)  # questions, by kind of record and result
    dropped: Counter[str] = field(default_factory=Counter)  # datagrams, by reason
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # of gateways, by route and "2xx"
