"""The proxy's pure decisions: balancing, policy, catalog, plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import plan
from services.proxy.core.catalog import Backend, Catalog, Endpoint, Network, Port, Service, Spot
from services.proxy.core.plan import FilterMode, Site
from services.proxy.core.policy import Allowed, Policy, PolicyError
from services.proxy.core.traffic import ROUND_ROBIN

HTTP = Port("http", "tcp", 80)
DNS = Port("dns", "udp", 53)


def endpoint(ip: str, node: str = "b", port: int = 8080, *, ready: bool = True, name: str = "http") -> Endpoint:
    network: Network = "udp" if name == "dns" else "tcp"
    return Endpoint((ip,), (Port(name, network, port),), node, ready)


def service(key: str, ips: tuple[str, ...], *endpoints: Endpoint, ports: tuple[Port, ...] = (HTTP,)) -> Service:
    return Service(key, ips, ports, tuple(endpoints))


# ── which endpoints a port has ──


def test_only_ready_endpoints_on_known_nodes_get_clients() -> None:
    own = service(
        "default/web",
        ("127.1.0.1",),
        endpoint("10.0.0.1"),
        endpoint("10.0.0.2", ready=False),
        endpoint("10.0.0.3", node=""),
        Endpoint((), (HTTP,), "b", True),
        endpoint("10.0.0.4", name="dns"),
        endpoint("10.0.0.5", name="other"),
        endpoint("fd00::6"),
        ports=(HTTP, DNS),
    )
    assert [one.address for one in own.backends(HTTP)] == ["10.0.0.1:8080", "[fd00::6]:8080"]


def test_ports_belong_together_by_name_and_protocol() -> None:
    both = (Port("dns", "tcp", 53), DNS)
    own = service("kube-system/dns", ("127.1.0.1",), Endpoint(("10.0.0.1",), both, "b", True), ports=both)
    assert own.backends(DNS) == (Backend("b", "10.0.0.1", 53),)
    assert own.backends(both[0]) == (Backend("b", "10.0.0.1", 53),)


def test_an_endpoint_of_which_nobody_knows_the_node_is_dialled_by_who_asks() -> None:
    own = service("default/web", ("127.1.0.1",), endpoint("10.0.0.1"), endpoint("10.0.0.3", node=""))
    assert [one.node for one in own.backends(HTTP)] == ["b"]
    assert [one.node for one in own.backends(HTTP, "n")] == ["b", "n"]
    assert own.backends(HTTP, "n", local=True) == (), "it is not known to be here"


def test_endpoints_that_go_away_serve_where_there_are_no_others() -> None:
    """KEP-1669, as kube-proxy has it: also on one node, where only that node's count."""
    leaving = Endpoint(("10.0.0.2",), (Port("http", "tcp", 8080),), "n", ready=False, leaving=True)
    stopped = endpoint("10.0.0.3", ready=False)
    own = service("default/web", ("127.1.0.1",), endpoint("10.0.0.1"), leaving, stopped)
    assert [one.ip for one in own.backends(HTTP)] == ["10.0.0.1"]
    assert [one.ip for one in own.backends(HTTP, "n", local=True)] == ["10.0.0.2"]
    assert [one.ip for one in service("default/web", ("127.1.0.1",), leaving, stopped).backends(HTTP)] == ["10.0.0.2"]


# ── catalog ──


def test_a_snapshot_replaces_only_when_complete() -> None:
    catalog = Catalog()
    one, two = service("a/one", ()), service("a/two", ())
    catalog.begin()
    assert catalog.put(one) and catalog.put(two)
    assert not catalog.synced
    assert not catalog.complete()
    assert catalog.synced
    catalog.begin()  # the source restarts, and dies half-way
    assert not catalog.put(one)
    assert len(catalog) == 2
    catalog.begin()
    catalog.put(two)
    assert catalog.complete()
    assert list(catalog) == [two]


