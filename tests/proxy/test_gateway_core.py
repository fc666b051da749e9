"""What a gateway serves and where requests go: tables from objects, precedence, weights, rewriting, mistakes."""

import json
import random
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import clienthello
from services.proxy.core.gateway import paths
from services.proxy.core.gateway.hosts import Hosts, host_of, overlap
from services.proxy.core.gateway.table import Answered, Forward, Moved, Object, Request, Table, choose, compile_table


def gateway(*servers: dict[str, Any], name: str = "edge") -> Object:
    return Object("Gateway", "default", name, json.dumps({"selector": {"any": "one"}, "servers": servers}))


def server(port: int = 80, protocol: str = "HTTP", *hosts: str, **tls: Any) -> dict[str, Any]:
    made = {"port": {"number": port, "protocol": protocol, "name": "x"}, "hosts": hosts or ["*"]}
    return made | ({"tls": tls} if tls else {})


def routes(*http: dict[str, Any], hosts: tuple[str, ...] = ("*",), name: str = "r", **spec: Any) -> Object:
    body = {"hosts": hosts, "gateways": ["edge"], **({"http": http} if http else {}), **spec}
    return Object("VirtualService", "default", name, json.dumps(body))


def to(host: str, port: int = 80, **fields: Any) -> dict[str, Any]:
    return {"destination": {"host": host, "port": {"number": port}}, **fields}


def route(host: str, *match: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"route": [to(host)], **({"match": match} if match else {}), **fields}


def prefix(text: str) -> dict[str, Any]:
    return {"uri": {"prefix": text}}


def ask(
    table: Table, target: str, authority: str = "a.example", port: int = 80, method: str = "GET", **headers: str
) -> Forward | Moved | Answered | None:
    served = table.entries[port].find("*" if table.entries[port].kind == "http" else host_of(authority))
    assert served is not None
    scheme = "https" if served.server.tls else "http"
    given: Mapping[str, str] = {name.replace("_", "-"): value for name, value in headers.items()}
    return choose(served, Request(method, paths.read(target), authority, scheme, port, lambda: given), 0.5)


def backend(table: Table, target: str, *more: Any, **headers: Any) -> str:
    answer = ask(table, target, *more, **headers)
    assert answer is None or isinstance(answer, Forward)
    return str(answer.destination) if answer else ""


# ── hosts ──


def test_the_most_exact_host_wins() -> None:
    hosts: Hosts[str] = Hosts()
    for pattern in ("*", "*.example.com", "*.b.example.com", "a.b.example.com"):
        hosts.setdefault(pattern, pattern)
    found = {
        "a.b.example.com": "a.b.example.com",
        "c.b.example.com": "*.b.example.com",
        "x.y.b.example.com": "*.b.example.com",
        "b.example.com": "*.example.com",
        "example.com": "*",
        "badexample.com": "*",
        "": "*",
    }
    assert {host: hosts.find(host) for host in found} == found


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        ("*", "a.b", "a.b"),
        ("*.b", "a.b", "a.b"),
        ("*.b", "*.a.b", "*.a.b"),
        ("*.b", "b", None),
        ("a.b", "a.b", "a.b"),
        ("a", "b", None),
        ("*.ab", "x.b", None),
    ],
)
def test_what_two_patterns_have_in_common(one: str, two: str, both: str | None) -> None:
    assert overlap(one, two) == both == overlap(two, one)


def test_hosts_of_authorities() -> None:
    given = {"A.b:80": "a.b", "a.b.": "a.b", "[fd00::1]:8": "fd00::1", "[::1]": "::1", "": ""}
    assert {text: host_of(text) for text in given} == given


def test_a_virtual_service_has_the_hosts_that_its_gateway_has_too() -> None:
    table = compile_table(
        [
            gateway(server(80, "HTTP", "*.example.com"), server(81, "HTTP", "./a.test", "other/b.test")),
            routes(route("wide"), name="a"),
            routes(route("exact"), hosts=("x.example.com",), name="b"),
        ]
    )
    assert not table.problems
    assert backend(table, "/", "y.example.com") == "default/wide:80"
    assert backend(table, "/", "X.Example.com:80") == "default/exact:80"
    assert ask(table, "/", "example.com") is None
    assert backend(table, "/", "a.test", 81) == "default/wide:80"
    assert ask(table, "/", "b.test", 81) is None


# ── routes ──


