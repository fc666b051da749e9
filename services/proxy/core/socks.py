"""SOCKS version 5, the server's side: RFC 1928, with user and password as in RFC 1929.

Bytes in, bytes out. `Handshake.receive` takes what came of a client, in whatever pieces, and returns what to answer;
once `request` is there, the handshake is over, and `rest` is what the client has sent beyond it.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

VERSION = 5  # RFC 1928, 3
AUTH_VERSION = 1  # RFC 1929, 2: of the exchange of user and password

# Methods of authentication: RFC 1928, 3.
NO_AUTHENTICATION, USER_PASSWORD, NO_METHOD = 0x00, 0x02, 0xFF

# Types of addresses: RFC 1928, 5.
IPV4, DOMAIN, IPV6 = 0x01, 0x03, 0x04


class Command(IntEnum):
    """What a client wants (RFC 1928, 4)."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03


class Reply(IntEnum):
    """How it was answered (RFC 1928, 6)."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_NOT_SUPPORTED = 0x08


class SocksError(ValueError):
    """The client did what the protocol, or this proxy, does not allow: send `answer`, then close."""

    def __init__(self, why: str, answer: bytes = b"") -> None:
        super().__init__(why)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port as the client named them. `host`: a name, or an IP literal in canonical form."""

    host: str
    port: int  # 0 to 65535
    wire: bytes  # how it was written, to be repeated towards the client

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Request:
    """The end of a handshake."""

    command: Command
    address: Address
    user: str  # "" without authentication


class Handshake:
    """Of one client. `check` judges user and password; without it nobody is asked for any."""

    def __init__(self, check: Callable[[bytes, bytes], bool] | None = None) -> None:
        self.request: Request | None = None
        self.rest = b""
        """Sent beyond the request: the first bytes for the target."""
        self._check = check
        self._buffer = bytearray()
        self._user = ""
        self._step: Callable[[], bytes | None] = self._methods

    def receive(self, data: bytes) -> bytes:
        """What to send now, perhaps nothing. Raises SocksError. Call it no more after either `request` or an error.

        At most one message is kept that is not complete: 513 bytes, the longest of RFC 1929.
        """
        self._buffer += data
        answers = b""
        while self.request is None:
            try:
                answer = self._step()
            except SocksError as error:
                error.answer = answers + error.answer
                raise
            if answer is None:
                return answers
            answers += answer
        self.rest = bytes(self._buffer)
        return answers

    def _methods(self) -> bytes | None:
        """VER NMETHODS METHODS → VER METHOD."""
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise SocksError(f"expected SOCKS version 5, got {buffer[0]}")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return None
        offered = buffer[2 : 2 + buffer[1]]
        del buffer[: 2 + buffer[1]]
        method = USER_PASSWORD if self._check else NO_AUTHENTICATION
        if method not in offered:
            missing = "a user and password" if self._check else "to be let in without authentication"
            raise SocksError(f"the client does not offer {missing}", bytes((VERSION, NO_METHOD)))
        self._step = self._authenticate if self._check else self._command
        return bytes((VERSION, method))

    def _authenticate(self) -> bytes | None:
        """VER ULEN UNAME PLEN PASSWD → VER STATUS."""
        buffer = self._buffer
        if buffer and buffer[0] != AUTH_VERSION:
            raise SocksError(f"expected version 1 of the user's authentication, got {buffer[0]}")
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return None
        split = 2 + buffer[1]
        end = split + 1 + buffer[split]
        if len(buffer) < end:
            return None
        user, password = bytes(buffer[2:split]), bytes(buffer[split + 1 : end])
        del buffer[:end]
        assert self._check is not None
        if not self._check(user, password):
            raise SocksError(f"wrong user or password (user {_shown(user)!r})", bytes((AUTH_VERSION, 1)))
        self._user = _shown(user)
        self._step = self._command
        return bytes((AUTH_VERSION, 0))

    def _command(self) -> bytes | None:
        """VER CMD RSV address → `request`; it is answered by `reply`, when the outcome is known."""
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise SocksError(f"expected a request of SOCKS version 5, got {buffer[0]}")
        if len(buffer) < 4:
            return None
        try:
            command = Command(buffer[1])
        except ValueError:
            raise SocksError(f"no command has the number {buffer[1]}", reply(Reply.COMMAND_NOT_SUPPORTED)) from None
        address = parse_address(buffer, 3)
        if address is None:
            return None
        del buffer[: 3 + len(address.wire)]
        self.request = Request(command, address, self._user)
        return b""


def parse_address(data: bytes | bytearray, start: int) -> Address | None:
    """The address that begins at `start`; None: it is not complete. Raises SocksError with a reply."""
    if len(data) <= start:
        return None
    kind = data[start]
    if kind not in (IPV4, DOMAIN, IPV6):
        raise SocksError(f"no address has the type {kind}", reply(Reply.ADDRESS_NOT_SUPPORTED))
    if kind == DOMAIN and len(data) < start + 2:
        return None
    begin, size = (start + 2, data[start + 1]) if kind == DOMAIN else (start + 1, 4 if kind == IPV4 else 16)
    end = begin + size + 2
    if len(data) < end:
        return None
    raw = bytes(data[begin : begin + size])
    port = int.from_bytes(data[end - 2 : end], "big")
    return Address(_name(raw) if kind == DOMAIN else str(ipaddress.ip_address(raw)), port, bytes(data[start:end]))


def reply(code: Reply, ip: str = "0.0.0.0", port: int = 0) -> bytes:
    """The answer to a request; ip:port is where the client is served, if that means anything to it."""
    address = ipaddress.ip_address(ip)
    kind = IPV4 if address.version == 4 else IPV6
    return bytes((VERSION, code, 0, kind)) + address.packed + port.to_bytes(2, "big")


def unwrap(datagram: bytes) -> tuple[Address, bytes]:
    """A datagram of a UDP association: whom it is for, and what (RFC 1928, 7). Raises SocksError: drop it."""
    if len(datagram) < 4 or datagram[:2] != b"\0\0":
        raise SocksError("expected two zero bytes, then the number of a fragment and an address")
    if datagram[2]:
        raise SocksError("fragments are not put together here")
    address = parse_address(datagram, 3)
    if address is None:
        raise SocksError("the address is cut off")
    return address, datagram[3 + len(address.wire) :]


def wrap(address: Address, payload: bytes) -> bytes:
    """A datagram for the client, from where it had sent its own to."""
    return b"\0\0\0" + address.wire + payload


def _name(raw: bytes) -> str:
    """A name, or an IP literal that was sent as one, as many clients do."""
    text = raw.decode("ascii", "replace")
    if not raw or not raw.isascii() or not text.isprintable() or " " in text:
        raise SocksError(f"got {raw[:100]!r}, expected the name of a host", reply(Reply.GENERAL_FAILURE))
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


def _shown(user: bytes) -> str:
    return user.decode("utf-8", "replace")
