"""Zones and nodes for which endpoints are meant: the rules of kube-proxy, and what a client gets."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import plan, topology
from services.proxy.core.catalog import Endpoint, Port, Service
from services.proxy.core.health import EJECT_AFTER
from services.proxy.core.plan import Site
from services.proxy.core.traffic import ROUND_ROBIN, parse
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service
from tests.proxy.test_balancing import HTTP, balancer, spread
from tests.proxy.test_shapes import target

LoopbackIp = Callable[[], str]
HERE, ZONE = "a", "eu"


def endpoint(name: str, **fields: object) -> Endpoint:
    """ "node/zone", either may be empty: its last address byte is the place of the node's letter."""
    node, _, zone = name.partition("/")
    ip = f"10.0.{len(zone)}.{ord(node) - 96 if node else 99}"
    return Endpoint((ip,), (Port("http", "tcp", 8080),), node, ready=True, zone=zone, **fields)  # type: ignore[arg-type]


def asking(distribution: str, *endpoints: Endpoint) -> Service:
    return Service("default/web", ("127.1.0.1",), (HTTP,), endpoints, distribution=distribution)


def levels(distribution: str, *endpoints: Endpoint, here: str = HERE, zone: str = ZONE) -> list[list[str]]:
    """By node."""
    service = asking(distribution, *endpoints)
    found = topology.levels(service.serving(HTTP, here), distribution, here, zone)
    return [[backend.node for backend in level] for level in found]


# ── hints, as they come from a cluster ──

B, C, D = (endpoint(f"{node}/x") for node in "bcd")
EU, US = ({"for_zones": (zone,)} for zone in ("eu", "us"))


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ((replace(B, **EU), replace(C, **US), replace(D, **EU)), [["b", "d"]]),
        ((replace(B, **EU), replace(C, for_zones=("us", "eu")), replace(D, **US)), [["b", "c"]]),
        ((replace(B, **EU), replace(C, **US), D), []),  # one has no hint
        ((replace(B, **US), replace(C, **US), replace(D, **US)), []),  # none is for us
        # Who is not ready does not count.
        ((replace(B, **EU), replace(C, **EU), replace(D, ready=False)), [["b", "c"]]),
        ((replace(B, ready=False), replace(C, ready=False)), []),
        ((replace(B, for_nodes=("a",), **EU), replace(C, for_nodes=("c",), **EU)), [["b"], ["b", "c"]]),
        ((replace(B, for_nodes=("a",), **EU), replace(C, **EU)), [["b", "c"]]),  # one has no hint for nodes
        ((replace(B, for_nodes=("a",)), replace(C, for_nodes=("c",))), [["b"]]),
        (
            (replace(B, for_nodes=("b",), **US), replace(C, for_nodes=("c",), **EU)),
            [["c"]],
        ),  # no node's, but the zone's
    ],
)
@pytest.mark.parametrize("distribution", ["", "PreferClose", "PreferSameZone", "PreferSameNode"])
def test_hints_count_whatever_the_service_says(
    endpoints: tuple[Endpoint, ...], expected: list[list[str]], distribution: str
) -> None:
    """KEP-2433 and KEP-3015: kube-proxy does not look at the field. `topology-mode: Auto` works by this alone."""
    assert levels(distribution, *endpoints) == expected


def test_where_the_zone_is_not_known_hints_for_zones_do_not_count() -> None:
    assert levels("", replace(B, **EU), replace(C, **US), zone="") == []
    assert levels("", replace(B, for_zones=("",)), zone="") == []


# ── without hints: written by hand ──


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("", []),
        ("PreferClose", [["a", "b"]]),
        ("PreferSameZone", [["a", "b"]]),
        ("PreferSameNode", [["a"], ["a", "b"]]),
    ],
)
def test_without_hints_the_fields_of_the_endpoints_are_the_hints(distribution: str, expected: list[list[str]]) -> None:
    ends = [endpoint("a/eu"), endpoint("b/eu"), endpoint("c/us")]
    assert levels(distribution, *ends) == expected
    assert levels(distribution, *ends[1:], here="z", zone="ap") == []
    assert levels(distribution, *ends[:2], endpoint("c")) == ([["a"]] if distribution == "PreferSameNode" else [])


def test_a_node_that_does_not_say_is_where_its_endpoints_are() -> None:
    services = [asking("", endpoint("a"), endpoint("b/us")), asking("", endpoint("a/eu"))]
    assert topology.zone_of(services, "a") == "eu"
    assert topology.zone_of(services, "c") == topology.zone_of([asking("", endpoint("/eu"))], "") == ""


def test_a_zone_matters_only_to_who_asks_for_it() -> None:
    assert not topology.wants_zones(asking("", B)) and not topology.wants_zones(asking("PreferClose", endpoint("b")))
    assert topology.wants_zones(asking("PreferClose", B)) and topology.wants_zones(asking("", replace(B, **EU)))


# ── what a client gets ──


def wanted(service: Service, site: Site) -> plan.Wanted:
    traffic = parse(service, ROUND_ROBIN)
    (want,) = plan.wanted([service], {service.key: traffic}, site)[0].values()
    return want


def shares(service: Service, *, out: str = "", relayed: str = "") -> set[str]:
    """Nodes that get clients, while the backends on those in `out` fail."""
    want = wanted(service, Site(HERE, zone=ZONE))
    made = balancer(want.backends, relayed=dict.fromkeys(relayed, 10.0))
    made.update(want.backends, want.traffic, want.levels)
    for backend in want.backends:
        for _ in range(EJECT_AFTER if backend.node in out else 0):
            made.health.failed(backend, 0.0)
    return {backend.node for backend in spread(made, 60, 0.5) if backend is not None}