def test_routes_in_order_and_every_kind_of_match() -> None:
    table = compile_table(
        [
            gateway(server()),
            routes(
                route("exact", {"uri": {"exact": "/e"}}),
                route("regex", {"uri": {"regex": "/r/[0-9]+"}}),
                route("both", {**prefix("/both"), "headers": {"x-v": {"exact": "2"}}}),
                route("either", prefix("/one"), prefix("/two")),
                route("there", {"headers": {"X-There": {}}}),
                route("post", {"method": {"exact": "POST"}}),
                route("query", {"queryParams": {"q": {"prefix": "a"}}}),
                route("authority", {"authority": {"exact": "b.example:8080"}}),
                route("folded", {"uri": {"prefix": "/Fold"}, "ignoreUriCase": True}),
                route("foldedregex", {"uri": {"regex": "/rx.*"}, "ignoreUriCase": True}),
                route("without", {**prefix("/w"), "withoutHeaders": {"x-no": {}}}),
                route("otherport", {"port": 81}),
                route("scheme", {"scheme": {"exact": "https"}}),
                route("both2", prefix("/both")),
            ),
        ]
    )
    assert not table.problems and not table.idle
    for target, more, expected in (
        ("/e?x=1", {}, "exact"),
        ("/e/", {}, ""),
        ("/r/12", {}, "regex"),
        ("/r/12/", {}, ""),
        ("/both", {"x_v": "2"}, "both"),
        ("/both", {"x_v": "22"}, "both2"),
        ("/two/x", {}, "either"),
        ("/", {"x_there": ""}, "there"),
        ("/", {"method": "POST"}, "post"),
        ("/?z=1&q=ab", {}, "query"),
        ("/?q=b", {}, ""),
        ("/", {"authority": "B.example:8080"}, "authority"),
        ("/fOLD/x", {}, "folded"),
        ("/RX1", {}, "foldedregex"),
        ("/w", {}, "without"),
        ("/w", {"x_no": "1"}, ""),
        ("/public/../both/%2E%2e/e", {}, "exact"),
        ("/x\\..\\e", {}, "exact"),
        ("http://a.example/e", {}, "exact"),
    ):
        assert backend(table, target, **more) == (f"default/{expected}:80" if expected else ""), target  # type: ignore[arg-type]


def test_names_of_services() -> None:
    names = ("web", "web.shop", "web.shop.svc", "Web.shop.svc.cluster.local")
    table = compile_table([gateway(server()), routes(*(route(name, prefix(f"/{i}")) for i, name in enumerate(names)))])
    assert [backend(table, f"/{i}") for i in range(4)] == ["default/web:80", *["shop/web:80"] * 3]
    assert [str(destination) for destination in table.destinations] == ["default/web:80", "shop/web:80"]


def test_weights_are_kept() -> None:
    body = {"route": [to("new", weight=10), to("old", weight=90), to("none", weight=0)]}
    table = compile_table([gateway(server()), routes(body)])
    served = table.entries[80].find("*")
    assert served is not None
    rng = random.Random(7)
    request = Request("GET", paths.read("/"), "a", "http", 80, dict)
    seen: Counter[str] = Counter()
    for _ in range(10_000):
        answer = choose(served, request, rng.random())
        assert isinstance(answer, Forward)
        seen[str(answer.destination)] += 1
    assert seen["default/none:80"] == 0
    assert abs(seen["default/new:80"] - 1000) < 3 * (10_000 * 0.1 * 0.9) ** 0.5
    extremes = [choose(served, request, chance) for chance in (0.0, 1 - 2**-53)]
    assert [str(one.destination) for one in extremes if isinstance(one, Forward)] == [
        "default/new:80",
        "default/old:80",
    ]


@pytest.mark.parametrize(
    ("match", "uri", "asked", "sent"),
    [
        (prefix("/api/"), "/", "/api/x?q=1", "/x?q=1"),
        (prefix("/api"), "/v2", "/api/x", "/v2/x"),
        (prefix("/api/"), "x", "/api/y", "/xy"),
        ({"uri": {"exact": "/a"}}, "/b", "/a?q", "/b?q"),
        ({"uri": {"regex": "/r.*"}}, "/b", "/rest/of/it?q", "/b?q"),
        ({}, "/pre/", "/x", "/pre/x"),
    ],
)
def test_rewriting(match: dict[str, Any], uri: str, asked: str, sent: str) -> None:
    rewrite = {"uri": uri, "authority": "in.side"}
    table = compile_table([gateway(server()), routes(route("web", match, rewrite=rewrite, timeout="1m1.5s"))])
    answer = ask(table, asked)
    assert isinstance(answer, Forward)
    assert (answer.target, answer.authority, answer.timeout) == (sent, "in.side", 61.5)


