"""What kind of NAT a node is behind, judged from what its relays saw and what came through.

Words of RFC 4787 (and RFC 5382 for TCP). *Mapping*: which outside address a local port gets; endpoint-independent:
one for all destinations; endpoint-dependent: one for each. *Filtering*: who may come in through it; anybody
(endpoint-independent), whoever the port has sent to (address-dependent), or only the very port it has sent to.

| mapping     | filtering            | kind            |
|-------------|----------------------|-----------------|
| none        | independent          | PUBLIC          |
| none        | anything else        | FIREWALL        |
| independent | independent          | FULL_CONE       |
| independent | address              | RESTRICTED      |
| independent | address and port     | PORT_RESTRICTED |
| dependent   | anything             | SYMMETRIC       |
"""

import enum
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from services.runtime.core.private import private


class Mapping(enum.Enum):
    """Which outside address a local port gets."""

    UNKNOWN = 0
    NONE = 1
    ENDPOINT_INDEPENDENT = 2
    ENDPOINT_DEPENDENT = 3


class Filtering(enum.Enum):
    """Who may come in."""

    UNKNOWN = 0
    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


class Kind(enum.Enum):
    """The usual names of the combinations, see the table above."""

    UNKNOWN = 0
    PUBLIC = 1
    FIREWALL = 2
    FULL_CONE = 3
    RESTRICTED = 4
    PORT_RESTRICTED = 5
    SYMMETRIC = 6


Endpoint = tuple[str, int]
"""IP and port."""

CARRIER = ipaddress.ip_network("100.64.0.0/10")


def is_inside(ip: str) -> bool:
    """Not reachable across the Internet."""
    address = ipaddress.ip_address(ip.split("%")[0])
    return private(address) or address.is_loopback or address.is_link_local


@dataclass(frozen=True, slots=True)
class Sighting:
    """A relay at `relay_ip` saw the connection from `local` come from `observed`."""

    relay: str
    relay_ip: str
    local: Endpoint
    observed: Endpoint

    @property
    def translated(self) -> bool:
        return self.local != self.observed

    @property
    def outside(self) -> int:
        """How far out the relay is: 2 on the Internet, 1 behind a NAT of ours but not behind all, 0 beside us."""
        return 2 if not is_inside(self.observed[0]) else 1 if self.local[0] != self.observed[0] else 0


