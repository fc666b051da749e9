"""Each kind of NAT maps and filters as its name says, tried with real sockets."""

import socket
import struct
import time

import pytest

from lab.nat import Kind, Nat
from lab.network import Network
from tests.lab.sockets import PATIENCE, listener, seen_from, tcp, udp, udp6, until

pytestmark = pytest.mark.lab

INDEPENDENT = [Kind.FULL_CONE, Kind.RESTRICTED, Kind.PORT_RESTRICTED]


@pytest.mark.parametrize("kind", list(Kind))
def test_mapping_of_datagrams(network: Network, kind: Kind) -> None:
    servers = [udp(network.public(name)) for name in ("s1", "s2")]
    servers += [udp(network.public("s3")) for _ in range(1)]
    lan = network.lan("home", Nat(kind))
    host = lan.host("host")
    with udp(host, 40000) as inside:
        sources = [seen_from(inside, server) for server in servers]
    outside = host.address if kind is Kind.FIREWALL else lan.wan_address
    assert {address for address, _ in sources} == {outside}
    assert (len({port for _, port in sources}) > 1) == (kind is Kind.SYMMETRIC)


@pytest.mark.parametrize("kind", list(Kind))
def test_mapping_of_connections(network: Network, kind: Kind) -> None:
    servers = [listener(network.public(name)) for name in ("s1", "s2", "s3")]
    host = network.lan("home", Nat(kind)).host("host")
    sources = set()
    for server in servers:
        with tcp(host, 40000) as inside:
            inside.connect(server.getsockname())
            accepted, source = server.accept()
            accepted.close()
            sources.add(source)
    assert (len(sources) > 1) == (kind is Kind.SYMMETRIC)


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        (Kind.FULL_CONE, {b"other port", b"other address"}),
        (Kind.RESTRICTED, {b"other port"}),
        (Kind.PORT_RESTRICTED, set()),
        (Kind.SYMMETRIC, set()),
        (Kind.FIREWALL, set()),
    ],
)
def test_filtering(network: Network, kind: Kind, accepted: set[bytes]) -> None:
    server, stranger = network.public("server"), network.public("stranger")
    known, other_port, other_address = udp(server), udp(server), udp(stranger)
    with udp(network.lan("home", Nat(kind)).host("host"), 40000) as inside:
        outside = seen_from(inside, known)
        other_port.sendto(b"other port", outside)
        other_address.sendto(b"other address", outside)
        known.sendto(b"known", outside)
        # What passes has passed when a packet sent after it is there.
        assert set(until(inside, b"known")) == accepted | {b"known"}


def test_an_early_packet_does_not_spoil_the_mapping(network: Network) -> None:
    """A packet that came too early must leave no trace, else punching fails for those who start first."""
    server = network.public("server")
    a, b = network.lan("a"), network.lan("b")
    observer = udp(server)
    with udp(a.host("a0"), 40000) as one, udp(b.host("b0"), 40001) as two:
        outside_one, outside_two = seen_from(one, observer), seen_from(two, observer)
        one.sendto(b"too early", outside_two)
        two.sendto(b"opens", outside_one)
        assert one.recvfrom(100) == (b"opens", outside_two)
        one.sendto(b"now", outside_two)
        assert two.recvfrom(100) == (b"now", outside_one)


@pytest.mark.parametrize("kind", INDEPENDENT)
@pytest.mark.parametrize("hairpin", [True, False])
def test_hairpin(network: Network, kind: Kind, hairpin: bool) -> None:
    observer = udp(network.public("server"))
    lan = network.lan("home", Nat(kind, hairpin=hairpin))
    with udp(lan.host("one"), 40000) as one, udp(lan.host("two"), 40001) as two:
        outside_one, outside_two = seen_from(one, observer), seen_from(two, observer)
        two.sendto(b"around", outside_one)
        two.sendto(b"inside", one.getsockname())
        got = [one.recvfrom(100)]
        while got[-1][0] != b"inside":
            got.append(one.recvfrom(100))
        assert ((b"around", outside_two) in got) == hairpin


@pytest.mark.parametrize("kind", [Kind.SYMMETRIC, Kind.FIREWALL])
def test_hairpin_is_refused_where_it_cannot_work(kind: Kind) -> None:
    with pytest.raises(ValueError, match="endpoint-independent"):
        Nat(kind, hairpin=True)


@pytest.mark.parametrize("kind", list(Kind))
def test_unwanted_connections_are_reset_or_vanish(network: Network, kind: Kind) -> None:
    stranger = network.public("stranger")
    for name, nat in (("rude", Nat(kind, answers_rst=True)), ("silent", Nat(kind))):
        lan = network.lan(name, nat)
        host = lan.host(f"{name}-host")
        target = host.address if kind is Kind.FIREWALL else lan.wan_address
        with tcp(stranger) as sock:
            if nat.answers_rst:
                with pytest.raises(ConnectionRefusedError):
                    sock.connect((target, 40000))
            else:
                sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    sock.connect((target, 40000))


