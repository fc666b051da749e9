"""Which backend a client gets: the strategies, what a service may ask for. All with fake time."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import idle, plan
from services.proxy.core.balancer import Balancer
from services.proxy.core.catalog import Backend, Endpoint, Port, Service
from services.proxy.core.health import EJECT_AFTER
from services.proxy.core.plan import traffic_of
from services.proxy.core.ring import HashRing
from services.proxy.core.traffic import ROUND_ROBIN, Ring, Strategy, Traffic, TrafficError, parse

HTTP = Port("http", "tcp", 80)
REQUESTS = 10_000


def backends(count: int, node: str = "b") -> tuple[Backend, ...]:
    return tuple(Backend(node, f"10.0.0.{i + 1}", 8080) for i in range(count))


def balancer(
    members: tuple[Backend, ...],
    strategy: Strategy = "round-robin",
    *,
    node: str = "a",
    rtts: dict[str, float] | None = None,
    sticky: float = 0.0,
    near: bool = False,
    local: bool = False,
    relayed: dict[str, float] | None = None,
) -> Balancer:
    traffic = Traffic(strategy, sticky, near, local)
    made = Balancer(node, traffic, rtts or {}, random.Random(5), relayed)
    made.update(members, traffic)
    return made


def spread(made: Balancer, requests: int = REQUESTS, now: float = 0.0) -> "Counter[Backend | None]":
    return Counter(made.pick(f"10.1.{i // 250}.{i % 250}", now) for i in range(requests))


def asking(**fields: object) -> Service:
    return Service("default/web", ("127.1.0.1",), (HTTP,), (Endpoint(("10.0.0.1",), (HTTP,), "b", True),), **fields)  # type: ignore[arg-type]


def istio(**balancer: object) -> str:
    """spec.trafficPolicy of a DestinationRule."""
    return json.dumps({"loadBalancer": balancer})


def connecting(within: object) -> str:
    """The same of one that says how long to connect."""
    return json.dumps({"connectionPool": {"tcp": {"connectTimeout": within}}})


# ── strategies ──


@given(st.integers(1, 9), st.integers(0, 200))
def test_round_robin_is_exact(count: int, picks: int) -> None:
    made = balancer(backends(count))
    seen = spread(made, picks)
    shares = [seen[backend] for backend in backends(count)]
    assert sum(shares) == picks
    assert max(shares) - min(shares) <= 1


def test_a_change_of_backends_keeps_the_turn() -> None:
    a, b, c, d = backends(4)
    made = balancer((a, b, c))
    assert made.pick("x", 0.0) == a
    made.update((d, c, b), ROUND_ROBIN)  # a is gone, d is new: b is still next
    assert [made.pick("x", 0.0) for _ in range(3)] == [b, d, c]
    made.update((), ROUND_ROBIN)
    assert made.pick("x", 0.0) is None
    made.update((a,), ROUND_ROBIN)
    assert made.pick("x", 0.0) == a


@given(st.lists(st.lists(st.integers(0, 5), unique=True), min_size=1, max_size=6))
def test_round_robin_survives_any_changes(sets: list[list[int]]) -> None:
    every = backends(6)
    made = balancer(())
    for members in sets:
        chosen = tuple(every[i] for i in members)
        made.update(chosen, ROUND_ROBIN)
        assert Counter(made.pick("x", 0.0) for _ in chosen) == Counter(chosen)


def test_10_000_requests_over_5_backends_in_turn_are_exact() -> None:
    shares = spread(balancer(backends(5)))
    assert sum(shares.values()) == REQUESTS
    assert max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize("strategy", ["random", "p2c"])
def test_10_000_requests_over_5_backends_are_even_within_3_sigma(strategy: Strategy) -> None:
    seen = spread(balancer(backends(5), strategy))
    sigma = (REQUESTS * 0.2 * 0.8) ** 0.5
    assert all(abs(seen[backend] - REQUESTS / 5) < 3 * sigma for backend in backends(5))


def test_two_choices_and_least_connections_avoid_who_is_busy() -> None:
    a, b, c = backends(3)
    for strategy, most in (("p2c", 0), ("least-connections", 0)):
        made = balancer((a, b, c), strategy)  # type: ignore[arg-type]
        assert made.counts
        made.active[a] = 50
        assert spread(made, 300)[a] <= most


def test_least_connections_evens_out_what_lives_long() -> None:
    made = balancer(backends(4), "least-connections")
    for _ in range(400):
        backend = made.pick("x", 0.0)
        assert backend is not None
        made.active[backend] += 1
    assert set(made.active.values()) == {100}


def test_least_latency_tries_what_it_does_not_know_and_then_stays_near() -> None:
    near, far, same = (Backend(node, "10.0.0.1", 80) for node in ("near", "far", "same"))
    rtts: dict[str, float] = {"near": 0.020}
    made = balancer((near, far, same), "least-latency", rtts=rtts)
    assert set(spread(made, 100)) == {far, same}
    rtts.update(far=0.120, same=0.028)
    assert set(spread(made, 100)) == {near, same}  # within 10 ms of each other
    here = balancer((near, Backend("a", "10.0.0.9", 80)), "least-latency", rtts=rtts)
    assert set(spread(here, 100)) == {Backend("a", "10.0.0.9", 80)}


def test_f33_source_ip_sticks_whatever_the_port_and_keeps_most_keys_when_one_of_five_goes() -> None:
    """FAILURES 33: the port is no part of a client's key."""
    five = backends(5)
    made = balancer(five, "source-ip")
    clients = [f"10.1.{i // 250}.{i % 250}" for i in range(REQUESTS)]
    before = {client: made.pick(client, 0.0) for client in clients}
    assert all(made.pick(client, 0.0) == backend for client, backend in before.items())
    shares = Counter(before.values())
    assert max(shares.values()) < REQUESTS / 5 * 1.4  # the ring's bound is 1.25 of the partitions
    for gone in five:
        made.update(tuple(backend for backend in five if backend != gone), Traffic("source-ip"))
        stayed = [client for client, backend in before.items() if backend != gone]
        assert sum(made.pick(client, 0.0) == before[client] for client in stayed) >= 0.8 * len(stayed)
        made.update(five, Traffic("source-ip"))
    assert all(made.pick(client, 0.0) == backend for client, backend in before.items())


