"""Which of the kernel's words are a change of the network, and how often one is acted upon."""

import socket
import struct

import pytest

from services.tunnel.core import netlink
from services.tunnel.core.netlink import NO_WAY
from services.tunnel.core.outlook import PAUSE_MOST, REST, SETTLE, Outlook, Pace

HOME = (2, "192.168.1.1", "192.168.1.7")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, number: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, number, 0) + body


def address(ip: str, *, flags: int = 0, peer: str = "", interface: int = 2) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    body = struct.pack("=BBBBI", family, 24, flags & 0xFF, 0, interface)
    body += attribute(1, socket.inet_pton(family, peer or ip))
    if peer:
        body += attribute(2, socket.inet_pton(family, ip))
    return 20, body + attribute(8, struct.pack("=I", flags))


# ---------------------------------------------------------------- messages


def test_addresses_are_read() -> None:
    assert netlink.address(*address("192.168.1.7")) == (2, "192.168.1.7")
    assert netlink.address(*address("2001:db8::7", interface=5)) == (5, "2001:db8::7")
    assert netlink.address(*address("10.8.0.2", peer="10.8.0.1")) == (2, "10.8.0.2"), "ours, not the other end's"


@pytest.mark.parametrize("flags", [0x40, 0x08 | 0x40])
def test_an_address_that_is_still_being_tried_is_none(flags: int) -> None:
    assert netlink.address(*address("2001:db8::7", flags=flags)) is None


def test_ways_are_read() -> None:
    route = struct.pack("=8BI", socket.AF_INET, 32, 0, 0, 254, 0, 0, 1, 0)
    body = route + attribute(4, struct.pack("=I", 2)) + attribute(7, socket.inet_aton("192.168.1.7"))
    assert netlink.way(24, body) == (2, "", "192.168.1.7")
    assert netlink.way(24, body + attribute(5, socket.inet_aton("192.168.1.1"))) == HOME
    via = struct.pack("=H", socket.AF_INET6) + socket.inet_pton(socket.AF_INET6, "fe80::1")
    assert netlink.way(24, body + attribute(18, via)) == (2, "fe80::1", "192.168.1.7")
    assert netlink.way(2, struct.pack("=i", -101) + bytes(16)) == NO_WAY, "an error: the network is unreachable"


def test_whatever_comes_is_survived() -> None:
    one = message(*((kind := address("192.168.1.7"))[0], 7, kind[1]))
    for size in range(len(one)):
        for kind, _, body in netlink.messages(one + one[:size]):
            netlink.address(kind, body)
        for kind, _, body in netlink.messages(one[:size]):
            raise AssertionError(f"read {kind} {body.hex()} from a part of a message")
        netlink.address(20, one[16 : 16 + size])
        netlink.way(24, one[16 : 16 + size])
    assert list(netlink.messages(bytes(64))) == [], "a length of 0 does not make an endless loop"


def test_a_list_that_changed_while_it_was_told_is_not_believed() -> None:
    kind, body = address("192.168.1.7")
    torn = struct.pack("=IHHII", 16 + len(body), kind, 0x12, 7, 0) + body  # NLM_F_MULTI, NLM_F_DUMP_INTR
    with pytest.raises(netlink.Interrupted):
        list(netlink.messages(torn))


def test_the_kernel_understands_the_questions() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(10)
        sock.send(netlink.ask_addresses(7))
        found, done = [], False
        while not done:
            for kind, number, body in netlink.messages(sock.recv(65536)):
                assert number == 7
                done = done or netlink.finished(kind)
                found.append(netlink.address(kind, body))
        assert "127.0.0.1" in [pair[1] for pair in found if pair]
        sock.send(netlink.ask_way(8, "127.0.0.1"))
        [(kind, number, body)] = netlink.messages(sock.recv(65536))
        assert (number, netlink.way(kind, body)[1:]) == (8, ("", "127.0.0.1"))


# ---------------------------------------------------------------- what is a change


def outlook(*addresses: tuple[str, str], running: str = "eth0 wlan0 docker0 lo", **ways: netlink.Way) -> Outlook:
    return Outlook.of(addresses, running.split(), {"far": HOME, **ways})


HOME_PAIRS = (("lo", "127.0.0.1"), ("eth0", "192.168.1.7"), ("eth0", "fe80::7"))
AT_HOME = outlook(*HOME_PAIRS)


@pytest.mark.parametrize(
    "later",
    [
        AT_HOME,
        outlook(("lo", "127.0.0.1"), ("eth0", "192.168.1.7"), ("eth0", "fe80::7"), ("docker0", "172.17.0.1")),
        outlook(("lo", "127.0.0.1"), ("eth0", "192.168.1.7"), ("eth0", "fe80::7"), ("veth12", "fe80::12")),
        outlook(("lo", "127.0.0.1"), ("lo", "127.9.9.9"), ("eth0", "192.168.1.7"), ("eth0", "fe80::7")),
    ],
)
def test_what_is_none(later: Outlook) -> None:
    """The same again (a router that repeats itself), containers, loopback."""
    assert not later.differs(AT_HOME)
    assert not later.lost(AT_HOME)


@pytest.mark.parametrize(
    ("later", "lost"),
    [
        (outlook(("lo", "127.0.0.1"), ("eth0", "fe80::7")), {"192.168.1.7"}),
        (outlook(("lo", "127.0.0.1"), ("eth0", "192.168.1.8"), ("eth0", "fe80::7")), {"192.168.1.7"}),
        (outlook(*HOME_PAIRS, far=NO_WAY), ()),
        (outlook(*HOME_PAIRS, far=(2, "192.168.1.2", "192.168.1.7")), ()),
        (outlook(*HOME_PAIRS, ("wlan0", "10.0.0.5")), ()),
        (outlook(*HOME_PAIRS, running="lo"), ()),
    ],
    ids=["gone", "another", "no route", "another gateway", "one more", "no carrier"],
)
def test_what_is_one(later: Outlook, lost: set[str]) -> None:
    assert later.differs(AT_HOME)
    assert later.lost(AT_HOME) == set(lost)
    assert AT_HOME.differs(later), "and back again"


def test_a_destination_that_is_new_is_no_change() -> None:
    both = outlook(("lo", "127.0.0.1"), ("eth0", "192.168.1.7"), ("eth0", "fe80::7"), near=(2, "", "192.168.1.7"))
    assert not both.differs(AT_HOME)
    assert not AT_HOME.differs(both)


# ---------------------------------------------------------------- how often


def test_the_first_change_is_acted_upon_at_once_and_a_storm_ever_more_rarely() -> None:
    pace, now, acts = Pace(), 1000.0, [0.0]
    acts.clear()
    while now < 1600.0:  # every word comes as soon as the last one was dealt with
        now += pace.wait(now)
        pace.acted(now)
        acts.append(now)
    assert acts[0] == 1000.0 + SETTLE
    assert len(acts) <= 6 + 600 / PAUSE_MOST
    now += REST * PAUSE_MOST + 1
    assert pace.wait(now) == SETTLE


def test_a_host_that_roams_every_few_seconds_is_no_storm() -> None:
    pace = Pace()
    for number in range(20):
        now = 8.0 * number
        assert pace.wait(now) == SETTLE
        pace.acted(now + SETTLE)


def test_looks_that_show_nothing_cost_no_pause() -> None:
    pace = Pace()
    assert [pace.wait(now) for now in (10.0, 10.3, 10.6)] == [SETTLE] * 3