def test_two_nats_in_a_row(network: Network) -> None:
    server = udp(network.public("server"))
    carrier = network.lan("carrier", Nat(Kind.SYMMETRIC), carrier=True)
    home = network.lan("home", behind=carrier)
    with udp(home.host("host"), 40000) as inside:
        source = seen_from(inside, server)
        assert source[0] == carrier.wan_address
        server.sendto(b"back", source)
        assert inside.recv(100) == b"back"
    assert home.wan_address.startswith("100.64.")


@pytest.mark.parametrize("kind", [Kind.PORT_RESTRICTED, Kind.SYMMETRIC])
def test_private_addresses_are_not_reachable_from_outside(network: Network, kind: Kind) -> None:
    stranger = udp(network.public("stranger"))
    with udp(network.lan("home", Nat(kind)).host("host"), 40000) as inside:
        outside = seen_from(inside, stranger)
        stranger.sendto(b"to the private address", inside.getsockname())
        stranger.sendto(b"to the mapping", outside)
        assert until(inside, b"to the mapping") == [b"to the mapping"]


def test_multicast_stays_in_the_lan(network: Network) -> None:
    group, port = "224.0.0.251", 5353
    lan = network.lan("home")
    speaker, neighbour, outsider = lan.host("speaker"), lan.host("neighbour"), network.public("outsider")
    ears = []
    for host in (neighbour, outsider):
        ear = host.namespace.socket(socket.SOCK_DGRAM)
        ear.bind(("", port))
        membership = socket.inet_aton(group) + socket.inet_aton(host.address)
        ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        ear.settimeout(10)
        ears.append(ear)
    with udp(speaker) as mouth:
        mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        mouth.sendto(b"who is there", (group, port))
        mouth.sendto(b"end", (outsider.address, port))
    assert ears[0].recv(100) == b"who is there"
    assert ears[1].recv(100) == b"end"


@pytest.mark.parametrize("kind", INDEPENDENT)
def test_hosts_with_the_same_port_have_a_mapping_each(network: Network, kind: Kind) -> None:
    servers = [udp(network.public(name)) for name in ("s1", "s2")]
    known, stranger = servers[0], udp(network.public("stranger"))
    lan = network.lan("home", Nat(kind))
    with udp(lan.host("one"), 40000) as one, udp(lan.host("two"), 40000) as two:
        # Each speaks first with another server: towards those, both could have kept the port.
        outside_one = seen_from(one, servers[0])
        outside_two = seen_from(two, servers[1])
        assert outside_one != outside_two
        assert seen_from(one, servers[1]) == outside_one
        assert seen_from(two, servers[0]) == outside_two
        for sock, outside, text in ((one, outside_one, b"for one"), (two, outside_two, b"for two")):
            stranger.sendto(text + b" from a stranger", outside)
            known.sendto(text, outside)
            got = until(sock, text)
            assert (got[0] == text + b" from a stranger") == (kind is Kind.FULL_CONE)


@pytest.mark.parametrize("hairpin", [True, False])
def test_neighbours_of_one_carrier_meet_outside_only_by_hairpin(network: Network, hairpin: bool) -> None:
    """Two homes behind one carrier's router: an address seen on the internet works between them if it hairpins."""
    observer = udp(network.public("server"))
    carrier = network.lan("carrier", Nat(hairpin=hairpin), carrier=True)
    homes = [network.lan(name, behind=carrier) for name in ("left", "right")]
    with udp(homes[0].host("l"), 40000) as one, udp(homes[1].host("r"), 40000) as two:
        outside_one, outside_two = seen_from(one, observer), seen_from(two, observer)
        assert outside_one[0] == outside_two[0] == carrier.wan_address
        one.sendto(b"too early", outside_two)  # opens the own router for what comes back
        two.sendto(b"around", outside_one)
        if hairpin:
            assert one.recvfrom(100) == (b"around", outside_two)
            one.sendto(b"back", outside_two)
            assert until(two, b"back")[-1] == b"back"
        else:
            observer.sendto(b"end", outside_one)
            assert until(one, b"end") == [b"end"]


@pytest.mark.parametrize("kind", [Kind.FULL_CONE, Kind.RESTRICTED])
def test_connections_come_in_through_a_cone_and_around_it(network: Network, kind: Kind) -> None:
    lan = network.lan("home", Nat(kind, hairpin=True))
    server, client = network.public("server"), network.public("client")
    host = lan.host("host")
    for caller in (client, lan.host("neighbour")):
        meeting = listener(server)
        with tcp(host, 40000) as opener:
            opener.connect(meeting.getsockname())
            accepted, outside = meeting.accept()
            accepted.close()
        if kind is Kind.RESTRICTED and caller is client:
            with tcp(host, 40000) as knock, pytest.raises(ConnectionRefusedError):
                knock.connect((client.address, 9))
        with listener(host, 40000) as inside, tcp(caller) as visitor:
            visitor.connect(outside)
            arrived, _ = inside.accept()
            with arrived:
                visitor.sendall(b"hello")
                assert arrived.recv(5) == b"hello"