def test_a_header_keeps_most_of_its_keys_when_one_of_five_goes_and_no_address_matters() -> None:
    five, traffic = backends(5), Traffic("header", name="x")
    made = balancer(())
    made.update(five, traffic)
    before = {f"user-{i}": made.pick("1.1.1.1", 0.0, (), f"user-{i}") for i in range(REQUESTS)}
    assert all(made.pick("2.2.2.2", 1.0, (), key) == backend for key, backend in before.items())
    assert set(before.values()) == set(five)
    for gone in five:
        made.update(tuple(backend for backend in five if backend != gone), traffic)
        kept = sum(made.pick("1.1.1.1", 0.0, (), key) == backend for key, backend in before.items() if backend != gone)
        assert kept >= 0.8 * sum(backend != gone for backend in before.values())
        made.update(five, traffic)
    # One that is tried in vain is left out for that client, and the key falls to the next.
    first = before["user-1"]
    assert first is not None
    assert made.pick("1.1.1.1", 0.0, (first,), "user-1") not in (first, None)


def test_the_ring_is_the_same_everywhere_and_never_empty_handed() -> None:
    one, other = (HashRing(backends(7), 100, 10, 1.25) for _ in range(2))
    for key in map(str, range(500)):
        owner = one.pick(key, backends(7))
        assert owner == other.pick(key, backends(7))
        rest = [backend for backend in backends(7) if backend != owner]
        assert one.pick(key, rest) in rest
        assert one.pick(key, ()) is None
    assert HashRing[Backend]((), 100, 10, 1.25).pick("x", ()) is None


