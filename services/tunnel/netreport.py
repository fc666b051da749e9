"""What a check of the network has found out, and what follows from it."""

from dataclasses import dataclass, field

from services.tunnel.core import natkind
from services.tunnel.core.natkind import Attempt, Filtering, Kind, Mapping, Sighting
from services.tunnel.portmap.mapper import PortMapping


@dataclass(slots=True)
class CheckedRelay:
    """One relay in one address family. `rtt` None: it did not answer, see `error`."""

    relay: str
    address: str
    rtt: float | None = None
    observed: str = ""
    reserved: bool = False
    error: str = ""


@dataclass(slots=True)
class CheckedAddress:
    """One address of this node. `reachable` None: not known; `why` says more in any case."""

    address: str
    source: str
    """"advertised", "interface", "observed" or "mapped"."""
    reachable: bool | None
    why: str


@dataclass(slots=True)
class Report:
    """What was found out. `hairpin` None: unknown, or not needed (no NAT)."""

    node_name: str
    relays: list[CheckedRelay] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    addresses: list[CheckedAddress] = field(default_factory=list)
    kind: Kind = Kind.UNKNOWN
    mapping: Mapping = Mapping.UNKNOWN
    mapping_why: str = ""
    filtering: Filtering = Filtering.UNKNOWN
    filtering_why: str = ""
    port_preserved: bool | None = None
    hairpin: bool | None = None
    hairpin_why: str = ""
    port_mapping: PortMapping = field(default_factory=PortMapping)
    verdict: str = ""
    notes: list[str] = field(default_factory=list)
    took: float = 0.0

    def conclude(self) -> None:
        """Judges what there is."""
        self.mapping, self.mapping_why = natkind.judge_mapping(self.sightings)
        self.filtering, self.filtering_why = natkind.judge_filtering(self.attempts)
        self.kind = natkind.judge(self.mapping, self.filtering)
        outer = natkind.outermost(self.sightings)
        if outer:
            self.port_preserved = outer[0].local[1] == outer[0].observed[1]
        answered = {relay.relay for relay in self.relays if relay.rtt is not None}
        known = {relay.relay for relay in self.relays}
        self.verdict = natkind.verdict(self.kind, self.mapping, self.filtering, relays=len(answered), known=len(known))
        for address in self.addresses:
            self._doubt(address)
        self.relays.sort(key=lambda relay: (relay.rtt is None, relay.rtt or 0.0, relay.relay))

    def _doubt(self, address: CheckedAddress) -> None:
        # Relays hold control connections from the listen port: a NAT that lets in whom a port has sent to lets
        # them in, and nobody else.
        if address.reachable and self.filtering is Filtering.ADDRESS_DEPENDENT:
            address.reachable = None
            address.why += ", but this node talks to it anyway; the NAT may refuse others"