def test_deltas() -> None:
    catalog = Catalog()
    catalog.complete()
    old, new = service("a/one", ()), service("a/one", ("127.1.0.1",))
    assert catalog.put(old)
    assert not catalog.put(old)
    assert catalog.put(new)
    assert list(catalog) == [new]
    assert catalog.remove("a/one")
    assert not catalog.remove("a/one")
    assert not catalog.complete()  # without a snapshot nothing is missing from it


# ── plan ──


def test_every_cluster_ip_and_port_is_wanted_once() -> None:
    own = service("a/web", ("127.1.0.1", "::1"), endpoint("10.0.0.1"), ports=(HTTP, DNS))
    spots, refused = plan.wanted([own])
    assert set(spots) == {
        Spot("tcp", "127.1.0.1", 80),
        Spot("udp", "127.1.0.1", 53),
        Spot("tcp", "::1", 80),
        Spot("udp", "::1", 53),
    }
    assert spots[Spot("tcp", "::1", 80)].backends == (Backend("b", "10.0.0.1", 8080),)
    assert str(Spot("tcp", "::1", 80)) == "[::1]:80"
    assert not refused


@pytest.mark.parametrize("cluster_ips", [("127.1.0.1", "fd00::1"), ("127.1.0.1",), ("fd00::1",)])
def test_clients_of_one_family_get_the_addresses_of_that_family(cluster_ips: tuple[str, ...]) -> None:
    both = [endpoint("10.0.0.1"), endpoint("fd00::a1"), endpoint("10.0.0.2"), endpoint("fd00::a2")]
    spots, _ = plan.wanted([service("a/web", cluster_ips, *both)])
    ips = {spot.ip: [one.ip for one in want.backends] for spot, want in spots.items()}
    four, six = ["10.0.0.1", "10.0.0.2"], ["fd00::a1", "fd00::a2"]
    assert ips == {ip: six if ":" in ip else four for ip in cluster_ips}
    assert len({want.key for want in spots.values()}) == len(cluster_ips), "their backends are others"
    spots, _ = plan.wanted([service("a/web", cluster_ips, endpoint("10.0.0.1"))])
    assert all(len(want.backends) == 1 for want in spots.values()), "better than none"


def test_two_services_on_one_spot_the_first_by_name_wins() -> None:
    web, abc = service("a/web", ("127.1.0.1",)), service("a/abc", ("127.1.0.1",))
    for order in ([web, abc], [abc, web]):
        spots, refused = plan.wanted(order)
        assert spots[Spot("tcp", "127.1.0.1", 80)].label == "a/abc:80"
        [(spot, loser, why)] = refused
        assert (str(spot), loser.label) == ("127.1.0.1:80", "a/web:80")
        assert "a/abc:80" in why


def test_a_node_port_is_wanted_on_every_address_of_the_node_and_an_external_ip_with_the_services_port() -> None:
    port = Port("http", "tcp", 80, node_port=30080)
    own = Service("a/web", ("127.1.0.1",), (port,), (endpoint("10.0.0.1"),), external_ips=("203.0.113.5",))
    spots, refused = plan.wanted([own], site=Site("n", ("0.0.0.0", "::")))
    assert {spot: want.kind for spot, want in spots.items()} == {
        Spot("tcp", "127.1.0.1", 80): "clusterIP",
        Spot("tcp", "203.0.113.5", 80): "externalIP",
        Spot("tcp", "0.0.0.0", 30080): "nodePort",
        Spot("tcp", "::", 30080): "nodePort",
    }
    assert len({want.key for want in spots.values()}) == 1, "one balancer for all of them"
    assert not refused
    only = Service("a/only", (), (port,), (endpoint("10.0.0.1"),))
    assert not only.headless
    assert set(plan.wanted([only], site=Site("n", ("127.9.0.1",)))[0]) == {Spot("tcp", "127.9.0.1", 30080)}