# ── what a service may ask for ──


def test_client_ip_affinity_lasts_for_its_timeout_and_moves_when_the_backend_goes() -> None:
    made = balancer(backends(3), sticky=60.0)
    first = made.pick("1.1.1.1", 0.0)
    assert first is not None
    assert {made.pick("1.1.1.1", now) for now in (1.0, 50.0, 100.0, 155.0)} == {first}  # each visit renews it
    made.pick("2.2.2.2", 155.0)
    later = [made.pick("1.1.1.1", now) for now in (300.0, 400.0, 500.0)]
    assert len(set(later)) > 1
    last = made.pick("1.1.1.1", 501.0)
    rest = tuple(backend for backend in backends(3) if backend != last)
    made.update(rest, Traffic(sticky=60.0))
    assert made.pick("1.1.1.1", 502.0) in rest


def test_prefer_close_stays_on_the_node_while_somebody_there_is_well() -> None:
    here, there = Backend("a", "10.0.0.1", 80), Backend("b", "10.0.0.2", 80)
    made = balancer((there, here), near=True)
    assert set(spread(made, 50)) == {here}
    assert made.pick("x", 0.0, (here,)) == there
    for _ in range(EJECT_AFTER):
        made.health.failed(here, 0.0)
    assert set(spread(made, 50)) == {there}