EVERYWHERE = [endpoint(name) for name in ("a/eu", "b/eu", "c/eu", "d/us", "e/us")]


@pytest.mark.parametrize(
    ("distribution", "out", "relayed", "expected"),
    [
        ("", "", "", "abcde"),
        ("PreferSameZone", "", "", "abc"),
        ("PreferSameZone", "", "b", "abc"),  # the zone, and nothing nearer (KEP-3015)
        ("PreferSameZone", "ab", "", "c"),
        ("PreferSameZone", "abc", "", "de"),
        ("PreferSameNode", "", "", "a"),
        ("PreferSameNode", "a", "", "bc"),
        ("PreferSameNode", "abc", "", "de"),
        ("PreferClose", "", "", "a"),
        ("PreferClose", "a", "", "bc"),
        ("PreferClose", "a", "b", "c"),  # over a direct path
        ("PreferClose", "abc", "d", "e"),
        ("PreferClose", "abcde", "", "a"),
    ],
)
def test_the_preferred_first_then_those_next_to_them(distribution: str, out: str, relayed: str, expected: str) -> None:
    assert shares(asking(distribution, *EVERYWHERE), out=out, relayed=relayed) == set(expected)


def test_local_asks_for_no_more_than_the_node() -> None:
    """As kube-proxy: with Local the hints, by which this node's endpoint is for another zone, do not count."""
    service = replace(asking("", replace(endpoint("a"), **US), replace(B, **EU)), internal_policy="Local")
    assert wanted(service, Site(HERE, zone=ZONE)).levels == ()
    assert shares(service) == {"a"}
    assert shares(replace(service, internal_policy="")) == {"b"}


def test_those_that_go_away_serve_whatever_their_zone() -> None:
    leaving = [replace(one, ready=False, leaving=True) for one in EVERYWHERE]
    assert wanted(asking("PreferSameZone", *leaving), Site(HERE, zone=ZONE)).levels == ()
    assert shares(asking("PreferSameZone", *leaving[:2], EVERYWHERE[3])) == {"d"}


def test_each_family_has_its_own_hints() -> None:
    """As each of a cluster's slices has one family: what the other lacks is not missed."""
    six = replace(endpoint("b"), addresses=("fd00::1",))
    service = asking("", replace(B, **EU), replace(C, **US), six)
    assert [[one.node for one in level] for level in wanted(service, Site(HERE, zone=ZONE)).levels] == [["b"]]


NAMES = st.sampled_from(["", "a", "b", "c"])
ZONES = st.sampled_from(["", "eu", "us"])


@given(
    st.lists(
        st.builds(
            Endpoint,
            addresses=st.integers(1, 200).map(lambda i: (f"10.0.0.{i}",)),
            ports=st.just((Port("http", "tcp", 8080),)),
            node=NAMES,
            ready=st.booleans(),
            leaving=st.booleans(),
            zone=ZONES,
            for_zones=st.lists(st.sampled_from(["eu", "us"]), max_size=2).map(tuple),
            for_nodes=st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple),
        ),
        max_size=8,
    ),
    st.sampled_from(["", "PreferClose", "PreferSameZone", "PreferSameNode"]),
    ZONES,
)
def test_a_client_never_goes_without_a_backend_and_the_preferred_are_some_of_all(
    endpoints: list[Endpoint], distribution: str, zone: str
) -> None:
    want = wanted(asking(distribution, *endpoints), Site(HERE, zone=zone))
    assert all(level and set(level) <= set(want.backends) for level in want.levels)
    made = balancer(want.backends)
    made.update(want.backends, want.traffic, want.levels)
    tried = []
    while (backend := made.pick("x", 0.0, tried)) is not None:
        assert backend not in tried
        tried.append(backend)
    assert set(tried) == set(want.backends)


# ── a proxy with its neighbours ──


async def test_the_zone_is_read_again_and_told(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    one = service("web", ip, ("b", "10.0.0.1", 80), ("c", "10.0.0.2", 80), ("d", "10.0.0.3", 80))
    one.traffic_distribution = "PreferSameZone"
    for found, zone in zip(one.endpoints, ("eu", "us", "eu"), strict=True):
        found.zone = zone
    node.discovery.put(one)
    await node.listening(f"{ip}:80")

    async def nodes() -> set[str]:
        return {(await target(node, ip, 80))[0] for _ in range(9)}

    assert await nodes() == {"b", "c", "d"}
    (warning,) = node.status().warnings
    assert warning.startswith("which endpoints are in this node's zone is not known") and "default/web" in warning
    path = node.service.config.source
    assert path is not None
    text = path.read_text()
    for zone, preferred, expected in (("eu", 2, {"b", "d"}), ("us", 1, {"c"}), ("ap", 0, {"b", "c", "d"})):
        path.write_text(f"zone: {zone}\n{text}")
        node.service.reload.look()
        status = node.status()
        assert (status.zone, status.rows[0].preferred, status.warnings) == (zone, preferred, [])
        assert await nodes() == expected
    path.write_text(text)
    node.service.reload.look()
    one.endpoints[0].node_name = "n"  # which is this node
    node.discovery.put(one)
    await until(lambda: node.status().zone == "eu", "a node is where its endpoints are")
    assert node.status().rows[0].preferred == 2