def outermost(sightings: Sequence[Sighting]) -> list[Sighting]:
    """Those that tell of the way out: a relay in our own network sees no NAT, whatever there is behind it."""
    far = max((sighting.outside for sighting in sightings), default=0)
    return [sighting for sighting in sightings if sighting.outside == far]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A relay tried to come in through the outside address of a port."""

    relay: str
    stranger: bool
    """The port has never sent anything to this relay; else it has, but to another port of it."""
    arrived: bool | None
    """None: it could not be tried."""
    detail: str
    """How it ended, a few words."""


def judge_mapping(sightings: Sequence[Sighting]) -> tuple[Mapping, str]:
    """From sightings of *one* local port; with the reason in one line."""
    seen = outermost(sightings)
    if not seen:
        return Mapping.UNKNOWN, "no relay answered on the port that was to be observed"
    if not seen[0].outside:
        return Mapping.UNKNOWN, "the relays that answered are in this node's own network: what is beyond was not seen"
    observed = {sighting.observed for sighting in seen}
    names = " and ".join(sighting.relay for sighting in seen)
    if len(observed) > 1:
        shown = ", ".join(f"{sighting.relay} sees {show(sighting.observed)}" for sighting in seen)
        return Mapping.ENDPOINT_DEPENDENT, f"one local port, another outside address for each destination: {shown}"
    if not seen[0].translated:
        return Mapping.NONE, f"{names} sees this node's own address" if len(
            seen
        ) == 1 else f"{names} see its own address"
    if len({sighting.relay_ip for sighting in seen}) < 2:
        text = f"{seen[0].relay} sees {show(seen[0].observed)}; whether others see the same takes a second relay"
        return Mapping.UNKNOWN, f"{text} with another address"
    return Mapping.ENDPOINT_INDEPENDENT, f"{names} see the same address {show(seen[0].observed)}"


def judge_filtering(attempts: Sequence[Attempt]) -> tuple[Filtering, str]:
    """From attempts to come in, with the reason in one line."""
    strangers = [attempt for attempt in attempts if attempt.stranger and attempt.arrived is not None]
    known = [attempt for attempt in attempts if not attempt.stranger and attempt.arrived is not None]
    for attempt in strangers:
        if attempt.arrived:
            return Filtering.ENDPOINT_INDEPENDENT, f"{attempt.relay} got in, to which the port had sent nothing"
    for attempt in known:
        if not attempt.arrived:
            text = f"{attempt.relay}, to which the port had sent, did not get in from another port ({attempt.detail})"
            return Filtering.ADDRESS_AND_PORT_DEPENDENT, text
    if strangers and known:
        text = f"{known[0].relay}, to which the port had sent, got in from another port; {strangers[0].relay} did not"
        return Filtering.ADDRESS_DEPENDENT, f"{text} ({strangers[0].detail})"
    if known:
        return Filtering.UNKNOWN, f"{known[0].relay} got in; whether strangers do, too, takes a second relay"
    failed = [f"{attempt.relay}: {attempt.detail}" for attempt in attempts]
    return Filtering.UNKNOWN, "; ".join(failed) or "no relay could be asked to come in"


def judge(mapping: Mapping, filtering: Filtering) -> Kind:
    """The usual name."""
    match mapping, filtering:
        case Mapping.ENDPOINT_DEPENDENT, _:
            return Kind.SYMMETRIC
        case (Mapping.UNKNOWN, _) | (_, Filtering.UNKNOWN):
            return Kind.UNKNOWN
        case Mapping.NONE, Filtering.ENDPOINT_INDEPENDENT:
            return Kind.PUBLIC
        case Mapping.NONE, _:
            return Kind.FIREWALL
        case _, Filtering.ENDPOINT_INDEPENDENT:
            return Kind.FULL_CONE
        case _, Filtering.ADDRESS_DEPENDENT:
            return Kind.RESTRICTED
    return Kind.PORT_RESTRICTED


_VERDICTS = {
    # Which pairs can punch was measured in the simulated networks, 20 tries each: all did, or none.
    Kind.PUBLIC: "a public address without a firewall in front: other nodes connect directly",
    Kind.FIREWALL: "a public address behind a firewall that lets only answers in (easy): two such nodes can punch, "
    "and so can one with any NAT that is not symmetric",
    Kind.FULL_CONE: "behind a full-cone NAT (easy): once a port is in use, any node can connect to it",
    Kind.RESTRICTED: "behind a restricted NAT (easy): it can punch with nodes behind any kind of NAT",
    Kind.PORT_RESTRICTED: "behind a port-restricted NAT (easy): two such nodes can punch; with a symmetric one a relay is "
    "needed",
    Kind.SYMMETRIC: "behind a symmetric NAT (hard): it can punch only with nodes that are public or behind a full-cone or "
    "restricted NAT; with others a relay is needed",
}


def verdict(kind: Kind, mapping: Mapping, filtering: Filtering, *, relays: int, known: int) -> str:
    """One sentence for a person. `relays`: how many answered, of `known` ones."""
    if kind in _VERDICTS:
        return _VERDICTS[kind]
    if not known:
        return "unknown: no relay is known, and it takes relays to look at this node from outside"
    if not relays:
        return f"unknown: none of {known} relays answered; this node may be offline"
    if mapping is Mapping.NONE:
        return "a public address; whether a firewall is in front could not be found out"
    if mapping is Mapping.ENDPOINT_INDEPENDENT:
        return "behind a NAT that gives a port one address for all (easy); whom it lets in could not be found out"
    if filtering is not Filtering.UNKNOWN:
        return "unknown: how this node's ports are translated takes two relays outside its network"
    return "unknown: it takes two relays outside this node's network"


def is_carrier(ip: str) -> bool:
    """In the range that carriers use between their NAT and their customers' (RFC 6598)."""
    address = ipaddress.ip_address(ip.split("%")[0])
    return address.version == 4 and address in CARRIER


def show(endpoint: Endpoint) -> str:
    """ "ip:port", with brackets for IPv6."""
    ip, port = endpoint
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def parse(text: str) -> Endpoint:
    """The reverse of `show`. ValueError when it is none."""
    host, _, port = text.rpartition(":")
    ip = host.strip("[]")
    ipaddress.ip_address(ip.split("%")[0])
    return ip, int(port)
