"""What the proxy counts. Plain integers: an increment on the path of every connection must cost nothing."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from services.runtime.core.buckets import FIRST_BYTE, Buckets


class Local:
    """What a service's connections and flows carried that stayed on this node; the tunnel counts the others."""

    def __init__(self) -> None:
        self.bytes = [0, 0]  # from clients, and from backends
        self.first = Buckets(FIRST_BYTE)  # until the first byte of a backend, from when the client came


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
