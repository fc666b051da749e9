"""Which headers a gateway hands on (RFC 9110, 7.6.1), and which are its own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Header = tuple[bytes, bytes]  # names in lower case

_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
# `Connection` may name others to be removed, but never these: without them the message is another one.
_KEPT = frozenset({b"host", b"content-length", b"content-type", b"authorization", b"cookie", b"set-cookie"})
# Ours; what the client says of itself is kept only where we add to it.
_FORWARDED = frozenset({b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-for", b"x-forwarded-client-cert"})
_NEVER_TRAILING = _HOP | _KEPT | {b"expect", b"content-encoding", b"content-range"}


class HeaderError(ValueError):
    """A request that two servers may understand differently."""


@dataclass(slots=True)
class Head:
    """What a head says about its own message."""

    fields: dict[bytes, list[bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, headers: Iterable[Header]) -> "Head":
        head = cls()
        for name, value in headers:
            head.fields.setdefault(name, []).append(value)
        return head

    def tokens(self, name: bytes) -> set[bytes]:
        """The comma-separated words of a header, in lower case."""
        return {word.strip().lower() for value in self.fields.get(name, ()) for word in value.split(b",")} - {b""}

    def first(self, name: bytes) -> str:
        values = self.fields.get(name)
        return values[0].decode("latin-1") if values else ""

    @property
    def has_body(self) -> bool:
        """A request's body; for responses the status decides, too."""
        return b"transfer-encoding" in self.fields or self.fields.get(b"content-length", [b"0"])[0].strip() != b"0"

    @property
    def upgrade(self) -> bytes:
        """The protocol asked for; b"" for none, and for HTTP/2, which would hide its requests from the routes."""
        wanted = self.fields.get(b"upgrade", [b""])[0].strip()
        if b"upgrade" not in self.tokens(b"connection") or wanted.lower().partition(b"/")[0] in (
            b"h2c",
            b"h2",
            b"http",
        ):
            return b""
        return wanted

    def check(self) -> None:
        """Raises HeaderError for a request that says two things about where it ends (RFC 9112, 6.3 and 11.2)."""
        if b"transfer-encoding" in self.fields and b"content-length" in self.fields:
            raise HeaderError("both Transfer-Encoding and Content-Length")

    def as_text(self) -> Mapping[str, str]:
        """For the routes: by name, several values joined."""
        return {name.decode("latin-1"): b",".join(values).decode("latin-1") for name, values in self.fields.items()}

    def end_to_end(self, extra: frozenset[bytes] = frozenset()) -> list[Header]:
        """Without what belongs to this connection."""
        leave = _HOP | (self.tokens(b"connection") - _KEPT) | extra
        return [(name, value) for name, values in self.fields.items() if name not in leave for value in values]


def for_backend(head: Head, client: str, scheme: str, authority: str, host: str) -> list[Header]:
    """Of a request, but for what belongs to the connection. `authority`: what the client asked for; `host`: what the
    backend is told."""
    headers = [(b"host", host.encode("latin-1")), *head.end_to_end(_FORWARDED | {b"host"})]
    chain = [*head.fields.get(b"x-forwarded-for", ()), client.encode()]
    headers.append((b"x-forwarded-for", b", ".join(chain)))
    headers.append((b"x-forwarded-proto", scheme.encode()))
    headers.append((b"x-forwarded-host", authority.encode("latin-1")))
    return headers


def framing(head: Head, *, has_body: bool) -> list[Header]:
    """Of a request in HTTP/1.1: what its connection is to do."""
    headers = [(b"connection", b"upgrade"), (b"upgrade", head.upgrade)] if head.upgrade else []
    if has_body and b"content-length" not in head.fields:
        headers.append((b"transfer-encoding", b"chunked"))
    return headers


def pseudo(method: bytes, target: bytes, headers: Iterable[Header], head: Head) -> list[Header]:
    """Of a request in HTTP/2 (RFC 9113, 8.3.1); `headers` begin with the host."""
    (_, authority), *rest = headers
    fields = [(b":method", method), (b":scheme", b"http"), (b":path", target), (b":authority", authority), *rest]
    if b"trailers" in head.tokens(b"te"):
        fields.append((b"te", b"trailers"))  # gRPC's clients say so, and its servers may insist
    return fields


def for_client(headers: Iterable[Header], *, upgraded: bool = False) -> list[Header]:
    """Of a response; how its body ends, the connection to the client decides, unless its length is known."""
    head = Head.of(headers)
    sized = frozenset() if b"transfer-encoding" not in head.fields else frozenset({b"content-length"})
    kept = head.end_to_end(sized)
    if upgraded:
        kept += [(b"connection", b"upgrade"), *((b"upgrade", value) for value in head.fields.get(b"upgrade", ()))]
    return kept


def trailers(headers: Iterable[Header]) -> list[Header]:
    """Of a message's end: nothing that belongs to its beginning."""
    return [(name, value) for name, value in headers if name not in _NEVER_TRAILING]
