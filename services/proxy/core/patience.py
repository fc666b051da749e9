"""How long an attempt to connect to a backend may take.

A backend that is gone says so at once; one that is silent costs its clients the whole time. So while others are well an
attempt is short, and its client goes on to the next (RFC 8305 does that for the addresses of a host, after 250 ms, and
races them; here one socket of the client's can have but one reader, so the attempt is given up). Only who has no other
choice waits for the rest of the time.
"""

from collections.abc import Iterable, Mapping

from services.proxy.core.catalog import Service

CONNECT = 5.0
"""Seconds for an attempt unless a DestinationRule says otherwise: two repeated SYNs (after 1 and 3 s, RFC 6298)."""
ATTEMPT = 0.5
"""Seconds while others are well: a backend of the node has answered by then, or the SYN was lost; of a path to a node only one
that is silent is given up by then (`Outbound.timeout` in protos/tunnel.proto). With EJECT_AFTER failures at some requests a
second a silent backend is left out within one."""


def patience(connect: float, *, others: bool) -> float:
    """Seconds for an attempt, where `connect` is the most. `others`: somebody else is well, and may be asked next."""
    return min(connect, ATTEMPT) if others else connect


def of_exits(services: Iterable[Service], connect: Mapping[str, float]) -> dict[str, float]:
    """Seconds for connections to endpoints of this node that other nodes ask for; both by the service's key. What those
    have tried already this node does not know; where there is another endpoint, they may."""
    return {
        service.key: patience(
            connect.get(service.key, CONNECT), others=sum(one.ready and one.node != "" for one in service.endpoints) > 1
        )
        for service in services
    }