def test_local_only_goes_nowhere_else() -> None:
    here, there = Backend("a", "10.0.0.1", 80), Backend("b", "10.0.0.2", 80)
    made = balancer((there, here), local=True)
    assert set(spread(made, 50)) == {here}
    made.update((there,), Traffic(local=True))
    assert made.pick("x", 0.0) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ROUND_ROBIN),
        ({"annotations": {"load-balancing": "p2c"}}, Traffic("p2c")),
        ({"annotations": {"load-balancing": "Least Connections"}}, Traffic("least-connections")),
        ({"annotations": {"load-balancing": "header x-user"}, "sticky": 30.0}, Traffic("header", name="x-user")),
        ({"annotations": {"load-balancing": " Cookie  sid "}}, Traffic("cookie", name="sid")),
        ({"annotations": {"load-balancing": "query-parameter q"}}, Traffic("query-parameter", name="q")),
        (
            {"annotations": {"load-balancing": "source-ip", "consistent-hash": "load=1.1"}},
            Traffic("source-ip", ring=Ring(load=1.1)),
        ),
        (
            {
                "annotations": {"consistent-hash": "partitionCount=10,replicationFactor=7, load=2"},
                "traffic_policy": istio(consistentHash={"httpHeaderName": "X-User"}),
            },
            Traffic("header", name="X-User", ring=Ring(10, 7, 2.0)),
        ),
        ({"traffic_policy": json.dumps({"loadBalancer": {"simple": "RANDOM"}})}, Traffic("random")),
        ({"traffic_policy": json.dumps({"loadBalancer": {"simple": "LEAST_REQUEST"}})}, Traffic("least-connections")),
        (
            {
                "annotations": {"load-balancing": "p2c"},
                "traffic_policy": json.dumps({"loadBalancer": {"consistentHash": {"useSourceIp": True}}}),
            },
            Traffic("source-ip"),
        ),
        ({"traffic_policy": json.dumps({"connectionPool": {}})}, ROUND_ROBIN),
        ({"traffic_policy": connecting("250ms")}, Traffic(connect=0.25)),
        ({"traffic_policy": connecting("1m1.5s")}, Traffic(connect=61.5)),
        ({"traffic_policy": json.dumps({"connectionPool": {"tcp": {"maxConnections": 1}}})}, ROUND_ROBIN),
        ({"traffic_policy": istio(simple="PASSTHROUGH")}, ROUND_ROBIN),
        ({"traffic_policy": istio(simple="LEAST_CONN")}, Traffic("least-connections")),
        ({"traffic_policy": istio(consistentHash={"httpHeaderName": "X-User"})}, Traffic("header", name="X-User")),
        (
            {"traffic_policy": istio(consistentHash={"httpCookie": {"name": "sid", "ttl": "0s"}}), "sticky": 30.0},
            Traffic("cookie", name="sid"),  # one address is many users: it is not what sticks
        ),
        (
            {"traffic_policy": istio(consistentHash={"httpQueryParameterName": "q", "minimumRingSize": 10})},
            Traffic("query-parameter", name="q"),
        ),
        ({"traffic_policy": istio(localityLbSetting={"enabled": True})}, ROUND_ROBIN),
        (
            {"annotations": {"load-balancing": "p2c"}, "traffic_policy": json.dumps({"connectionPool": {}})},
            Traffic("p2c"),
        ),
        (
            {
                "traffic_policy": json.dumps(
                    {
                        "loadBalancer": {"simple": "RANDOM"},
                        "portLevelSettings": [
                            {"port": {"number": 80}, "loadBalancer": {"simple": "LEAST_REQUEST"}},
                            {"port": {"number": 81}},
                        ],
                    }
                )
            },
            Traffic("random", ports=((80, Traffic("least-connections")), (81, ROUND_ROBIN))),
        ),
        (
            {"sticky": 30.0, "distribution": "PreferClose", "internal_policy": "Local"},
            Traffic(sticky=30.0, near=True, local=True),
        ),
    ],
)
def test_what_a_service_asks_for(fields: dict[str, object], expected: Traffic) -> None:
    assert parse(asking(**fields), ROUND_ROBIN) == expected


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"annotations": {"load-balancing": "leest-latency"}}, "did you mean least-latency?"),
        ({"annotations": {"load-balancing": "magic"}}, "expected round-robin, random"),
        ({"annotations": {"load-balancing": ""}}, "expected round-robin, random"),
        ({"annotations": {"load-balancing": "header"}}, "load-balancing: header is '', expected a name"),
        ({"annotations": {"load-balancing": "heder x-user"}}, "source-ip, header NAME"),
        ({"annotations": {"load-balancing": "cookie a b"}}, "cookie is 'a b', expected a name"),
        ({"annotations": {"load-balancin": "p2c"}}, "causeway/load-balancin is unknown"),
        ({"annotations": {"consistent-hash": "load=1.1"}}, "means nothing to round-robin"),
        *(
            ({"annotations": {"load-balancing": "source-ip", "consistent-hash": ring}}, part)
            for ring, part in (
                ("lod=1", "'lod' is unknown, expected partitionCount, replicationFactor, load"),
                ("load=0.9", "load is '0.9', expected 1.0 to 100.0"),
                ("load=nan", "load is 'nan', expected 1.0 to 100.0"),
                ("partitionCount=1.5", "partitionCount is '1.5', expected 1 to 65536"),
                ("replicationFactor", "replicationFactor is '', expected 1 to 1000"),
            )
        ),
        ({"traffic_policy": json.dumps({"loadBalancer": {"simple": "MAGLEV"}})}, "MAGLEV"),
        ({"traffic_policy": json.dumps({"loadBalancer": {"consistentHash": {"useSourceIp": 1}}})}, "useSourceIp: true"),
        *(({"traffic_policy": connecting(text)}, "expected 1ms to 1h") for text in ("", "5", "0s", "2h", "1s1m", [1])),
        ({"traffic_policy": json.dumps({"loadBalancer": ["x"]})}, "not an object"),
        ({"traffic_policy": istio()}, "neither simple nor consistentHash"),
        ({"traffic_policy": json.dumps({"portLevelSettings": [{}]})}, "portLevelSettings has no port.number"),
        ({"traffic_policy": json.dumps({"portLevelSettings": 5})}, "portLevelSettings has no port.number"),
        ({"traffic_policy": istio(consistentHash={})}, "none of httpHeaderName"),
        ({"traffic_policy": istio(consistentHash={"httpHeaderName": ""})}, "expected a name"),
        ({"traffic_policy": istio(consistentHash={"httpHeaderName": "a b"})}, "httpHeaderName is 'a b'"),
        ({"traffic_policy": istio(consistentHash={"httpCookie": {"path": "/"}})}, "httpCookie.name"),
        ({"traffic_policy": istio(consistentHash={"httpCookie": "sid"})}, "httpCookie.name"),
    ],
)
def test_f33_an_unknown_policy_is_an_error_on_that_service_and_no_crash(fields: dict[str, object], part: str) -> None:
    """FAILURES 33: an unknown policy."""
    bad, good = (
        asking(**fields),
        Service("default/other", ("127.1.0.2",), (HTTP,), (), annotations={"load-balancing": "random"}),
    )
    with pytest.raises(TrafficError, match=part.replace("?", r"\?")):
        parse(bad, ROUND_ROBIN)
    traffic, problems = traffic_of([bad, good], Traffic("p2c"))
    assert traffic == {"default/web": Traffic("p2c"), "default/other": Traffic("random")}
    assert list(problems) == ["default/web"]


