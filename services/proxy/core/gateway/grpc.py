"""What a gateway says itself to a client of gRPC, which looks for its status in the trailers only
(grpc/doc/PROTOCOL-HTTP2.md)."""

from urllib.parse import quote

from services.proxy.core.gateway.headers import Header

_NAME = "application/grpc"
# By grpc/doc/http-grpc-status-mapping.md; but a time that ran out here is known to be that.
_STATUS = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 4}
_UNKNOWN = 2
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def named(content_type: str) -> bool:
    """Whether a message is one of gRPC; gRPC-Web, which has no trailers, is another protocol."""
    word = content_type.partition(";")[0].strip().lower()
    return word == _NAME or word.startswith(f"{_NAME}+")


def refusal(status: int, text: str) -> list[Header]:
    """The headers of an answer without a body that says what `status` of HTTP does."""
    message = quote(text.strip(), safe=_PRINTABLE)
    return [
        (b"content-type", _NAME.encode()),
        (b"grpc-status", b"%d" % _STATUS.get(status, _UNKNOWN)),
        (b"grpc-message", message.encode()),
    ]