def test_the_way_in_decides_which_traffic_policy_counts() -> None:
    port = Port("http", "tcp", 80, node_port=30080)
    for internal, external in (("Local", ""), ("Cluster", "Local"), ("", "")):
        own = Service(
            "a/web", ("127.1.0.1",), (port,), (), internal_policy=internal, external_policy=external,
            external_ips=("203.0.113.5",),
        )  # fmt: skip
        traffic, _ = plan.traffic_of([own], ROUND_ROBIN)
        spots, _ = plan.wanted([own], traffic, Site("n", ("0.0.0.0",)))
        assert {want.kind: want.traffic.local for want in spots.values()} == {
            "clusterIP": internal == "Local",
            "externalIP": external == "Local",
            "nodePort": external == "Local",
        }
        assert len({want.key for want in spots.values()}) == 1 + (
            internal != external and "Local" in (internal, external)
        )


def test_endpoints_of_a_headless_service_are_wanted_each_under_its_own_address() -> None:
    own = service(
        "a/db",
        (),
        endpoint("127.8.0.1", "b"),
        endpoint("127.8.0.2", "c", port=5432),
        endpoint("127.8.0.3", "c", ready=False),
        endpoint("127.8.0.4", "n"),  # here: it listens there itself
        endpoint("127.8.0.5", ""),
        endpoint("127.8.0.6", "b", name="other"),
    )
    assert own.headless
    spots, refused = plan.wanted([own], site=Site("n", ("0.0.0.0",)))
    assert {spot: want.backends for spot, want in spots.items()} == {
        Spot("tcp", "127.8.0.1", 8080): (Backend("b", "127.8.0.1", 8080),),
        Spot("tcp", "127.8.0.2", 5432): (Backend("c", "127.8.0.2", 5432),),
    }
    assert len({want.key for want in spots.values()}) == 2, "a balancer of its own for each"
    assert not refused


def test_an_endpoints_address_that_means_something_else_here_is_refused() -> None:
    headless = service(
        "a/db", (), endpoint("127.0.0.1"), endpoint("127.8.0.1"), endpoint("127.8.0.2"), endpoint("127.8.0.3")
    )
    others = [
        service("b/own", ("127.1.0.1",), endpoint("127.8.0.1", "n")),
        service("b/web", ("127.8.0.2",), ports=(Port("http", "tcp", 8080),)),
    ]
    spots, refused = plan.wanted([headless, *others], site=Site("n"))
    assert {spot for spot, want in spots.items() if want.kind == "endpoint"} == {Spot("tcp", "127.8.0.3", 8080)}
    reasons = {spot.ip: why for spot, _, why in refused}
    assert "every host has this address" in reasons["127.0.0.1"]
    assert "an endpoint on this node has this address" in reasons["127.8.0.1"]
    assert "already served for b/web:8080; give one another address" in reasons["127.8.0.2"]


def test_a_cluster_ip_comes_before_what_else_claims_the_spot() -> None:
    external = Service("a/first", (), (HTTP,), (), external_ips=("127.1.0.1",))
    spots, refused = plan.wanted([external, service("b/second", ("127.1.0.1",))])
    assert spots[Spot("tcp", "127.1.0.1", 80)].service == "b/second"
    assert [want.service for _, want, _ in refused] == ["a/first"]


@pytest.mark.parametrize(
    ("mode", "left", "why"),
    [("FilterIfLabelExists", "a/labelled", "it has the label"), ("FilterIfLabelDoesNotExists", "a/plain", "it lacks")],
)
def test_the_filter_leaves_out_those_with_the_label_or_those_without(mode: FilterMode, left: str, why: str) -> None:
    ip = {"a/labelled": "127.1.0.1", "a/plain": "127.1.0.2"}
    services = [Service(key, (ip[key],), (HTTP,), (), labelled=key == "a/labelled") for key in ip]
    spots, [(spot, want, reason)] = plan.wanted(services, site=Site(filter=mode))
    assert [want.service for want in spots.values()] == [key for key in ip if key != left]
    assert (spot.ip, want.service) == (ip[left], left)
    assert why in reason and plan.FILTER_LABEL in reason and mode in reason
    assert [one.key for one in plan.served(services, mode)] == [key for key in ip if key != left]