def test_the_near_ones_are_those_here_then_over_direct_paths_then_through_relays() -> None:
    here, direct, far = (Backend(node, "10.0.0.1", 8080) for node in "abc")
    relayed = {"c": 10.0}
    made = Balancer("a", Traffic(near=True), {}, random.Random(5), relayed)
    for members, now, expected in (
        ((here, direct, far), 0.0, {here}),
        ((direct, far), 0.0, {direct}),
        ((far,), 0.0, {far}),
        ((direct, far), 10.0, {direct, far}),  # perhaps it was upgraded meanwhile
    ):
        made.update(members, made.traffic)
        assert set(spread(made, 20, now)) == expected
    made.update((direct, far), made.traffic)
    assert made.pick("x", 0.0, (direct,)) == far, "better than nobody"
    made.update((direct, far), ROUND_ROBIN)
    assert set(spread(made, 20)) == {direct, far}, "who did not ask for it"


def test_one_port_of_a_service_may_be_spread_in_its_own_way() -> None:
    policy = {
        "loadBalancer": {"simple": "RANDOM"},
        "portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {"simple": "LEAST_REQUEST"}}],
    }
    other = Port("admin", "tcp", 81)
    service = Service("default/web", ("127.1.0.1",), (HTTP, other), (), traffic_policy=json.dumps(policy))
    spots, _ = plan.wanted([service], traffic_of([service], ROUND_ROBIN)[0])
    assert {spot.port: want.traffic.strategy for spot, want in spots.items()} == {80: "least-connections", 81: "random"}


def test_fields_of_a_rule_that_have_no_effect_are_known() -> None:
    connection = {"tcp": {"connectTimeout": "1s", "maxConnections": 5}, "http": {"maxRetries": 1}}
    policy = {
        "loadBalancer": {
            "localityLbSetting": {"enabled": True},
            "consistentHash": {"httpCookie": {"name": "sid", "ttl": "0s"}},
        },
        "outlierDetection": {"consecutive5xxErrors": 3},
        "connectionPool": connection,
        "tls": None,
        "portLevelSettings": [
            {"port": {"number": number}, "loadBalancer": {"simple": "RANDOM"}, "outlierDetection": {}}
            for number in (80, 81)
        ],
    }
    assert idle.fields(json.dumps(policy)) == [
        "trafficPolicy.loadBalancer.localityLbSetting",
        "trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl",
        "trafficPolicy.outlierDetection",
        "trafficPolicy.connectionPool.tcp.maxConnections",
        "trafficPolicy.connectionPool.http",
        "trafficPolicy.portLevelSettings.outlierDetection",
    ]
    assert idle.fields("") == idle.fields(istio(simple="RANDOM")) == []
    assert idle.fields(json.dumps({"loadBalancer": ["x"], "portLevelSettings": 5})) == []
