"""PCP (RFC 6887) as bytes: the opcodes MAP, for a TCP port, and ANNOUNCE, for the gateway's epoch."""

import ipaddress
import struct
from dataclasses import dataclass

VERSION = 2
ANNOUNCE, MAP = 0, 1
"""Opcodes; an answer has the highest bit set."""
SUCCESS = 0
TCP = 6
"""Protocol number (IANA)."""
NONCE_LENGTH = 12

_HEADER = struct.Struct("!BBBBII12x")  # version, opcode, reserved, result, lifetime, epoch
_MAP = struct.Struct("!12sB3xHH16s")  # nonce, protocol, internal and external port, external address


@dataclass(frozen=True, slots=True)
class Answer:
    """`epoch`: seconds since the gateway forgot everything (section 8.5). `lifetime`: seconds; of an error: how long
    it will last."""

    opcode: int
    result: int
    lifetime: int
    epoch: int
    nonce: bytes = b""
    internal_port: int = 0
    external_port: int = 0
    ip: str = ""


def encode_announce(client: str) -> bytes:
    """Asks for nothing but an answer. `client`: our IP."""
    return struct.pack("!BBHI", VERSION, ANNOUNCE, 0, 0) + _sixteen(client)


def encode_map(client: str, nonce: bytes, internal_port: int, external: tuple[str, int], lifetime: int) -> bytes:
    """Map a TCP port for `lifetime` seconds, 0: no longer. The `nonce` proves later that the mapping is ours.
    `external`: wish, "0.0.0.0" and 0: any."""
    head = struct.pack("!BBHI", VERSION, MAP, 0, lifetime) + _sixteen(client)
    return head + _MAP.pack(nonce, TCP, internal_port, external[1], _sixteen(external[0]))


def decode(data: bytes) -> Answer | None:
    """None when it is no answer that we could have asked for."""
    if len(data) < _HEADER.size:
        return None
    version, opcode, _, result, lifetime, epoch = _HEADER.unpack_from(data)
    if version != VERSION or opcode < 128:
        return None
    opcode -= 128
    if opcode == ANNOUNCE or result != SUCCESS:
        nonce = data[_HEADER.size :][:NONCE_LENGTH] if opcode == MAP else b""
        return Answer(opcode, result, lifetime, epoch, nonce)
    if opcode != MAP or len(data) < _HEADER.size + _MAP.size:
        return None
    nonce, protocol, internal, external, address = _MAP.unpack_from(data, _HEADER.size)
    if protocol != TCP:
        return None
    ip = ipaddress.IPv6Address(address)
    return Answer(opcode, result, lifetime, epoch, nonce, internal, external, str(ip.ipv4_mapped or ip))


def _sixteen(ip: str) -> bytes:
    """An address as PCP writes it: IPv4 inside IPv6 (section 5)."""
    address = ipaddress.ip_address(ip)
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
