"""Request targets: how they are read, rewritten and redirected."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from services.proxy.core.gateway.model import HttpRoute, Match, Redirect

# What a server may take for a step up or for a slash though it is written otherwise.
_ODD = re.compile(r"/\.|%2e|\\", re.IGNORECASE)
_AUTHORITY = re.compile(r"([A-Za-z0-9._~%-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])?(:\d{0,5})?")
_DOT = re.compile(r"%2e", re.IGNORECASE)


class TargetError(ValueError):
    """No request target that a gateway takes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A request target. `query` with its "?", "" without; `authority` "" where the target has none."""

    path: str
    query: str = ""
    authority: str = ""

    def parameters(self) -> dict[str, str]:
        """Of the query; the first of each name."""
        found: dict[str, str] = {}
        for name, value in parse_qsl(self.query[1:], keep_blank_values=True, max_num_fields=None):
            found.setdefault(name, value)
        return found


def read(text: str) -> Target:
    """A request target in origin, absolute or asterisk form (RFC 9112, 3.2). Raises TargetError.

    The path has no dot segments left (RFC 3986, 5.2.4) and goes to the backend so: whatever a server would take for
    `/admin` is `/admin` for the routes, too.
    """
    authority = ""
    if text[:7].lower() == "http://" or text[:8].lower() == "https://":
        rest = text.partition("://")[2]
        end = min((at for at in map(rest.find, "/?") if at >= 0), default=len(rest))
        authority, text = rest[:end], rest[end:]
        if not authority:
            raise TargetError("the target has no authority")
        if not text.startswith("/"):
            text = f"/{text}"
    elif text == "*":
        return Target(text)
    if not text.startswith("/") or "#" in text:
        raise TargetError("the target is no absolute path")
    path, mark, query = text.partition("?")
    return Target(normal(path), mark + query, authority)


def check_authority(text: str) -> None:
    """Raises TargetError for what is neither "host" nor "host:port"."""
    if not _AUTHORITY.fullmatch(text):
        raise TargetError("the host is not one")


def normal(path: str) -> str:
    """Without dot segments, and with slashes for backslashes; most paths are so already."""
    if not _ODD.search(path):
        return path
    kept: list[str] = []
    segments = _DOT.sub(".", path.replace("\\", "/")).split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def rewrite(route: HttpRoute, match: Match, target: Target) -> str:
    """The target for the backend: with a new prefix where a prefix matched, else with a new path; the query stays."""
    if not route.rewrite_uri or target.path == "*":
        return target.path + target.query
    uri = match.uri
    if uri is None:
        path = route.rewrite_uri + target.path[1:]  # everything begins with "/"
    elif uri.kind == "prefix":
        path = route.rewrite_uri + target.path[len(uri.value) :]
    else:
        path = route.rewrite_uri
    return (path if path.startswith("/") else f"/{path}") + target.query


def location(redirect: Redirect, target: Target, scheme: str, authority: str) -> str:
    """Where a redirect leads."""
    to = redirect.scheme or scheme
    host = redirect.authority or authority
    if redirect.port or (redirect.scheme and redirect.scheme != scheme and not redirect.authority):
        # A port belongs to its scheme: the other one has its own.
        name, colon, port = host.rpartition(":")
        host = name if colon and port.isdigit() else host
        if redirect.port and redirect.port != {"http": 80, "https": 443}[to]:
            host += f":{redirect.port}"
    path = redirect.uri or target.path
    return f"{to}://{host}{path if path.startswith('/') else '/' + path}{target.query}"
