"""What a client's first bytes are, what an HTTP request says of who sent it, and the answer that refuses it.

Bytes in, decisions out; the parsing of a whole head is a library's (services/proxy/head.py).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

Looks = Literal["", "http/1", "http/2", "other"]

# An HTTP/2 client begins with these bytes, and no HTTP/1 server can take them for a request (RFC 9113, 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The longest method in IANA's registry is UPDATEREDIRECTREF; what goes on without a space is something else.
_METHOD_MOST = 24
# A request line is recognised by its method and version (RFC 9112, 3); what may still become one matches _BEGUN.
_LINE = re.compile(rb"[A-Z][A-Z-]* [!-\xff]+ HTTP/1\.[01]\r?\n")
_BEGUN = re.compile(rb"[A-Z][A-Z-]*( [!-\xff]*( (H(T(T(P(/(1(\.([01](\r)?)?)?)?)?)?)?)?)?)?)?")

# Istio's convention: a port's name is its protocol, or begins with it and a dash.
_HTTP = frozenset({"http", "http2", "grpc", "grpc-web", "h2c", "ws", "kubernetes.io/h2c", "kubernetes.io/ws"})
_HTTP2 = frozenset({"http2", "grpc", "grpc-web", "h2c", "kubernetes.io/h2c"})
_OTHER = frozenset({"tcp", "tls", "https", "wss", "mongo", "mysql", "redis", "postgres", "postgresql", "ssh", "udp"})

_STATUS = {
    403: "Forbidden",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
_LINE_MOST = 500  # characters of the reason in an answer


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request, whichever HTTP it came by; names of headers in lower case."""

    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def of_fields(cls, fields: Iterable[tuple[bytes, bytes]]) -> "Request":
        """Of HTTP/2's, as the same request has them in HTTP/1: the host is a header, and cookies are one (RFC 9113, 8.2.3
        and 8.3.1)."""
        pseudo: dict[bytes, bytes] = {}
        headers, cookies = [], []
        for name, value in fields:
            if name.startswith(b":"):
                pseudo.setdefault(name, value)
            elif name == b"cookie":
                cookies.append(value)
            else:
                headers.append((name, value))
        if cookies:
            headers.append((b"cookie", b"; ".join(cookies)))
        if b":authority" in pseudo:
            headers = [(b"host", pseudo[b":authority"]), *(one for one in headers if one[0] != b"host")]
        return cls(pseudo.get(b":path", b""), tuple(headers))

    def header(self, name: str) -> str:
        """Its value, those of several joined as one (RFC 9110, 5.3); "" without."""
        wanted = name.lower().encode()
        return b", ".join(value for key, value in self.headers if key == wanted).decode("latin-1")

    def cookie(self, name: str) -> str:
        """The first one of that name."""
        for pair in self.header("cookie").replace(",", ";").split(";"):
            key, _, value = pair.partition("=")
            if key.strip() == name:
                return value.strip().strip('"')
        return ""

    def parameter(self, name: str) -> str:
        """The first one of that name in the query."""
        try:
            query = urlsplit(self.target.decode("latin-1")).query
            return next((value for key, value in parse_qsl(query, max_num_fields=256) if key == name), "")
        except ValueError:  # an authority that is none, or too many parameters
            return ""


def looks(data: bytes) -> Looks:
    """What begins with `data`; "": more of it must be seen."""
    if data.startswith(PREFACE[: len(data)]) and len(data) > 3:  # up to there it may be PRINT as well
        return "http/2" if len(data) >= len(PREFACE) else ""
    if _LINE.match(data):
        return "http/1"
    if _BEGUN.fullmatch(data) and (b" " in data or len(data) <= _METHOD_MOST):
        return ""
    return "other" if data else ""


def speaks(name: str, app_protocol: str = "") -> bool | None:
    """Whether clients of a port speak HTTP, by its appProtocol or else its name; None: neither says."""
    word = app_protocol.lower() or name.lower()
    for known, answer in ((_HTTP, True), (_OTHER, False)):
        if word in known or (not app_protocol and word.partition("-")[0] in known):
            return answer
    return None


def speaks_2(name: str, app_protocol: str = "") -> bool:
    """Whether what listens behind a port is known to speak HTTP/2 in clear text, said as for `speaks`."""
    word = app_protocol.lower() or name.lower()
    return word in _HTTP2 or (not app_protocol and any(word.startswith(f"{known}-") for known in _HTTP2))


def answer(status: int, reason: str, why: str, *, head: bool = False) -> bytes:
    """The whole answer, after which the connection ends; with one line for a person. `head`: to a HEAD request."""
    body = line(reason, why)
    top = (
        f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return top.encode() + (b"" if head else body)


def line(reason: str, why: str) -> bytes:
    """One line, whatever the other node wrote into `why`."""
    text = f"causeway: {reason}" + (f": {why}" if why else "")
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    return clean[:_LINE_MOST].encode(errors="replace") + b"\n"
