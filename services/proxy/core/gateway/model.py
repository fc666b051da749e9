"""Gateways and virtual services as they are served: what was read, checked and compiled."""

from dataclasses import dataclass, replace
from typing import Literal

from services.proxy.core.regex import Regex

Protocol = Literal["HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TCP", "TLS"]
Mode = Literal["SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "PASSTHROUGH"]


@dataclass(frozen=True, slots=True)
class Tls:
    """Where a server's certificate is: `credential` "namespace/name" of a Secret, or the three files."""

    mode: Mode
    credential: str = ""
    certificate_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    lowest: str = ""  # "TLSV1_2", …; "": the default
    highest: str = ""
    http: bool = False  # it is ours to choose which HTTP is spoken in it


@dataclass(frozen=True, slots=True)
class Server:
    """One of spec.servers of a Gateway. `hosts`: each with the namespace that virtual services must be of, "*": any."""

    gateway: str  # "namespace/name"
    port: int
    protocol: Protocol
    hosts: tuple[tuple[str, str], ...]
    tls: Tls | None = None
    to_https: bool = False  # answers everything by a redirect to https

    @property
    def speaks_http(self) -> bool:
        return self.protocol not in ("TCP", "TLS")

    @property
    def label(self) -> str:
        """As status shows it."""
        return f"gateway {self.gateway}:{self.port} {self.protocol}"


@dataclass(frozen=True, slots=True)
class Destination:
    """A port of a service."""

    service: str  # "namespace/name"
    port: int  # 0: its only one

    def __str__(self) -> str:
        return f"{self.service}:{self.port}" if self.port else self.service


@dataclass(frozen=True, slots=True)
class Spread:
    """Destinations with their weights; at least one is above zero."""

    destinations: tuple[Destination, ...]
    weights: tuple[int, ...]

    def pick(self, chance: float) -> Destination:
        """`chance` in [0, 1), evenly drawn."""
        if len(self.destinations) == 1:
            return self.destinations[0]
        rest = chance * sum(self.weights)
        for destination, weight in zip(self.destinations, self.weights, strict=True):
            rest -= weight
            if rest < 0:
                return destination
        return self.destinations[-1]


@dataclass(frozen=True, slots=True)
class Text:
    """A condition on a text. kind "present": it is there at all."""

    kind: Literal["exact", "prefix", "regex", "present"]
    value: str = ""
    regex: Regex | None = None
    fold: bool = False

    def matches(self, text: str | None) -> bool:
        if text is None:
            return False
        if self.regex is not None:
            return self.regex.fullmatch(text)
        if self.fold:
            text = text.lower()
        match self.kind:
            case "exact":
                return text == self.value
            case "prefix":
                return text.startswith(self.value)
            case _:
                return True


@dataclass(frozen=True, slots=True)
class Match:
    """All must hold; what is None or empty always does."""

    uri: Text | None = None  # of the path, without its query
    method: Text | None = None
    authority: Text | None = None
    scheme: Text | None = None
    headers: tuple[tuple[str, Text], ...] = ()  # names in lower case
    without: tuple[tuple[str, Text], ...] = ()  # none of these may hold
    query: tuple[tuple[str, Text], ...] = ()
    port: int = 0  # of the gateway
    gateways: tuple[str, ...] = ()  # "namespace/name", or "mesh", which no gateway is


@dataclass(frozen=True, slots=True)
class Redirect:
    """What of the address is to be another one; empty: stays."""

    code: int = 301
    scheme: str = ""
    authority: str = ""
    port: int = 0
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Direct:
    """An answer that needs no backend."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One of spec.http. One of `matches` must hold. `timeout` in seconds, 0: none. Without `spread`, `redirect` and `direct`
    it cannot be served: its requests are nobody else's either. `vague`: some may be those of later routes, which of the
    same virtual service do not get them."""

    label: str  # "namespace/name:route", for metrics
    matches: tuple[Match, ...]
    spread: Spread | None = None
    redirect: Redirect | None = None
    direct: Direct | None = None
    rewrite_uri: str = ""
    rewrite_authority: str = ""
    timeout: float = 0.0
    vague: bool = False

    def at(self, gateway: str) -> "HttpRoute | None":
        """As it is at that gateway; None: it is not there."""
        matches = tuple(match for match in self.matches if not match.gateways or gateway in match.gateways)
        return replace(self, matches=matches) if matches else None


@dataclass(frozen=True, slots=True)
class StreamMatch:
    """All must hold; what is empty always does. `sni`: host patterns, one of which must hold; empty for spec.tcp."""

    port: int = 0  # of the gateway
    sni: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()

    def holds(self, port: int, gateway: str) -> bool:
        return self.port in (0, port) and (not self.gateways or gateway in self.gateways)


@dataclass(frozen=True, slots=True)
class StreamRoute:
    """One of spec.tcp or spec.tls. One of `matches` must hold. Without `spread` it cannot be served: its clients are nobody
    else's either. `vague`: as of HttpRoute."""

    label: str
    matches: tuple[StreamMatch, ...]
    spread: Spread | None = None
    vague: bool = False


@dataclass(frozen=True, slots=True)
class VirtualService:
    """`gateways`: "namespace/name"."""

    key: str
    hosts: tuple[str, ...]
    gateways: tuple[str, ...]
    http: tuple[HttpRoute, ...] = ()
    tls: tuple[StreamRoute, ...] = ()
    tcp: tuple[StreamRoute, ...] = ()

    @property
    def namespace(self) -> str:
        return self.key.partition("/")[0]
