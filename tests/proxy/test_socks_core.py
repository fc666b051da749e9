"""SOCKS5 as pure decisions: the handshake in any pieces, datagrams, what names mean, passwords."""

import ipaddress
import itertools
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.proxy.core import credentials, destination, socks
from services.proxy.core.credentials import Credentials
from services.proxy.core.destination import DestinationError, EndpointName, NodeTarget, ServiceName
from services.proxy.core.socks import Command, Handshake, Reply, Request, SocksError

USERS = Credentials({"alice": "in wonderland", "bob": "b"})
HELLO = bytes((5, 1, 0))
NAME = b"\x03\x06edge-b\x00\x16"  # edge-b:22


# ── the handshake ──


@dataclass
class Said:
    """What became of a client's bytes."""

    answers: bytes = b""
    request: Request | None = None
    rest: bytes = b""
    error: str = ""


def say(pieces: list[bytes], *, users: bool) -> Said:
    handshake, said = Handshake(USERS.check if users else None), Said()
    for number, piece in enumerate(pieces):
        try:
            said.answers += handshake.receive(piece)
        except SocksError as error:
            said.answers += error.answer
            said.error = str(error)
            return said
        if handshake.request is not None:
            said.request = handshake.request
            said.rest = handshake.rest + b"".join(pieces[number + 1 :])
            return said
    return said


addresses = st.one_of(
    st.binary(min_size=4, max_size=4).map(lambda ip: (str(ipaddress.ip_address(ip)), b"\x01" + ip)),
    st.binary(min_size=16, max_size=16).map(lambda ip: (str(ipaddress.ip_address(ip)), b"\x04" + ip)),
    st.text("abcz019.-:_", min_size=1, max_size=255).map(
        lambda text: (_canonical(text), bytes((3, len(text))) + text.encode())
    ),
)