def test_who_is_left_out_claims_no_address() -> None:
    labelled = Service("a/labelled", ("127.1.0.1",), (HTTP,), (), labelled=True)
    spots, _ = plan.wanted([labelled, service("b/plain", ("127.1.0.1",))])
    assert spots[Spot("tcp", "127.1.0.1", 80)].service == "b/plain"


def test_the_diff_opens_closes_and_keeps() -> None:
    spots, _ = plan.wanted([service("a/web", ("127.1.0.1", "127.1.0.2"))])
    kept, gone, new = Spot("tcp", "127.1.0.1", 80), Spot("tcp", "127.1.0.9", 80), Spot("tcp", "127.1.0.2", 80)
    steps = plan.diff([kept, gone], spots)
    assert (steps.close, list(steps.open), list(steps.keep)) == ([gone], [new], [kept])


# ── policy ──


def policy(*targets: str) -> Policy:
    own = Policy("b", map(Allowed, targets))
    own.update(
        [
            service("a/web", ("127.1.0.1",), endpoint("10.0.0.1"), endpoint("10.0.0.2", ready=False)),
            service("a/far", ("127.1.0.2",), endpoint("10.0.0.3", node="c")),
            service("a/headless", (), endpoint("fd00::1", port=9000), endpoint("10.0.0.4", port=53, name="dns")),
        ]
    )
    return own


@pytest.mark.parametrize(
    ("network", "address", "service"),
    [
        ("tcp", "10.0.0.1:8080", "a/web"),
        ("tcp", "10.0.0.2:8080", "a/web"),  # not ready, but ours
        ("tcp", "[fd00::1]:9000", "a/headless"),
        ("tcp", "[FD00:0::1]:9000", "a/headless"),  # the same address in other letters
        ("tcp", "[::ffff:10.0.0.1]:8080", "a/web"),
        ("udp", "10.0.0.4:53", "a/headless"),
    ],
)
def test_own_endpoints_may_be_dialled(network: Network, address: str, service: str) -> None:
    verdict = policy().judge(network, address, "a")
    assert verdict.allowed and not verdict.resolve
    assert verdict.service == service


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("tcp", "10.0.0.1:8081"),
        ("udp", "10.0.0.1:8080"),
        ("tcp", "10.0.0.3:8080"),  # on another node
        ("tcp", "127.1.0.1:80"),  # a clusterIP is no endpoint
        ("tcp", "169.254.169.254:80"),
        ("tcp", "localhost:8080"),
    ],
)
def test_all_else_is_denied_with_a_reason(network: Network, address: str) -> None:
    verdict = policy().judge(network, address, "a")
    assert not verdict.allowed
    assert address in verdict.why and "'b'" in verdict.why and "allowedTargets" in verdict.why
    assert "\n" not in verdict.why


def test_a_pod_may_be_asked_for_by_its_name_unless_several_have_it() -> None:
    def pod(ip: str, name: str, node: str = "b") -> Endpoint:
        return Endpoint((ip,), (Port("http", "tcp", 8080),), node, True, pod=name)

    own = Policy("b")
    own.update(
        [
            service("a/web", (), pod("10.0.0.1", "web-0"), pod("fd00::1", "web-0"), pod("10.0.0.2", "web-1", "c")),
            service("a/same", (), pod("10.0.0.1", "web-0"), pod("10.0.0.3", "db-0")),
            service("b/db", (), pod("10.0.0.4", "db-0")),
        ]
    )
    verdict = own.judge("tcp", "web-0:8080", "a")
    assert (verdict.allowed, verdict.host, verdict.port, verdict.resolve) == (True, "10.0.0.1", 8080, False)
    for address in ("web-0:8081", "web-1:8080", "db-0:8080"):
        assert not own.judge("tcp", address, "a").allowed, address


@pytest.mark.slow
@given(st.text(max_size=80))
def test_whatever_a_peer_sends_is_judged(address: str) -> None:
    verdict = policy().judge("tcp", address, "a")
    assert not verdict.allowed
    assert verdict.why and "\n" not in verdict.why


