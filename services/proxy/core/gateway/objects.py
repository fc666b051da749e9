"""Bodies of Gateway and VirtualService objects (networking.istio.io/v1) → what is served.

Shapes: istio.io/latest/docs/reference/config/networking/gateway and …/virtual-service.

What cannot be served is left out by the server and by the route, not by the object. A route that is left out keeps its
requests: it stands where it stood, with as many of its conditions as are understood, and refuses what may be its. If the
next route got them, a canary would take everybody, or a backend what its author keeps from it.
"""

import base64
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, get_args

from services.proxy.core.gateway.hosts import HostError, pattern
from services.proxy.core.gateway.model import (
    Destination,
    Direct,
    HttpRoute,
    Match,
    Mode,
    Protocol,
    Redirect,
    Server,
    Spread,
    StreamMatch,
    StreamRoute,
    Text,
    Tls,
    VirtualService,
)
from services.proxy.core.gateway.spec import ObjectError, Spec
from services.proxy.core.regex import Regex, RegexError

T = TypeVar("T")

MAX_LIST = 1024  # servers of a Gateway, routes of a VirtualService, matches of a route

_VERSIONS = ("", "TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|h|m|s)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# What would be nice to have, and does no harm when it is not done.
_IDLE = ("retries", "corsPolicy", "mirror", "mirrors", "mirrorPercentage", "mirrorPercent", "headers", "fault")


Problems = dict[str, str]  # what cannot be served, by the path of the server or route


def gateway(namespace: str, name: str, body: Any) -> tuple[dict[str, Server], Problems]:
    """The servers of a Gateway by their paths. Raises ObjectError."""
    spec = Spec(body, "spec")
    spec.ignore("selector")  # every gateway of the mesh serves every Gateway, as EdgeMesh's do
    servers: dict[str, Server] = {}
    problems: Problems = {}
    for server in _bounded(spec.specs("servers"), "spec.servers"):
        try:
            servers[server.path] = _server(f"{namespace}/{name}", server)
        except ObjectError as error:
            problems[server.path] = str(error)
    spec.end()
    if not servers and not problems:
        raise ObjectError("spec.servers is missing")
    return servers, problems


def _server(gateway: str, spec: Spec) -> Server:
    port = spec.spec("port", required=True)
    number = port.number("number", 1, 65535)
    if not number:
        raise ObjectError(f"{port.path}.number is missing")
    protocol = port.text("protocol", required=True).upper()
    port.ignore("name", "targetPort")
    port.end()
    if protocol not in get_args(Protocol):
        raise ObjectError(f"{port.path}.protocol is {protocol!r}, expected {', '.join(get_args(Protocol))}")
    hosts = tuple(_server_host(host, gateway, spec.path) for host in spec.texts("hosts"))
    if not hosts:
        raise ObjectError(f"{spec.path}.hosts is missing")
    tls = spec.spec("tls") if "tls" in spec else None
    to_https = tls.flag("httpsRedirect") if tls is not None else False
    spec.ignore("name", "defaultEndpoint")
    bind = spec.text("bind")
    if bind not in ("", "0.0.0.0", "::"):
        raise ObjectError(f"{spec.path}.bind is not supported; choose addresses by modules.edgeGateway.includeIP")
    spec.end()
    found = _tls(tls, gateway.partition("/")[0], http=protocol == "HTTPS") if tls is not None and tls.names() else None
    if found is None and protocol in ("HTTPS", "TLS"):
        raise ObjectError(f"{spec.path}.tls.mode is missing; {protocol} needs one")
    if found is not None and protocol not in ("HTTPS", "TLS"):
        raise ObjectError(f"{spec.path}.tls goes with HTTPS and TLS, not with {protocol}")
    return Server(gateway, number, protocol, hosts, found, to_https)  # type: ignore[arg-type]


def _server_host(text: str, gateway: str, path: str) -> tuple[str, str]:
    """ "host", "namespace/host", "./host" or "*/host"."""
    namespace, slash, host = text.rpartition("/")
    if namespace == ".":
        namespace = gateway.partition("/")[0]
    return (namespace if slash else "*"), _host(host, f"{path}.hosts")


def _tls(spec: Spec, namespace: str, *, http: bool) -> Tls:
    mode = spec.text("mode", "PASSTHROUGH")  # Istio's default, its zero
    if mode not in get_args(Mode):
        raise ObjectError(f"{spec.path}.mode is {mode!r}, expected {', '.join(get_args(Mode))}")
    credential = spec.text("credentialName").removeprefix("kubernetes://")
    if credential and "/" not in credential:
        credential = f"{namespace}/{credential}"
    files = [spec.text(key) for key in ("serverCertificate", "privateKey", "caCertificates")]
    versions = [spec.text(key).upper() for key in ("minProtocolVersion", "maxProtocolVersion")]
    if not set(versions) <= set(_VERSIONS):
        raise ObjectError(f"{spec.path}.minProtocolVersion or maxProtocolVersion is none of {', '.join(_VERSIONS[1:])}")
    spec.ignore("cipherSuites")
    spec.end()
    if mode != "PASSTHROUGH" and not credential and not (files[0] and files[1]):
        raise ObjectError(f"{spec.path}.credentialName is missing, or serverCertificate and privateKey")
    lowest, highest = ("" if one == "TLS_AUTO" else one for one in versions)
    return Tls(mode, credential, files[0], files[1], files[2], lowest, highest, http)  # type: ignore[arg-type]


def virtual_service(namespace: str, name: str, body: Any) -> tuple[VirtualService, list[str], Problems]:
    """A VirtualService, and the fields without effect. Raises ObjectError."""
    spec = Spec(body, "spec")
    key = f"{namespace}/{name}"
    spec.ignore("exportTo")
    hosts = tuple(_host(host, "spec.hosts") for host in spec.texts("hosts"))
    if not hosts:
        raise ObjectError("spec.hosts is missing")
    gateways = tuple(one for one in _gateways(spec, namespace) if one != "mesh")
    idle: list[str] = []
    problems: Problems = {}
    http = [
        _http_route(one, namespace, f"{key}:{index}", idle, problems)
        for index, one in enumerate(_bounded(spec.specs("http"), "spec.http"))
    ]
    streams = {
        kind: tuple(
            _stream_route(one, namespace, f"{key}:{kind}{index}", kind, idle, problems)
            for index, one in enumerate(_bounded(spec.specs(kind), f"spec.{kind}"))
        )
        for kind in ("tls", "tcp")
    }
    spec.end()
    return VirtualService(key, hosts, gateways, tuple(http), streams["tls"], streams["tcp"]), idle, problems


def _gateways(spec: Spec, namespace: str) -> tuple[str, ...]:
    """ "namespace/name" of each, or "mesh"."""
    return tuple(one if "/" in one or one == "mesh" else f"{namespace}/{one}" for one in spec.texts("gateways"))


class _Faults:
    """Conditions that are not understood, while the rest of them is read."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def read(self, condition: Callable[[], T]) -> T | None:
        try:
            return condition()
        except ObjectError as error:
            self.found.append(str(error))
            return None

    def check(self) -> None:
        if self.found:
            raise ObjectError(self.found[0])


def _http_route(spec: Spec, namespace: str, label: str, idle: list[str], problems: Problems) -> HttpRoute:
    name = spec.text("name")
    if name:
        label = f"{label.rpartition(':')[0]}:{name[:63]}"
    faults = _Faults()
    several = faults.read(lambda: _bounded(spec.specs("match"), f"{spec.path}.match")) or []
    matches = tuple(_match(one, namespace, faults) for one in several) or (Match(),)
    try:
        faults.check()
        return _http_served(spec, namespace, label, matches, idle)
    except ObjectError as error:
        problems[spec.path] = str(error)
        return HttpRoute(label, matches, vague=bool(faults.found))


def _http_served(spec: Spec, namespace: str, label: str, matches: tuple[Match, ...], idle: list[str]) -> HttpRoute:
    redirect = _redirect(spec.spec("redirect")) if "redirect" in spec else None
    direct = _direct(spec.spec("directResponse")) if "directResponse" in spec else None
    rewrite = spec.spec("rewrite")
    uri, authority = _sendable(rewrite, "uri"), _sendable(rewrite, "authority")
    rewrite.end()
    timeout = _seconds(spec.text("timeout"), f"{spec.path}.timeout")
    routes = spec.specs("route")
    if bool(routes) + (redirect is not None) + (direct is not None) != 1:
        raise ObjectError(f"{spec.path} has none of route, redirect and directResponse, or several; expected one")
    spread = _spread(routes, namespace, spec.path, idle) if routes else None
    ignored = spec.ignore(*_IDLE)
    spec.end()
    idle += ignored
    return HttpRoute(label, matches, spread, redirect, direct, uri, authority, timeout)


def _match(spec: Spec, namespace: str, faults: _Faults) -> Match:
    """Where there are `faults` it holds for more than its author meant."""
    spec.ignore("name", "statPrefix")
    fold = faults.read(lambda: spec.flag("ignoreUriCase")) or False
    single = {
        key: faults.read(partial(_condition, spec, key, fold=fold and key == "uri"))
        for key in ("uri", "method", "authority", "scheme")
    }
    several = {
        key: faults.read(partial(_texts, spec, key)) or () for key in ("headers", "withoutHeaders", "queryParams")
    }
    port = faults.read(lambda: spec.number("port", 1, 65535)) or 0
    gateways = faults.read(lambda: _gateways(spec, namespace)) or ()
    faults.read(spec.end)
    return Match(
        **single,
        headers=several["headers"],
        without=several["withoutHeaders"],
        query=several["queryParams"],
        port=port,
        gateways=gateways,
    )


def _condition(spec: Spec, key: str, *, fold: bool) -> Text | None:
    return _text(spec.spec(key), fold=fold) if key in spec else None


def _texts(spec: Spec, kind: str) -> tuple[tuple[str, Text], ...]:
    lower, spec = kind != "queryParams", spec.spec(kind)
    return tuple((key.lower() if lower else key, _text(spec.spec(key), present=True)) for key in spec.names())


def _text(spec: Spec, *, fold: bool = False, present: bool = False) -> Text:
    """StringMatch: one of exact, prefix, regex. `present`: none of them means that it is there."""
    kinds = spec.names()
    if not kinds and present:
        return Text("present")
    if len(kinds) != 1 or kinds[0] not in ("exact", "prefix", "regex"):
        raise ObjectError(f"{spec.path} has {', '.join(kinds) or 'nothing'}, expected exact, prefix or regex")
    value = spec.text(kinds[0])
    if kinds[0] == "regex":
        try:
            return Text("regex", value, Regex(value, fold=fold))
        except RegexError as error:
            raise ObjectError(f"{spec.path}.regex: {error}") from None
    return Text(kinds[0], value.lower() if fold else value, None, fold)  # type: ignore[arg-type]


def _redirect(spec: Spec) -> Redirect:
    code = spec.number("redirectCode", 300, 399, 301)
    if code not in (301, 302, 303, 307, 308):
        raise ObjectError(f"{spec.path}.redirectCode is {code}, expected 301, 302, 303, 307 or 308")
    scheme = spec.text("scheme").lower()
    if scheme not in ("", "http", "https"):
        raise ObjectError(f"{spec.path}.scheme is {scheme!r}, expected http or https")
    authority, uri = _sendable(spec, "authority"), _sendable(spec, "uri")
    found = Redirect(code, scheme, authority, spec.number("port", 1, 65535), uri)
    spec.end()
    return found


def _direct(spec: Spec) -> Direct:
    status = spec.number("status", 200, 599)
    if not status:
        raise ObjectError(f"{spec.path}.status is missing")
    body = spec.spec("body")
    text, encoded = body.text("string"), body.text("bytes")
    body.end()
    spec.end()
    try:
        return Direct(status, text.encode() if text else base64.b64decode(encoded, validate=True))
    except ValueError:
        raise ObjectError(f"{body.path}.bytes is not base64") from None


def _sendable(spec: Spec, key: str) -> str:
    """A text that may stand in the head of a message."""
    text = spec.text(key)
    if not re.fullmatch(r"[!-~]{0,2048}", text):
        raise ObjectError(f"{spec.path}.{key} has spaces or other characters that no address has; write them as %XX")
    return text


def _stream_route(
    spec: Spec, namespace: str, label: str, kind: str, idle: list[str], problems: Problems
) -> StreamRoute:
    faults = _Faults()
    several = faults.read(lambda: _bounded(spec.specs("match"), f"{spec.path}.match")) or []
    matches = tuple(_stream_match(one, namespace, kind, faults) for one in several)
    if not matches:
        matches = (StreamMatch(sni=("*",) if kind == "tls" else ()),)
        if kind == "tls":
            faults.found.append(f"{spec.path}.match is missing")
    try:
        faults.check()
        spread = _spread(spec.specs("route"), namespace, spec.path, idle)
        spec.end()
        return StreamRoute(label, matches, spread)
    except ObjectError as error:
        problems[spec.path] = str(error)
        return StreamRoute(label, matches, vague=bool(faults.found))


def _stream_match(spec: Spec, namespace: str, kind: str, faults: _Faults) -> StreamMatch:
    """Where there are `faults` it holds for more than its author meant."""
    port = faults.read(lambda: spec.number("port", 1, 65535)) or 0
    sni = faults.read(lambda: tuple(_host(host, f"{spec.path}.sniHosts") for host in spec.texts("sniHosts"))) or ()
    gateways = faults.read(lambda: _gateways(spec, namespace)) or ()
    faults.read(spec.end)
    if kind == "tls" and not sni:
        faults.found.append(f"{spec.path}.sniHosts is missing")
        sni = ("*",)
    if kind == "tcp" and sni:
        faults.found.append(f"{spec.path}.sniHosts is for spec.tls")
    return StreamMatch(port, sni, gateways)


def _spread(routes: list[Spec], namespace: str, path: str, idle: list[str]) -> Spread:
    if not routes:
        raise ObjectError(f"{path}.route is missing")
    destinations, weights = [], []
    for route in _bounded(routes, f"{path}.route"):
        weights.append(route.number("weight", 0, 1_000_000, 100 if len(routes) == 1 else 0))
        target = route.spec("destination", required=True)
        host, port = target.text("host", required=True), target.spec("port")
        number = port.number("number", 1, 65535)
        port.end()
        if "subset" in target:
            raise ObjectError(
                f"{target.path}.subset is not supported: by which labels endpoints differ is in no EndpointSlice; give each"
                " version a Service of its own"
            )
        target.end()
        idle += route.ignore("headers")
        route.end()
        destinations.append(Destination(_service(host, namespace, target.path), number))
    if len(routes) == 1:
        weights = [1]
    if not any(weights):
        raise ObjectError(f"{path}.route has no weight above 0")
    return Spread(tuple(destinations), tuple(weights))


def _service(host: str, namespace: str, path: str) -> str:
    """ "namespace/name" of a short name, or of "name.namespace[.svc[.cluster.local]]"."""
    name, _, rest = host.lower().partition(".")
    other, _, suffix = rest.partition(".")
    if not name or suffix not in ("", "svc", "svc.cluster.local"):
        raise ObjectError(f"{path}.host is {host!r}, expected a Service: NAME or NAME.NAMESPACE.svc.cluster.local")
    return f"{other or namespace}/{name}"


def _seconds(text: str, path: str) -> float:
    """Go's durations: "5s", "1m30s", "100ms"."""
    parts = _DURATION.findall(text)
    if "".join(f"{count}{unit}" for count, unit in parts) != text and text != "0":
        raise ObjectError(f"{path} is {text!r}, expected a duration such as 5s or 1m30s")
    return sum(float(count) * _UNITS[unit] for count, unit in parts)


def _host(text: str, path: str) -> str:
    try:
        return pattern(text)
    except HostError as error:
        raise ObjectError(f"{path}: {error}") from None


def _bounded(specs: list[Spec], path: str) -> list[Spec]:
    if len(specs) > MAX_LIST:
        raise ObjectError(f"{path} has {len(specs)} entries, expected at most {MAX_LIST}")
    return specs