def _canonical(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


@given(
    addresses,
    st.integers(0, 65535),
    st.sampled_from(Command),
    st.binary(max_size=40),
    st.booleans(),
    st.sets(st.integers(3, 254), max_size=9),
)
def test_every_right_handshake_is_understood(
    address: tuple[str, bytes], port: int, command: Command, rest: bytes, users: bool, methods: set[int]
) -> None:
    host, wire = address
    hello = bytes((5, len(methods) + 1, *methods, 2 if users else 0))
    if users:
        hello += b"\x01\x05alice\x0din wonderland"
    sent = hello + bytes((5, command, 0)) + wire + port.to_bytes(2, "big") + rest
    for pieces in ([sent], [sent[i : i + 1] for i in range(len(sent))]):
        said = say(pieces, users=users)
        assert said.request is not None
        assert not said.error
        assert (said.request.command, said.request.address.host, said.request.address.port) == (command, host, port)
        assert said.request.user == ("alice" if users else "")
        assert said.answers == (b"\x05\x02\x01\x00" if users else b"\x05\x00")
        assert said.rest == rest


@given(st.binary(max_size=600), st.booleans(), st.booleans(), st.lists(st.integers(0, 600), max_size=5))
@example(b"GET / HTTP/1.1\r\n\r\n", False, False, [])
@example(b"\x04\x01\x00\x16\x7f\x00\x00\x01\x00", False, False, [])  # SOCKS 4
def test_nonsense_is_an_error_or_waits_and_pieces_make_no_difference(
    noise: bytes, users: bool, started: bool, cuts: list[int]
) -> None:
    sent = (b"\x05\x01\x02\x01\x03bob\x01b" if users else HELLO) + noise if started else noise
    whole = say([sent], users=users)
    borders = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    for pieces in (
        [sent[i : i + 1] for i in range(len(sent))],
        [sent[start:end] for start, end in itertools.pairwise(borders)],
    ):
        parts = say(pieces, users=users)
        assert (parts.request, parts.rest, parts.error) == (whole.request, whole.rest, whole.error)
        assert parts.answers == whole.answers


@pytest.mark.parametrize(
    ("sent", "users", "answers", "why"),
    [
        (b"\x04", False, b"", "version 5, got 4"),
        (b"G", False, b"", "version 5, got 71"),
        (b"\x05\x00", False, b"\x05\xff", "does not offer"),
        (b"\x05\x01\x02", False, b"\x05\xff", "without authentication"),
        (b"\x05\x02\x00\x01", True, b"\x05\xff", "a user and password"),
        (b"\x05\x01\x02\x02", True, b"\x05\x02", "version 1"),
        (b"\x05\x01\x02\x01\x03bob\x01c", True, b"\x05\x02\x01\x01", "user 'bob'"),
        (b"\x05\x01\x02\x01\x03eve\x01b", True, b"\x05\x02\x01\x01", "user 'eve'"),
        (b"\x05\x01\x02\x01\x00\x00", True, b"\x05\x02\x01\x01", "user ''"),
        (HELLO + b"\x04", False, b"\x05\x00", "got 4"),
        (HELLO + b"\x05\x09\x00\x01", False, b"\x05\x00" + socks.reply(Reply.COMMAND_NOT_SUPPORTED), "number 9"),
        (HELLO + b"\x05\x01\x00\x02\x00", False, b"\x05\x00" + socks.reply(Reply.ADDRESS_NOT_SUPPORTED), "type 2"),
        (HELLO + b"\x05\x01\x00\x03\x00\x00\x16", False, b"\x05\x00" + socks.reply(Reply.GENERAL_FAILURE), "name"),
        (HELLO + b"\x05\x01\x00\x03\x02a\n\0\x16", False, b"\x05\x00" + socks.reply(Reply.GENERAL_FAILURE), "name"),
    ],
)
def test_what_is_not_understood_is_answered_and_explained(sent: bytes, users: bool, answers: bytes, why: str) -> None:
    said = say([sent], users=users)
    assert said.answers == answers
    assert why in said.error


def test_replies_as_the_rfc_writes_them() -> None:
    assert socks.reply(Reply.SUCCEEDED) == b"\x05\x00\x00\x01\0\0\0\0\0\0"
    assert socks.reply(Reply.SUCCEEDED, "::1", 258) == b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x01\x02"


# ── datagrams ──


@given(addresses, st.integers(0, 65535), st.binary(max_size=100))
def test_datagrams_keep_their_address(address: tuple[str, bytes], port: int, payload: bytes) -> None:
    sent = b"\0\0\0" + address[1] + port.to_bytes(2, "big") + payload
    target, unwrapped = socks.unwrap(sent)
    assert (target.host, target.port, unwrapped) == (address[0], port, payload)
    assert socks.wrap(target, payload) == sent


@given(st.binary(max_size=300))
@example(b"\0\0\x01" + NAME + b"a fragment")
@example(b"\0\0\0" + NAME[:-1])
@example(b"\0\0\0\x03\xff" + NAME)
def test_other_datagrams_are_errors(noise: bytes) -> None:
    try:
        target, payload = socks.unwrap(noise)
    except SocksError:
        return
    assert socks.wrap(target, payload) == noise


# ── what names mean ──

SERVICES = {"default/web", "shop/web", "default/edge-c", "edge-b/db"}
ENDPOINTS = {("shop/pods", "db-0"), ("default/pods", "db-0")}
IPS = {"10.96.0.7": "shop/web", "fd00::7": "default/web"}
NODES = {"edge-a", "edge-b", "edge-c", "ip-10-0-0-1.example.internal", "internal"}


def find(host: str) -> object:
    return destination.find(
        host, SERVICES.__contains__, lambda *one: one in ENDPOINTS, lambda ip: IPS.get(ip, ""), NODES
    )


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("edge-b", NodeTarget("edge-b", "127.0.0.1")),
        ("Edge-B.", NodeTarget("edge-b", "127.0.0.1")),
        ("edge-c", NodeTarget("edge-c", "127.0.0.1")),  # a service has that name, too, and longer ones
        ("edge-c.default", ServiceName("default/edge-c")),
        ("ip-10-0-0-1.example.internal", NodeTarget("ip-10-0-0-1.example.internal", "127.0.0.1")),
        ("db.ip-10-0-0-1.example.internal", NodeTarget("ip-10-0-0-1.example.internal", "db")),
        ("db.example.internal", NodeTarget("internal", "db.example")),
        ("10.0.0.5.edge-b", NodeTarget("edge-b", "10.0.0.5")),
        ("postgres.edge-b", NodeTarget("edge-b", "postgres")),
        ("db.edge-b", ServiceName("edge-b/db")),
        ("web", ServiceName("default/web")),
        ("web.shop", ServiceName("shop/web")),
        ("web.shop.svc", ServiceName("shop/web")),
        ("WEB.shop.svc.cluster.local.", ServiceName("shop/web")),
        ("web.default.svc.cluster.local", ServiceName("default/web")),
        ("db-0.pods.shop", EndpointName("shop/pods", "db-0")),
        ("DB-0.pods.shop.svc.cluster.local.", EndpointName("shop/pods", "db-0")),
        ("db-0.pods.default.svc", EndpointName("default/pods", "db-0")),
        ("db-0.pods", NodeTarget("pods", "db-0")),  # the namespace is not optional here
        ("10.96.0.7", ServiceName("shop/web")),
        ("::ffff:10.96.0.7", ServiceName("shop/web")),
        ("fd00::7", ServiceName("default/web")),
        ("edge-z", NodeTarget("edge-z", "127.0.0.1")),  # others may know it
        ("10.0.0.5.edge-z", NodeTarget("edge-z", "10.0.0.5")),
    ],
)
def test_what_a_name_means(host: str, found: object) -> None:
    assert find(host) == found


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", False),
        ("8.8.8.8", False),
        ("::1", False),
        ("web.nowhere.svc.cluster.local", True),
        ("web.nowhere.svc", True),
        ("db-1.pods.shop.svc", True),
        ("a..b", True),
        (".", True),
    ],
)
def test_what_no_name_may_mean(host: str, allowed: bool) -> None:
    with pytest.raises(DestinationError) as caught:
        find(host)
    assert caught.value.allowed is allowed


@given(st.text(max_size=60))
def test_any_name_means_something_or_is_an_error(host: str) -> None:
    try:
        found = find(host)
    except DestinationError:
        return
    assert isinstance(found, NodeTarget | ServiceName | EndpointName)


# ── passwords ──


def test_only_the_right_password_of_a_known_user() -> None:
    assert USERS.check(b"alice", b"in wonderland")
    for user, password in ((b"alice", b"b"), (b"bob", b""), (b"eve", b"b"), (b"eve", b""), (b"", b""), (b"\xff", b"b")):
        assert not USERS.check(user, password)
    assert not Credentials({}).check(b"", b"")


def test_a_file_of_passwords() -> None:
    assert credentials.parse("# staff\n\nalice:a:b \n bob:ü\n") == {"alice": "a:b ", "bob": "ü"}
    for text, why in (
        ("alice", "line 1: expected name:password"),
        ("alice:", "line 1"),
        ("a:b\n:b", "line 2"),
        ("a:" + "b" * 256, "line 1"),
        ("a:b\na:c", "line 2: the user a is named twice"),
    ):
        with pytest.raises(ValueError, match=why):
            credentials.parse(text)