@pytest.mark.parametrize(
    ("redirect", "where"),
    [
        ({"uri": "/new"}, (301, "http://a.example:8080/new?q")),
        ({"scheme": "https", "redirectCode": 308}, (308, "https://a.example/old?q")),
        ({"authority": "b.example"}, (301, "http://b.example/old?q")),
        ({"scheme": "https", "port": 8443}, (301, "https://a.example:8443/old?q")),
        ({"port": 80}, (301, "http://a.example/old?q")),
    ],
)
def test_redirects(redirect: dict[str, Any], where: tuple[int, str]) -> None:
    table = compile_table([gateway(server()), routes({"redirect": redirect})])
    answer = ask(table, "/old?q", "a.example:8080")
    assert isinstance(answer, Moved) and (answer.code, answer.location) == where


def test_https_redirect_without_any_route() -> None:
    plain = server(80, "HTTP", "a.example", httpsRedirect=True)
    table = compile_table([gateway(plain, server(443, "HTTPS", "a.example", mode="SIMPLE", credentialName="c"))])
    answer = ask(table, "/x?y")
    assert isinstance(answer, Moved) and answer.location == "https://a.example/x?y"


def test_virtual_services_of_one_host_are_joined_and_an_exact_host_hides_a_wide_one() -> None:
    table = compile_table(
        [
            gateway(server()),
            routes(route("one", prefix("/1")), hosts=("a.example",), name="a"),
            routes(route("two", prefix("/2")), hosts=("a.example",), name="b"),
            routes(route("wide"), hosts=("*.example",), name="c"),
        ]
    )
    assert [backend(table, f"/{i}") for i in (1, 2, 3)] == ["default/one:80", "default/two:80", ""]
    assert backend(table, "/3", "b.example") == "default/wide:80"


def test_streams_by_port_and_by_server_name() -> None:
    table = compile_table(
        [
            gateway(
                server(5432, "TCP"),
                server(443, "TLS", "*.pass.test", mode="PASSTHROUGH"),
                server(443, "HTTPS", "web.test", mode="SIMPLE", credentialName="web"),
                server(444, "TLS", mode="SIMPLE", credentialName="web"),
            ),
            routes(
                tcp=[{"match": [{"port": 5432}], "route": [to("db", 5432)]}, {"route": [to("any", 1)]}],
                tls=[
                    {"match": [{"port": 443, "sniHosts": ["a.pass.test"]}], "route": [to("a", 443)]},
                    {"match": [{"sniHosts": ["*.pass.test"]}], "route": [to("b", 443)]},
                ],
                http=[route("web")],
            ),
        ]
    )
    assert not table.problems

    def stream(port: int, sni: str = "") -> str:
        served = table.entries[port].find(sni)
        streams = served.streams.find(sni) if served is not None else None
        return str(streams.spread.pick(0)) if streams is not None and streams.spread is not None else ""

    assert (stream(5432), stream(444)) == ("default/db:5432", "default/any:1")
    assert [stream(443, name) for name in ("a.pass.test", "x.pass.test", "pass.test", "web.test")] == [
        "default/a:443",
        "default/b:443",
        "",
        "",
    ]
    web = table.entries[443].find("web.test")
    assert web is not None and web.speaks_http and not web.passes
    assert backend(table, "/", "web.test", 443) == "default/web:80"


