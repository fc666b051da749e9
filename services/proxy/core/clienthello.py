"""The server name in the first bytes of a TLS connection (RFC 8446, 4.1.2; RFC 6066, 3), read without taking them."""

MAX_HELLO = 16 * 1024  # bytes of records that are waited for; post-quantum keys make 2 KiB

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME = 22, 1, 0


class NotTls(ValueError):
    """These bytes do not begin a TLS connection."""


class Incomplete(Exception):
    """The ClientHello goes on: look again once there are `needed` bytes."""

    def __init__(self, needed: int) -> None:
        self.needed = needed


def server_name(data: bytes) -> str:
    """The name asked for, in lower case; "" when none is. Raises Incomplete, or NotTls."""
    message = b""
    at = 0
    while True:
        if len(data) < at + 5:
            _check(data[at : at + 5])
            raise Incomplete(at + 5)
        _check(data[at : at + 5])
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 0 < length <= 16384 or at + 5 + length > MAX_HELLO:
            raise NotTls("a record of an impossible size")
        if len(data) < at + 5 + length:
            raise Incomplete(at + 5 + length)
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message[0] != _CLIENT_HELLO:
            raise NotTls("not a ClientHello")
        size = int.from_bytes(message[1:4], "big") if len(message) >= 4 else MAX_HELLO
        if size > MAX_HELLO:
            raise NotTls("a ClientHello of an impossible size")
        if len(message) >= 4 + size:
            break
    try:
        return _name(memoryview(message)[4 : 4 + int.from_bytes(message[1:4], "big")])
    except (IndexError, UnicodeDecodeError):
        raise NotTls("a ClientHello that is cut off") from None


def _check(head: bytes) -> None:
    if (head[:1] or b"\x16")[0] != _HANDSHAKE or (head[1:2] or b"\x03")[0] != 3:
        raise NotTls("not a TLS handshake")


def _name(hello: memoryview) -> str:
    at = 34  # version and random
    for size in (1, 2, 1):  # session id, cipher suites, compression methods
        at += size + _number(hello, at, size)
    end = at + 2 + _number(hello, at, 2)
    at += 2
    if end > len(hello):
        raise IndexError
    while at + 4 <= end:
        kind, length = _number(hello, at, 2), _number(hello, at + 2, 2)
        at += 4
        # A list of names, of which only one kind was ever defined.
        if kind == 0 and length >= 5 and hello[at + 2] == _SERVER_NAME:
            size = _number(hello, at + 3, 2)
            if size > length - 5 or at + 5 + size > end:
                raise IndexError
            return bytes(hello[at + 5 : at + 5 + size]).decode("ascii").lower().rstrip(".")
        at += length
    return ""


def _number(hello: memoryview, at: int, size: int) -> int:
    if at + size > len(hello):
        raise IndexError
    return int.from_bytes(hello[at : at + size], "big")