@pytest.mark.parametrize(
    "address", ["", ":", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:+80", "fd00::1:9000", "x:٣"]
)
def test_malformed_targets_are_denied(address: str) -> None:
    assert "expected" in policy("0.0.0.0/0:*", "[::/0]:*", "x:*").judge("tcp", address, "a").why


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("10.1.0.0/16:22", ["10.1.2.3:22", "[::ffff:10.1.2.3]:22"], ["10.1.2.3:23", "10.2.0.1:22"]),
        ("10.1.0.0/16:*", ["10.1.2.3:1", "10.1.2.3:65535"], ["10.2.0.1:1"]),
        ("10.1.2.3:22", ["10.1.2.3:22"], ["10.1.2.4:22", "ssh.lan:22"]),
        ("10.1.2.3:8000-8002", ["10.1.2.3:8000", "10.1.2.3:8002"], ["10.1.2.3:7999", "10.1.2.3:8003"]),
        ("[fd00::/8]:*", ["[fd00::9]:1"], ["[fe80::1]:1", "10.0.0.9:1"]),
        ("[fd00::9]:22", ["[fd00::9]:22"], ["[fd00::8]:22"]),
        ("ssh.lan:22", ["ssh.lan:22", "SSH.LAN.:22"], ["ssh.lan:23", "xssh.lan:22", "10.1.2.3:22"]),
        ("0.0.0.0/0:80", ["1.2.3.4:80"], ["[fd00::9]:80", "name:80"]),
    ],
)
def test_allowed_targets(entry: str, yes: list[str], no: list[str]) -> None:
    own = policy(entry)
    for address in yes:
        verdict = own.judge("tcp", address, "a")
        assert verdict.allowed and entry in verdict.why, address
        assert verdict.resolve is ("lan" in address.lower())
    for address in no:
        assert not own.judge("tcp", address, "a").allowed, address


@pytest.mark.parametrize(
    "entry", ["", "10.0.0.1", "10.0.0.0/33:1", "10.0.0.1:0", "10.0.0.1:x", "fd00::1:22", "h:9-8", ":22", "1.2.3:80"]
)
def test_entries_that_mean_nothing_are_named(entry: str) -> None:
    with pytest.raises(PolicyError, match="expected address, CIDR or name"):
        Policy("b", [Allowed(entry)])


@pytest.mark.parametrize(
    ("nodes", "yes", "no"),
    [
        (("*",), ["a", "site1-x"], []),
        (("edge-a",), ["edge-a"], ["edge-b", "edge-aa", "edge-a.x", ""]),
        (("edge-a", "site1-*"), ["edge-a", "site1-", "site1-x.y"], ["site2-x", "xsite1-y"]),
        (("*.lan",), ["x.lan"], ["xlan", "x.lan.example"]),
        (("Edge-A",), ["edge-a"], []),
    ],
)
def test_targets_for_some_nodes_only(nodes: tuple[str, ...], yes: list[str], no: list[str]) -> None:
    own = Policy("b", [Allowed("10.9.0.1:1"), Allowed("10.1.0.0/16:22", nodes)])
    for peer in yes:
        assert own.judge("tcp", "10.1.2.3:22", peer).allowed
    for peer in no:
        verdict = own.judge("tcp", "10.1.2.3:22", peer)
        assert not verdict.allowed
        for part in ("10.1.2.3:22", repr(peer), "'b'", "modules.edgeProxy.allowedTargets[1].nodes"):
            assert part in verdict.why
        assert "not an endpoint" in own.judge("tcp", "10.1.2.3:23", peer).why


def test_one_of_several_entries_suffices() -> None:
    own = Policy("b", [Allowed("10.1.0.0/16:22", ("x",)), Allowed("10.1.2.3:22", ("a",))])
    assert own.judge("tcp", "10.1.2.3:22", "a").allowed
    assert own.judge("tcp", "10.1.2.3:22", "x").allowed
    assert not own.judge("tcp", "10.1.2.4:22", "a").allowed


def test_denials_follow_the_services() -> None:
    own = policy()
    assert own.judge("tcp", "10.0.0.1:8080", "a").allowed
    own.update([])
    assert not own.judge("tcp", "10.0.0.1:8080", "a").allowed