# ── mistakes ──


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (gateway(name="w"), "spec.servers is missing"),
        (gateway(server(0), name="w"), "port.number is missing"),
        (gateway(server(70000), name="w"), "expected a whole number from 1 to 65535"),
        (gateway(server(81, "MONGO"), name="w"), "protocol is 'MONGO'"),
        (gateway(server(81, "HTTP", "a b"), name="w"), "'a b' is no host"),
        (gateway(server(81, "HTTPS"), name="w"), "tls.mode is missing"),
        (gateway(server(81, "HTTPS", mode="SIMPLE"), name="w"), "credentialName is missing"),
        (gateway(server(81, "HTTPS", mode="NONE"), name="w"), "mode is 'NONE'"),
        (
            gateway(server(81, "HTTPS", mode="MUTUAL", credentialName="c", subjectAltNames=["x"]), name="w"),
            "not supported",
        ),
        (gateway(server(80, "TCP"), name="w"), "port 80 is not TCP in gateway default/edge:80 HTTP"),
        (gateway(server(443, "HTTPS", "a.test", mode="SIMPLE", credentialName="c"), name="w"), "is served by gateway"),
        (Object("Gateway", "default", "w", "[1]"), "expected an object"),
        (Object("Gateway", "default", "w", "{"), "Expecting"),
        (Object("Gateway", "default", "w", "[" * 100_000), ""),
        (routes(route("x"), name="w", hosts=()), "spec.hosts is missing"),
        (routes(route("x"), name="w", gateways=["none"]), "there is no Gateway default/none"),
        (routes(route("x"), name="w", frobnicate=1), "spec.frobnicate is not supported"),
        (routes(*[route("x")] * 1025, name="w"), "expected at most 1024"),
    ],
)
def test_a_wrong_object_is_told_of_and_the_others_are_served(wrong: Object, says: str) -> None:
    tls = server(443, "HTTPS", "a.test", mode="SIMPLE", credentialName="c")
    table = compile_table([wrong, gateway(server(), tls), routes(route("web"))])
    ((label, why),) = table.problems.items()
    whole = wrong.kind == "VirtualService" or "spec.servers is" in says or not wrong.body.startswith('{"')
    assert label == f"{wrong.kind} default/w" + ("" if whole else ", spec.servers[0]")
    assert says in why
    assert backend(table, "/") == "default/web:80"
    assert backend(table, "/", "a.test", 443) == "default/web:80"


def test_one_server_that_is_wrong_leaves_the_others_of_its_gateway() -> None:
    servers = (server(80), server(81, "MONGO"), server(82, "UDP"), server(80, "TCP"), server(83))
    table = compile_table([gateway(*servers), routes(route("web"))])
    assert sorted(table.entries) == [80, 83]
    assert [backend(table, "/", port=port) for port in (80, 83)] == ["default/web:80"] * 2
    assert list(table.problems) == [f"Gateway default/edge, spec.servers[{index}]" for index in (1, 2, 3)]
    table = compile_table([gateway(server(81, "MONGO")), routes(route("web"))])
    assert "no server of its gateways" in table.problems["VirtualService default/r"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (route("x", prefix("/w"), timeout="soon"), "expected a duration"),
        ({"match": [prefix("/w")]}, "none of route, redirect and directResponse"),
        (route("x", prefix("/w"), redirect={"uri": "/"}), "or several; expected one"),
        (route("x", prefix("/w"), directResponse={"body": {"string": "x"}}), "directResponse.status is missing"),
        ({"match": [prefix("/w")], "directResponse": {"status": 200, "body": {"bytes": "%"}}}, "is not base64"),
        ({"match": [prefix("/w")], "redirect": {"redirectCode": 304}}, "redirectCode is 304"),
        ({"match": [prefix("/w")], "route": [to("a"), to("b")]}, "no weight above 0"),
        ({"match": [prefix("/w")], "route": [to("a", weight=-1)]}, "expected a whole number"),
        (route("www.example.com", prefix("/w")), "expected a Service"),
        (
            {"match": [prefix("/w")], "route": [{"destination": {"host": "a", "subset": "v1"}}]},
            "subset is not supported",
        ),
        (route("x", prefix("/w"), rewrite={"uri": "/a b"}), "rewrite.uri has spaces"),
        (
            route("x", prefix("/w"), rewrite={"uriRegexRewrite": {"match": "a", "rewrite": "b"}}),
            "uriRegexRewrite is not supported",
        ),
        ({"match": [prefix("/w")], "redirect": {"authority": "x\r\ny"}}, "redirect.authority has spaces"),
        (route("x", {**prefix("/w"), "sourceLabels": {"a": "b"}}), "match[0].sourceLabels is not supported"),
        (route("x", {**prefix("/w"), "headers": {"a": {"regex": "(a"}}}), "the pattern ends too soon"),
        (route("x", {**prefix("/w"), "method": {"regex": r"(a)\1"}}), "not supported"),
        (route("x", {**prefix("/w"), "method": {}}), "expected exact, prefix or regex"),
        (route("x", {**prefix("/w"), "port": "80"}), "port is '80'"),
    ],
)
def test_a_route_that_cannot_be_served_keeps_its_requests_and_leaves_the_others(
    wrong: dict[str, Any], says: str
) -> None:
    objects = [gateway(server()), routes(route("before", prefix("/b")), wrong, route("web"))]
    table = compile_table(objects)
    ((label, why),) = table.problems.items()
    assert label == "VirtualService default/r, spec.http[1]" and says in why
    assert (backend(table, "/b"), backend(table, "/")) == ("default/before:80", "default/web:80")
    answer = ask(table, "/w")
    assert answer == Answered("default/r:1", 503, b"this route is not served\n")


