"""What first bytes are, what a request says, and how it is refused: pure, over all ways to cut the bytes."""

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import http2, request
from services.proxy.core.request import PREFACE, Request, looks, speaks
from services.runtime.core.seldom import Seldom

GET = b"GET /a?b=c HTTP/1.1\r\nHost: web\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (GET, "http/1"),
        (b"M-SEARCH * HTTP/1.1\n", "http/1"),
        (b"PROPFIND http://x/ HTTP/1.0\r\nDepth: 1", "http/1"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n", "http/1"),
        (PREFACE, "http/2"),
        (PREFACE + b"\0\0\0\4\0\0\0\0\0", "http/2"),
        (b"EHLO example.com\r\n", "other"),
        (b"GET /\r\n", "other"),  # HTTP/0.9 died out
        (b"GET / HTTP/2.0\r\n", "other"),
        (b"get / HTTP/1.1\r\n", "other"),
        (b"PING\r\n", "other"),
        (b"*1\r\n$4\r\nPING\r\n", "other"),
        (b"\x16\x03\x01\x02\x00", "other"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "other"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "other"),  # PostgreSQL asks for TLS
        (b"A" * 25, "other"),
        (b"PRI * HTTP/2.0\r\n\r\nXX", "other"),
    ],
)
def test_recognised_however_the_bytes_are_cut(data: bytes, what: str) -> None:
    seen = [looks(data[:end]) for end in range(len(data) + 1)]
    assert seen[-1] == what
    assert set(seen) == {"", what}
    assert seen == sorted(seen)  # once it is known it stays so


@given(st.binary(max_size=60))
def test_any_bytes_are_something(data: bytes) -> None:
    first = looks(data)
    if first not in ("", "http/1", "http/2"):
        assert looks(data + b"x") == first == "other"


@pytest.mark.parametrize(
    ("name", "app", "answer"),
    [
        ("http", "", True), ("http-web", "", True), ("HTTP2-x", "", True), ("grpc-web-x", "", True), ("grpc", "", True),
        ("", "http", True), ("tcp", "kubernetes.io/h2c", True), ("x", "kubernetes.io/ws", True),
        ("tcp-http", "", False), ("https", "", False), ("mysql", "", False), ("http", "tcp", False),
        ("", "", None), ("main", "", None), ("httpx", "", None), ("http", "example.com/own", None),
    ],
)  # fmt: skip
def test_what_a_port_says(name: str, app: str, answer: bool | None) -> None:
    assert speaks(name, app) is answer


def test_what_a_request_says() -> None:
    own = Request(
        b"/p?a=1&user=J%C3%BCrgen&user=other",
        ((b"x-user", b"one"), (b"cookie", b'a=b; sid="17"; c'), (b"x-user", b"two")),
    )
    assert own.header("X-User") == "one, two"
    assert own.header("Other") == ""
    assert (own.cookie("sid"), own.cookie("a"), own.cookie("c"), own.cookie("id")) == ("17", "b", "", "")
    assert (own.parameter("user"), own.parameter("b")) == ("Jürgen", "")
    assert Request(b"http://[x/?user=1", ()).parameter("user") == ""
    assert Request(b"/?" + b"&" * 1000, ()).parameter("user") == ""


@given(st.text(max_size=2000), st.booleans())
def test_an_answer_is_one_to_a_client_of_http_1(why: str, head: bool) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="HEAD" if head else "GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(request.answer(403, "denied", why, head=head))
    response = client.next_event()
    assert isinstance(response, h11.Response) and response.status_code == 403
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.their_state is h11.MUST_CLOSE
    if not head:
        assert body.startswith(b"causeway: denied") and body.count(b"\n") == 1 and len(body) < 2100
        assert all(letter.isprintable() for letter in body.decode()[:-1])


# ── HTTP/2 ──


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 4) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


@pytest.mark.parametrize("between", [b"", frame(8, 0, b"\0\1\0\0"), frame(2, 1, bytes(5)) + frame(0xFA, 0, b"grease")])
def test_the_first_request_of_http_2_is_found_however_it_is_cut(between: bytes) -> None:
    data = PREFACE + frame(4, 0, bytes(12), flags=0) + between + frame(1, 13, b"\x82\x86") + frame(1, 15, b"\x82")
    seen = [http2.first_stream(data[:end]) for end in range(len(PREFACE), len(data) + 1)]
    assert seen == sorted(seen)
    assert set(seen) == {0, 13}


