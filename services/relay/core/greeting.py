"""The first bytes on the public port decide what a connection is."""

from __future__ import annotations

from enum import Enum

from services.runtime.core import proof

from .messages import TOKEN_LENGTH

TLS_HANDSHAKE = 0x16
"""Content type of a TLS record that holds a ClientHello."""
LEG_MAGIC = b"CWL1"
GREETING_LENGTH = len(LEG_MAGIC) + TOKEN_LENGTH
"""Never read more than this before the kind is known: what follows a leg's token belongs to the other leg."""
PROOF_MAGIC = proof.MAGIC
"""A node that dials this one back, to tell whether it can be reached."""
PROOF_LENGTH = len(PROOF_MAGIC) + proof.TOKEN_LENGTH
LEG_READY = b"\x01"
"""The relay's answer on both legs once they are paired."""


class Kind(Enum):
    MORE = "more"
    CONTROL = "control"
    LEG = "leg"
    PROOF = "proof"
    JUNK = "junk"


def classify(head: bytes) -> Kind:
    """What a connection is that began with `head` (at most GREETING_LENGTH bytes)."""
    if not head:
        return Kind.MORE
    if head[0] == TLS_HANDSHAKE:
        return Kind.CONTROL
    if head.startswith(PROOF_MAGIC):
        return Kind.PROOF if len(head) >= PROOF_LENGTH else Kind.MORE
    if not head.startswith(LEG_MAGIC[: len(head)]):
        return Kind.MORE if PROOF_MAGIC.startswith(head) else Kind.JUNK
    return Kind.LEG if len(head) >= GREETING_LENGTH else Kind.MORE


def token(head: bytes) -> bytes:
    """The token in a leg's complete greeting."""
    return head[len(LEG_MAGIC) : GREETING_LENGTH]


def proof_token(head: bytes) -> bytes:
    """The token in the complete greeting of a proof."""
    return head[len(PROOF_MAGIC) : PROOF_LENGTH]
