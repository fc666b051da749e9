"""What the gateway decides about HTTP/2 and gRPC without any IO."""

import pytest

from services.proxy.core.gateway import grpc
from services.proxy.core.gateway.headers import Head, framing, pseudo
from services.proxy.core.request import speaks_2


@pytest.mark.parametrize(
    ("name", "app", "answer"),
    [
        ("grpc", "", True),
        ("grpc-web", "", True),
        ("grpc-api", "", True),
        ("http2-x", "", True),
        ("h2c", "", True),
        ("x", "kubernetes.io/h2c", True),
        ("x", "GRPC", True),
        ("http", "", False),
        ("http-grpc", "", False),
        ("grpcx", "", False),
        ("grpc", "http", False),
        ("", "", False),
    ],
)
def test_which_ports_are_asked_in_http_2(name: str, app: str, answer: bool) -> None:
    assert speaks_2(name, app) is answer


@pytest.mark.parametrize(
    ("content_type", "answer"),
    [("application/grpc", True), ("Application/gRPC+proto; x", True), ("application/grpc-web", False), ("", False)],
)
def test_what_is_grpc(content_type: str, answer: bool) -> None:
    assert grpc.named(content_type) is answer


def test_a_refusal_is_a_status_with_a_message_that_may_be_sent() -> None:
    told = dict(grpc.refusal(503, "100% of 'x'\nis out: \xe9\n"))
    assert told[b"grpc-status"] == b"14"
    assert told[b"grpc-message"] == b"100%25 of 'x'%0Ais out: %C3%A9"
    assert [dict(grpc.refusal(status, ""))[b"grpc-status"] for status in (404, 504, 418)] == [b"12", b"4", b"2"]


def test_a_head_in_either_protocol() -> None:
    head = Head.of([(b"te", b"trailers, deflate"), (b"x", b"y")])
    fields = pseudo(b"POST", b"/p", [(b"host", b"a.test"), (b"x", b"y")], head)
    assert fields[:4] == [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/p"), (b":authority", b"a.test")]
    assert fields[4:] == [(b"x", b"y"), (b"te", b"trailers")]
    assert framing(head, has_body=True) == [(b"transfer-encoding", b"chunked")]
    assert framing(Head.of([(b"content-length", b"3")]), has_body=True) == []
