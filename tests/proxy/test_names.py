"""What the DNS answers from the catalog, how long answers are kept, and whom it asks first. All pure, with fake time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core.catalog import Endpoint, Port, Service
from services.proxy.core.names import MAX_RECORDS, Answer, Names
from services.proxy.core.plan import wanted
from services.proxy.core.ttlcache import TtlCache
from services.proxy.core.upstreams import HOLD, Upstream, Upstreams

HTTP, DNS = Port("http", "tcp", 80), Port("dns", "udp", 53)
PG = Port("pg", "tcp", 5432)


def pod(ip: str, hostname: str = "", *, ready: bool = True, port: int = 5432) -> Endpoint:
    return Endpoint((ip,), (Port("pg", "tcp", port),), "b", ready, hostname)


WEB = Service("default/web", ("127.1.0.1", "fd00::1"), (HTTP, DNS), (pod("10.0.0.1"),))
DB = Service(
    "prod/db",
    (),
    (PG,),
    (pod("127.8.0.1", "db-0"), pod("127.8.0.2", "db-1", port=5433), pod("127.8.0.3", ready=False), pod("fd00::3")),
)
ONLY = Service("prod/only", (), (Port("http", "tcp", 80, 30080),), ())


@pytest.fixture
def names() -> Names:
    made = Names("cluster.local")
    made.update([WEB, DB, ONLY])
    return made


def data(answer: Answer | None) -> list[str]:
    assert answer is not None and answer.exists
    return [record.data for record in answer.records]


def short_of(answer: Answer | None) -> str:
    """ "records", "nodata", "nxdomain" or "not ours"."""
    if answer is None:
        return "not ours"
    return "records" if answer.records else "nodata" if answer.exists else "nxdomain"


def test_a_services_addresses_by_family_and_under_its_short_names(names: Names) -> None:
    for name in ("web.default.svc.cluster.local", "web.default.svc", "web.default", "web"):
        assert data(names.answer(name, "A")) == ["127.1.0.1"]
        assert data(names.answer(name, "AAAA")) == ["fd00::1"]
        assert data(names.answer(name, "ANY")) == ["127.1.0.1", "fd00::1"]
    assert data(names.answer("db.prod", "A")) == ["127.8.0.1", "127.8.0.2"]


def test_another_name_for_something_outside(names: Names) -> None:
    outside = Service("default/ext", (), (), (), external_name="db.example.com")
    names.update([WEB, outside])
    for name in ("ext.default.svc.cluster.local", "ext"):
        for kind, alias in (("A", "db.example.com"), ("MX", "db.example.com"), ("CNAME", ""), ("ANY", "")):
            answer = names.answer(name, kind)
            assert data(answer) == ["db.example.com."] and answer is not None
            assert (answer.records[0].kind, answer.alias) == ("CNAME", alias)
    assert short_of(names.answer("x.ext.default.svc.cluster.local", "A")) == "nxdomain"
    assert short_of(names.answer("_pg._tcp.ext.default.svc.cluster.local", "SRV")) == "nxdomain"
    assert not outside.headless, "nobody listens for it"
    assert wanted([outside]) == ({}, [])


def test_pods_that_are_endpoints_by_their_address_and_the_version_of_the_specification(names: Names) -> None:
    for name, kind, found in (
        ("127-8-0-1.prod.pod.cluster.local", "A", ["127.8.0.1"]),
        ("127-8-0-3.prod.pod.cluster.local", "A", ["127.8.0.3"]),  # ready or not
        ("fd00--3.prod.pod.cluster.local", "AAAA", ["fd00::3"]),
        ("10-0-0-1.default.pod.cluster.local", "ANY", ["10.0.0.1"]),
        ("dns-version.cluster.local", "TXT", ['"1.1.0"']),
    ):
        assert data(names.answer(name, kind)) == found, name


@pytest.mark.parametrize(
    ("name", "kind", "is_"),
    [
        ("127-8-0-1.prod.pod.cluster.local", "AAAA", "nodata"),
        ("127-8-0-9.prod.pod.cluster.local", "A", "nxdomain"),
        ("127-8-0-1.nowhere.pod.cluster.local", "A", "nxdomain"),
        ("prod.pod.cluster.local", "A", "nodata"),
        ("nowhere.pod.cluster.local", "A", "nxdomain"),
        ("pod.cluster.local", "A", "nodata"),
        ("dns-version.cluster.local", "A", "nodata"),
        ("web.default.svc.cluster.local", "MX", "nodata"),
        ("only.prod.svc.cluster.local", "A", "nodata"),  # nodePorts have no address
        ("db.prod.svc.cluster.local", "SRV", "nodata"),
        ("nope.default.svc.cluster.local", "A", "nxdomain"),
        ("web.nowhere.svc.cluster.local", "A", "nxdomain"),
        ("deep.er.web.default.svc.cluster.local", "A", "nxdomain"),
        ("127-8-0-1.default.pod.cluster.local", "A", "nxdomain"),
        ("cluster.local", "A", "nodata"),
        ("cluster.local", "SOA", "records"),
        ("cluster.local", "NS", "records"),
        ("svc.cluster.local", "A", "nodata"),
        ("prod.svc.cluster.local", "A", "nodata"),
        ("_tcp.web.default.svc.cluster.local", "SRV", "nodata"),
        ("_sctp.web.default.svc.cluster.local", "SRV", "nxdomain"),
        ("xcluster.local", "A", "not ours"),
        ("example.com", "A", "not ours"),
        ("db", "A", "not ours"),  # it is in another namespace
        ("web.dev", "A", "not ours"),
        ("local", "A", "not ours"),
        (".", "NS", "not ours"),
    ],
)
def test_what_exists_and_whose_it_is(names: Names, name: str, kind: str, is_: str) -> None:
    answer = names.answer(name, kind)
    assert short_of(answer) == is_
    if answer is not None:
        assert answer.soa.kind == "SOA" and names.covers(name) and answer.soa.name == "cluster.local"


def test_the_serial_number_grows_with_every_change(names: Names) -> None:
    def serial() -> int:
        return int(data(names.answer("cluster.local", "SOA"))[0].split()[2])

    before = serial()
    names.update([WEB])
    assert serial() > before


def test_headless_has_ready_endpoints_only_each_with_a_name_of_its_own(names: Names) -> None:
    name = "db.prod.svc.cluster.local"
    assert data(names.answer(name, "A")) == ["127.8.0.1", "127.8.0.2"]
    assert data(names.answer(name, "AAAA")) == ["fd00::3"]
    assert data(names.answer(f"db-1.{name}", "A")) == ["127.8.0.2"]
    assert data(names.answer(f"db-1.{name}", "AAAA")) == []
    assert data(names.answer(f"fd00--3.{name}", "AAAA")) == ["fd00::3"]  # without a hostname: by its address
    assert short_of(names.answer(f"127-8-0-3.{name}", "A")) == "nxdomain"  # not ready
    assert short_of(names.answer(f"db-1.{WEB.key}", "A")) == "not ours"
    assert short_of(names.answer("10-0-0-1.web.default.svc.cluster.local", "A")) == "nxdomain"  # not headless
    names.update([Service("prod/db", (), (PG,), (pod("127.8.0.1", ready=False),))])
    assert short_of(names.answer(name, "A")) == "nodata"


def test_srv_of_a_service_and_of_a_headless_one(names: Names) -> None:
    answer = names.answer("_http._tcp.web.default.svc.cluster.local", "SRV")
    assert data(answer) == ["0 100 80 web.default.svc.cluster.local."]
    assert answer is not None and [record.data for record in answer.extra] == ["127.1.0.1", "fd00::1"]
    assert data(names.answer("_dns._udp.web.default.svc", "SRV")) == ["0 100 53 web.default.svc.cluster.local."]
    answer = names.answer("_pg._tcp.db.prod.svc.cluster.local", "SRV")
    assert data(answer) == [  # the endpoints' own ports
        "0 100 5432 db-0.db.prod.svc.cluster.local.",
        "0 100 5433 db-1.db.prod.svc.cluster.local.",
        "0 100 5432 fd00--3.db.prod.svc.cluster.local.",
    ]
    assert answer is not None
    assert {record.name.split(".")[0]: record.data for record in answer.extra} == {
        "db-0": "127.8.0.1",
        "db-1": "127.8.0.2",
        "fd00--3": "fd00::3",
    }
    assert short_of(names.answer("_http._udp.web.default.svc.cluster.local", "SRV")) == "nxdomain"
    assert short_of(names.answer("_http._tcp.web.default.svc.cluster.local", "A")) == "nodata"


def test_pointers_of_services_and_of_headless_endpoints(names: Names) -> None:
    assert data(names.answer("1.0.1.127.in-addr.arpa", "PTR")) == ["web.default.svc.cluster.local."]
    assert data(names.answer("2.0.8.127.in-addr.arpa", "PTR")) == ["db-1.db.prod.svc.cluster.local."]
    reverse = ".".join(reversed("fd00" + "0" * 27 + "1")) + ".ip6.arpa"
    assert data(names.answer(reverse, "PTR")) == ["web.default.svc.cluster.local."]
    assert short_of(names.answer("1.0.1.127.in-addr.arpa", "A")) == "nodata"
    for stranger in ("9.9.9.9.in-addr.arpa", "1.0.127.in-addr.arpa", "x.in-addr.arpa", "ip6.arpa", f"1.{reverse}"):
        assert short_of(names.answer(stranger, "PTR")) == "not ours"
    names.update([Service("a/odd", (), (PG,), (pod("127.0.0.1"),))])
    assert short_of(names.answer("1.0.0.127.in-addr.arpa", "PTR")) == "not ours", "every host has this address"


def test_another_domain() -> None:
    names = Names("Edge.Example.")
    names.update([WEB])
    assert data(names.answer("web.default.svc.edge.example", "A")) == ["127.1.0.1"]
    assert short_of(names.answer("web.default.svc.cluster.local", "A")) == "not ours"


def test_a_name_never_has_more_records_than_fit_into_a_message() -> None:
    names = Names("cluster.local")
    many = tuple(pod(f"10.0.{i // 250}.{i % 250}", f"p-{i}") for i in range(3000))
    names.update([Service("a/many", (), (PG,), many)])
    assert len(data(names.answer("many.a.svc.cluster.local", "A"))) == MAX_RECORDS
    answer = names.answer("_pg._tcp.many.a.svc.cluster.local", "SRV")
    assert answer is not None and len(answer.records) == len(answer.extra) == MAX_RECORDS


@given(st.text(max_size=60), st.sampled_from(["", ".svc.cluster.local", ".in-addr.arpa", ".ip6.arpa", ".svc"]))
def test_no_name_is_too_odd(name: str, end: str) -> None:
    names = Names("cluster.local")
    names.update([WEB, DB])
    for kind in ("A", "SRV", "PTR", "TYPE65280"):
        names.answer(name + end, kind)


# ── answers that are kept ──


def test_an_answer_lives_for_its_time_and_ages() -> None:
    cache: TtlCache[str] = TtlCache()
    cache.put("a", "one", 10, 30.0, 1000.0)
    found = cache.get("a", 1012.5)
    assert found == ("one", 12.5, 17.5)
    assert cache.get("a", 1030.0) is None
    assert (len(cache), cache.size) == (0, 0), "what is over is forgotten"
    cache.put("a", "zero", 10, 0.0, 1031.0)
    assert cache.get("a", 1031.0) is None


def test_the_cache_is_bounded_by_number_and_by_bytes_and_keeps_what_is_asked_for() -> None:
    cache: TtlCache[int] = TtlCache(entries=3, size=100)
    for number in range(3):
        cache.put(number, number, 10, 60.0, 0.0)
    assert cache.get(0, 1.0) is not None
    cache.put(3, 3, 10, 60.0, 1.0)
    assert [number for number in range(4) if cache.get(number, 1.0)] == [0, 2, 3]
    cache.put(4, 4, 85, 60.0, 1.0)
    assert [number for number in range(5) if cache.get(number, 1.0)] == [3, 4]
    cache.put(5, 5, 101, 60.0, 1.0)
    assert cache.get(5, 1.0) is None
    cache.put(4, 4, 20, 60.0, 1.0)  # in place of the old one
    assert cache.size == 30


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60), st.integers(0, 9)), max_size=60))
def test_the_cache_knows_its_size(steps: list[tuple[int, int, int]]) -> None:
    cache: TtlCache[int] = TtlCache(entries=5, size=100)
    for now, (key, size, ttl) in enumerate(steps):
        cache.put(key, size, size, float(ttl), float(now))
        cache.get(9 - key, float(now))
        assert len(cache) <= 5 and cache.size <= 100
    cache.clear()
    assert (len(cache), cache.size) == (0, 0)


# ── whom to ask ──


def test_who_failed_is_asked_last_for_a_while() -> None:
    a, b, c = (Upstream(f"10.0.0.{i}") for i in (1, 2, 3))
    servers = Upstreams()
    assert servers.order([a, b, a, c], 0.0) == [a, b, c]
    servers.failed(a, 0.0)
    servers.failed(b, 1.0)
    assert servers.order([a, b, c], 2.0) == [c, a, b]
    servers.worked(b)
    assert servers.order([a, b, c], 2.0) == [b, c, a]
    assert servers.order([a, b, c], HOLD) == [a, b, c]
    servers.failed(a, 100.0)
    servers.order([b], 101.0)
    assert servers.order([a, b], 101.0) == [a, b], "who is no longer named is forgotten"
    assert (str(a), str(Upstream("fd00::1", 54))) == ("10.0.0.1:53", "[fd00::1]:54")