def test_a_condition_that_is_not_understood_keeps_requests_from_no_other_object() -> None:
    bad = routes(route("x", {"uri": {"regex": "(a"}}), route("late"), name="a")
    table = compile_table([gateway(server()), bad, routes(route("web", prefix("/web")), name="b")])
    assert backend(table, "/web") == "default/web:80"
    assert isinstance(ask(table, "/"), Answered), "perhaps it was meant for the first"


def test_a_stream_that_cannot_be_served_keeps_its_clients_and_leaves_the_others() -> None:
    passing = server(443, "TLS", mode="PASSTHROUGH")
    table = compile_table(
        [
            gateway(server(1, "TCP"), server(2, "TCP"), passing),
            routes(
                tcp=[
                    {"match": [{"port": 1, "destinationSubnets": ["10.0.0.0/8"]}], "route": [to("db")]},
                    {"route": [to("any")]},
                ],
                tls=[
                    {"match": [{"sniHosts": ["a.test"], "sourceLabels": {"a": "b"}}], "route": [to("a")]},
                    {"match": [{"sniHosts": ["b.test"]}], "route": [to("b")]},
                ],
            ),
            routes(
                tls=[{"match": [{"sniHosts": ["c.test"]}], "route": [{"destination": {"host": "c", "subset": "v1"}}]}],
                name="s",
            ),
            routes(tls=[{"route": [to("a")]}], name="w"),
        ]
    )
    assert {label: why.partition(" ")[0] for label, why in table.problems.items()} == {
        "VirtualService default/r, spec.tcp[0]": "spec.tcp[0].match[0].destinationSubnets",
        "VirtualService default/r, spec.tls[0]": "spec.tls[0].match[0].sourceLabels",
        "VirtualService default/s, spec.tls[0]": "spec.tls[0].route[0].destination.subset",
        "VirtualService default/w, spec.tls[0]": "spec.tls[0].match",
    }

    def stream(port: int, sni: str = "") -> str:
        served = table.entries[port].find(sni)
        streams = served.streams.find(sni) if served is not None else None
        assert streams is not None
        return str(streams.spread.pick(0)) if streams.spread is not None else ""

    assert (stream(1), stream(2)) == ("", "default/any:80")
    assert [stream(443, f"{name}.test") for name in "abc"] == ["", "default/b:80", ""]
    assert [str(one) for one in table.entries[443].destinations()] == ["default/b:80"]


def test_a_stream_that_is_not_understood_keeps_clients_from_no_other_object() -> None:
    subnets = {"match": [{"destinationSubnets": ["10.0.0.0/8"]}], "route": [to("db")]}
    bad = routes(tcp=[subnets, {"route": [to("late")]}], name="a")
    for more, expected in (
        ([], "default/a:tcp0"),
        ([routes(tcp=[{"route": [to("any")]}], name="b")], "default/b:tcp0"),
    ):
        table = compile_table([gateway(server(1, "TCP")), bad, *more])
        (served,) = table.entries[1].served
        assert [one.label for one in served.streams] == [expected]


def test_a_match_may_be_for_some_gateways_only() -> None:
    http = [
        route("inner", {**prefix("/x"), "gateways": ["inner"]}),
        route("outer", {**prefix("/x"), "gateways": ["default/edge"]}),
        route("mesh", {"gateways": ["mesh"]}),
        route("both"),
    ]
    table = compile_table(
        [
            gateway(server(), server(90, "TCP")),
            gateway(server(81), server(91, "TCP"), name="inner"),
            routes(
                *http,
                gateways=["edge", "inner"],
                tcp=[{"match": [{"gateways": ["inner"]}], "route": [to("db")]}, {"route": [to("any")]}],
            ),
        ]
    )
    assert not table.problems
    assert [backend(table, "/x", port=port) for port in (80, 81)] == ["default/outer:80", "default/inner:80"]
    assert backend(table, "/") == "default/both:80"
    streams = [next(iter(table.entries[port].find("").streams)).label for port in (90, 91)]  # type: ignore[union-attr]
    assert streams == ["default/r:tcp1", "default/r:tcp0"]