@pytest.mark.parametrize("spoilt", [frame(1, 1), frame(4, 0) + frame(1, 2), frame(4, 0) + b"\xff\xff\xff" + bytes(6)])
def test_what_is_no_http_2_after_all(spoilt: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        http2.first_stream(PREFACE + spoilt)


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4)])
@pytest.mark.parametrize("dressing", ["plain", "padded", "priority", "both"])
def test_the_block_of_the_first_request_is_put_together(cuts: tuple[int, ...], dressing: str) -> None:
    pieces = [b"abcdefgh"[start:end] for start, end in pairwise((0, *cuts, 8))]
    flags, first = (0x4 if len(pieces) == 1 else 0), pieces[0]
    if dressing in ("priority", "both"):
        flags, first = flags | 0x20, bytes(5) + first
    if dressing in ("padded", "both"):
        flags, first = flags | 0x8, b"\x03" + first + bytes(3)
    data = PREFACE + frame(4, 0, flags=0) + frame(8, 0, bytes(4)) + frame(1, 7, first, flags)
    for number, piece in enumerate(pieces[1:], start=2):
        data += frame(9, 7, piece, 4 if number == len(pieces) else 0)
    for end in range(len(data) + 1):
        request = http2.FirstRequest()
        request.receive(data[:end])
        assert request.block == (b"abcdefgh" if end == len(data) else None)
        request.receive(data[end:] + frame(1, 9, b"later"))
        assert (request.stream, request.block) == (7, b"abcdefgh")


@pytest.mark.parametrize(
    "spoilt",
    [
        frame(1, 1, b"\x09" + bytes(8), flags=0xC),  # nothing but padding, and more
        frame(1, 1, b"", flags=0x24),
        frame(9, 1, b"x"),
        frame(1, 1, b"x", flags=0) + frame(9, 3, b"x"),
        frame(1, 1, b"x", flags=0) + frame(0, 1, b"x"),
        frame(1, 1, b"x", flags=0) + frame(9, 1, b"", flags=0),
    ],
)
def test_headers_that_break_the_rules(spoilt: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        http2.FirstRequest().receive(PREFACE + frame(4, 0, flags=0) + spoilt)


@given(st.lists(st.binary(max_size=60), max_size=20), st.booleans())
def test_rubbish_is_a_request_or_none(pieces: list[bytes], framed: bool) -> None:
    """Never anything but ValueError, and whole as in pieces."""
    if framed:
        pieces = [frame(1 if number == 0 else 9, 1, one, one[0] if one else 0) for number, one in enumerate(pieces)]
    results = []
    for told in (pieces, [b"".join(pieces)]):
        request = http2.FirstRequest()
        request.receive(PREFACE + frame(4, 0, flags=0))
        try:
            for piece in told:
                request.receive(piece)
            results.append((request.stream, request.block))
        except ValueError:
            results.append((-1, None) if request.block is None else (request.stream, request.block))
    assert results[0] == results[1]


def test_a_request_of_http_2_is_as_one_of_http_1() -> None:
    fields = [(b":method", b"GET"), (b":path", b"/?q=1"), (b":authority", b"web:80"), (b"cookie", b"a=1"), (b"x", b"y")]
    found = Request.of_fields([*fields, (b"cookie", b"sid=7"), (b"host", b"other")])
    assert (found.target, found.header("Host"), found.header("X")) == (b"/?q=1", "web:80", "y")
    assert (found.header("cookie"), found.cookie("sid"), found.parameter("q")) == ("a=1; sid=7", "7", "1")


# ── seldom ──


def test_each_kind_is_told_once_in_a_while_and_never_too_many() -> None:
    seldom = Seldom(60.0, 3)
    assert [seldom.first("a", now) for now in (0.0, 1.0, 59.0, 60.0, 61.0, 120.0)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert [seldom.first(kind, 121.0) for kind in "bcde"] == [True, True, False, False]
    assert [seldom.first(kind, 180.0) for kind in "de"] == [True, False]


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 30)), max_size=200))
def test_seldom_keeps_its_bounds(events: list[tuple[int, float]]) -> None:
    seldom, now, told = Seldom(60.0, 5), 0.0, []
    for kind, pause in events:
        now += pause
        if seldom.first(kind, now):
            told.append((now, kind))
        recent = [one for at, one in told if now - at < 60.0]
        assert len(recent) == len(set(recent)) <= 5