def test_the_outer_of_two_routers_answers_for_the_inner(network: Network) -> None:
    """Resets come from where a connection ends: at the carrier, whatever the router at home would do."""
    stranger = network.public("stranger")
    carrier = network.lan("carrier", Nat(answers_rst=True), carrier=True)
    network.lan("home", Nat(), behind=carrier).host("host")
    with tcp(stranger) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((carrier.wan_address, 40000))


@pytest.mark.parametrize("inner", [Kind.FIREWALL, Kind.PORT_RESTRICTED])
@pytest.mark.parametrize("outer", [Kind.FIREWALL, Kind.FULL_CONE])
def test_any_router_behind_any(network: Network, outer: Kind, inner: Kind) -> None:
    server = udp(network.public("server"))
    above = network.lan("above", Nat(outer))
    below = network.lan("below", Nat(inner), behind=above)
    with udp(below.host("host"), 40000) as inside:
        source = seen_from(inside, server)
        if outer is Kind.FULL_CONE:
            assert source[0] == above.wan_address
        else:
            assert source[0] == (inside.getsockname()[0] if inner is Kind.FIREWALL else below.wan_address)
        server.sendto(b"back", source)
        assert inside.recv(100) == b"back"


@pytest.mark.parametrize("kind", [Kind.FULL_CONE, Kind.PORT_RESTRICTED, Kind.SYMMETRIC, Kind.FIREWALL])
def test_a_flush_forgets_flows_and_mappings(network: Network, kind: Kind) -> None:
    server, later = udp(network.public("server")), udp(network.public("later"))
    lan = network.lan("home", Nat(kind))
    with udp(lan.host("host"), 40000) as inside:
        before = seen_from(inside, server)
        server.sendto(b"before", before)
        assert inside.recv(100) == b"before"
        lan.flush()
        server.sendto(b"forgotten", before)
        after = seen_from(inside, later)
        later.sendto(b"after", after)
        assert until(inside, b"after") == [b"after"]


def test_ipv6_is_filtered_and_not_translated(network: Network) -> None:
    server, stranger = (network.public(name, ipv6=True) for name in ("server", "stranger"))
    lan = network.lan("home", Nat(Kind.FULL_CONE), ipv6=True)
    host = lan.host("host")
    with udp6(host, 40000) as inside, udp6(server) as known, udp6(stranger) as unknown:
        source = seen_from(inside, known)
        assert source == (host.address6, 40000)
        unknown.sendto(b"unwanted", source)
        known.sendto(b"wanted", source)
        assert until(inside, b"wanted") == [b"wanted"]


def test_ipv6_through_two_routers(network: Network) -> None:
    server = network.public("server", ipv6=True)
    carrier = network.lan("carrier", carrier=True, ipv6=True)
    home = network.lan("home", behind=carrier, ipv6=True)
    host, neighbour = home.host("host"), carrier.host("neighbour")
    with udp6(host, 40000) as inside:
        for other in (udp6(server), udp6(neighbour)):
            source = seen_from(inside, other)
            assert source == (host.address6, 40000)
            other.sendto(b"back", source)
            assert inside.recv(100) == b"back"


def test_who_has_no_ipv6_cannot_pass_it_on(network: Network) -> None:
    with pytest.raises(ValueError, match="carrier, which it is behind, has none"):
        network.lan("home", behind=network.lan("carrier"), ipv6=True)


def test_ipv6_only_where_it_is_asked_for(network: Network) -> None:
    server = network.public("server", ipv6=True)
    old = network.public("old")
    assert (old.address6, network.lan("home").host("host").address6) == ("", "")
    with (
        udp6(server) as there,
        old.namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6) as here,
        pytest.raises(OSError, match="unreachable"),
    ):
        here.sendto(b"hello", there.getsockname())


@pytest.mark.parametrize(
    ("kind", "answers_rst"),
    [(Kind.PORT_RESTRICTED, False), (Kind.PORT_RESTRICTED, True), (Kind.SYMMETRIC, False), (Kind.FIREWALL, False)],
)
def test_a_lifetime_cuts_connections_of_that_age(network: Network, kind: Kind, answers_rst: bool) -> None:
    """Used or not; then a new one from the same port works, and lives as long again."""
    lifetime = 1.0
    server = listener(network.public("server"))
    host = network.lan("home", Nat(kind, lifetime=lifetime, answers_rst=answers_rst)).host("host")
    for _ in range(2):
        began = time.monotonic()
        with tcp(host, 40000) as inside:
            inside.connect(server.getsockname())
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(0.5)
                lived = 0.0
                try:
                    while time.monotonic() - began < PATIENCE:
                        for one, other in ((inside, accepted), (accepted, inside)):
                            one.sendall(b"there")
                            assert other.recv(5) == b"there"
                        lived = time.monotonic() - began
                        time.sleep(0.05)
                except TimeoutError:
                    if answers_rst:  # to whom sent
                        with pytest.raises(ConnectionResetError):
                            inside.sendall(b"there")
                            inside.recv(1)
                except ConnectionResetError:
                    assert answers_rst
                assert lifetime / 2 < lived < lifetime + 0.5
                for one in (inside, accepted):  # no farewell that the router would not carry
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
