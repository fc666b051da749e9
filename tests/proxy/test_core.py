"""The proxy's pure decisions: balancing, policy, catalog, plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import plan
from services.proxy.core.catalog import Backend, Catalog, Endpoint, Network, Port, Service, Spot
from services.proxy.core.policy import Allowed, Policy, PolicyError

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
    spots, refused = plan.wanted([own, service("a/headless", (), endpoint("10.0.0.2"))])
    assert set(spots) == {
        Spot("tcp", "127.1.0.1", 80),
        Spot("udp", "127.1.0.1", 53),
        Spot("tcp", "::1", 80),
        Spot("udp", "::1", 53),
    }
    assert spots[Spot("tcp", "::1", 80)].backends == (Backend("b", "10.0.0.1", 8080),)
    assert str(Spot("tcp", "::1", 80)) == "[::1]:80"
    assert not refused


def test_two_services_on_one_spot_the_first_by_name_wins() -> None:
    web, abc = service("a/web", ("127.1.0.1",)), service("a/abc", ("127.1.0.1",))
    for order in ([web, abc], [abc, web]):
        spots, refused = plan.wanted(order)
        assert spots[Spot("tcp", "127.1.0.1", 80)].label == "a/abc:80"
        [(spot, loser, why)] = refused
        assert (str(spot), loser.label) == ("127.1.0.1:80", "a/web:80")
        assert "a/abc:80" in why


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