def test_direct_responses() -> None:
    table = compile_table(
        [
            gateway(server()),
            routes(
                {"match": [prefix("/a")], "directResponse": {"status": 418, "body": {"string": "teaé"}}},
                {"match": [prefix("/b")], "directResponse": {"status": 200, "body": {"bytes": "AP8="}}},
                {"match": [prefix("/c")], "directResponse": {"status": 204}},
            ),
        ]
    )
    assert not table.problems
    answers = [ask(table, path) for path in ("/a", "/b", "/c")]
    assert [(one.status, one.body) for one in answers if isinstance(one, Answered)] == [
        (418, "teaé".encode()),
        (200, b"\x00\xff"),
        (204, b""),
    ]


def test_what_has_no_effect_is_told() -> None:
    table = compile_table(
        [
            gateway(server()),
            routes(route("x", retries={"attempts": 2}), {"route": [to("x", headers={"request": {}})]}),
            routes(name="m", gateways=[]),
        ]
    )
    assert table.idle["VirtualService default/r"] == ["spec.http[0].retries", "spec.http[1].route[0].headers"]
    assert "VirtualService default/m" in table.idle and not table.problems


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a body with every key of it."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def test_no_body_is_a_crash() -> None:
    """Whatever stands wherever: the object is served, or a problem."""
    tls = server(443, "HTTPS", "a.test", mode="SIMPLE", credentialName="c")
    full = route("x", {**prefix("/"), "headers": {"h": {"exact": "1"}}}, rewrite={"uri": "/"}, timeout="1s", name="n")
    stream = {"match": [{"port": 1, "sniHosts": ["a"]}], "route": [to("a", weight=1)]}
    served = 0
    for one in (gateway(server(), tls), routes(full, {"redirect": {"uri": "/", "port": 1}}, tls=[stream])):
        body = json.loads(one.body)
        for container, key in places(body):
            before = container[key]
            for junk in (None, True, 0, -1, 1.5, "", "\x00*", [], [None], ["x"], {}, {"x": {}}, {"regex": "("}):
                container[key] = junk
                table = compile_table([one._replace(body=json.dumps(body))])
                served += not table.problems
            container[key] = before
    assert served > 50


# ── targets ──


@pytest.mark.parametrize("text", ["", "a", "/a#b", "http://", "http:///x", "ftp://x/"])
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(paths.TargetError):
        paths.read(text)


@given(st.lists(st.sampled_from(["a", "..", ".", "%2e", "%2E%2e", "", "\\", ".a", "..b"]), max_size=8).map("/".join))
def test_no_dot_segments_are_left(rest: str) -> None:
    path = paths.read(f"/{rest}").path
    assert path.startswith("/")
    assert not {".", "..", "%2e", "%2E%2e"} & set(path.split("/")) and "\\" not in path


def test_absolute_targets() -> None:
    target = paths.read("HTTP://Host:81/p?q")
    assert (target.authority, target.path, target.query) == ("Host:81", "/p", "?q")
    assert paths.read("http://h?q").path == "/" and paths.read("*").path == "*"
    assert paths.read("/?a=1&b=&a=2").parameters() == {"a": "1", "b": ""}


# ── ClientHello ──


def hello(name: str | None) -> bytes:
    """A real one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def split(data: bytes, size: int) -> bytes:
    """The same in records of `size` bytes."""
    body = data[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(data[:3] + len(part).to_bytes(2, "big") + part for part in parts)


@pytest.mark.parametrize("name", ["A.Example.com", "x", "", None])
def test_the_server_name_of_a_real_hello(name: str | None) -> None:
    data = hello(name or None)
    expected = (name or "").lower()
    for whole in (data, split(data, 7), data + b"more"):
        assert clienthello.server_name(whole) == expected


def test_a_hello_in_pieces_says_how_much_is_needed() -> None:
    data = split(hello("a.example"), 100)
    have = 0
    asked = 0
    while True:
        try:
            assert clienthello.server_name(data[:have]) == "a.example"
            break
        except clienthello.Incomplete as more:
            assert have < more.needed <= len(data)
            have = more.needed
            asked += 1
    assert asked > 4


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_a_hello_or_refused(noise: bytes, at: int) -> None:
    good = hello("a.example")
    for data in (noise, good[:at] + noise, good[:at] + noise + good[at + len(noise) :]):
        try:
            assert isinstance(clienthello.server_name(data), str)
        except clienthello.NotTls:
            pass
        except clienthello.Incomplete as more:
            assert len(data) < more.needed <= clienthello.MAX_HELLO
