"""NAT-PMP (RFC 6886) as bytes: asking a gateway for its address, and for a TCP port of it."""

import ipaddress
import struct
from dataclasses import dataclass

VERSION = 0
PORT = 5351
"""UDP port of the gateway, for PCP as well."""
ADDRESS, MAP_TCP = 0, 2
"""Opcodes; an answer has 128 more."""
SUCCESS, UNSUPPORTED_VERSION = 0, 1

_ANSWER = struct.Struct("!BBHI")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of either kind. `epoch`: seconds since the gateway forgot everything (section 3.6)."""

    opcode: int
    result: int
    epoch: int
    ip: str = ""
    internal_port: int = 0
    external_port: int = 0
    lifetime: int = 0
    """Seconds."""


def encode_address() -> bytes:
    """What is your external address?"""
    return bytes([VERSION, ADDRESS])


def encode_map(internal_port: int, external_port: int, lifetime: int) -> bytes:
    """Map a TCP port for `lifetime` seconds, 0: no longer. `external_port`: wish, 0: any."""
    return struct.pack("!BBHHHI", VERSION, MAP_TCP, 0, internal_port, external_port if lifetime else 0, lifetime)


def decode(data: bytes) -> Answer | None:
    """None when it is no answer that we could have asked for."""
    if len(data) < _ANSWER.size:
        return None
    version, opcode, result, epoch = _ANSWER.unpack_from(data)
    if version != VERSION or opcode < 128:
        return None
    opcode -= 128
    if result != SUCCESS:  # the rest may be missing
        return Answer(opcode, result, epoch)
    body = data[_ANSWER.size :]
    if opcode == ADDRESS and len(body) >= 4:
        return Answer(opcode, result, epoch, ip=str(ipaddress.IPv4Address(body[:4])))
    if opcode == MAP_TCP and len(body) >= 8:
        internal, external, lifetime = struct.unpack_from("!HHI", body)
        return Answer(opcode, result, epoch, internal_port=internal, external_port=external, lifetime=lifetime)
    return None
