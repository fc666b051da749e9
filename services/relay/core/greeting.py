"""The first bytes on the public port decide what a connection is."""

from __future__ import annotations

from enum import Enum

from .messages import TOKEN_LENGTH

TLS_HANDSHAKE = 0x16
"""Content type of a TLS record that holds a ClientHello."""
LEG_MAGIC = b"CWL1"
GREETING_LENGTH = len(LEG_MAGIC) + TOKEN_LENGTH
"""Never read more than this before the kind is known: what follows a leg's token belongs to the other leg."""
LEG_READY = b"\x01"
"""The relay's answer on both legs once they are paired."""


class Kind(Enum):
    MORE = "more"
    CONTROL = "control"
    LEG = "leg"
    JUNK = "junk"


def classify(head: bytes) -> Kind:
    """What a connection is that began with `head` (at most GREETING_LENGTH bytes)."""
    if not head:
        return Kind.MORE
    if head[0] == TLS_HANDSHAKE:
        return Kind.CONTROL
    if not head.startswith(LEG_MAGIC[: len(head)]):
        return Kind.JUNK
    return Kind.LEG if len(head) >= GREETING_LENGTH else Kind.MORE


def token(head: bytes) -> bytes:
    """The token in a leg's complete greeting."""
    return head[len(LEG_MAGIC) : GREETING_LENGTH]
