"""Keys of a session and its links: derived from the TLS exporter, used with AES-256-GCM.

The exporter (RFC 8446 §7.5) gives one master secret to both ends of the handshake; HKDF (RFC 5869) makes
all others from it. Nonces are the packet numbers, and every key seals each number at most once:
a record's number is its sequence, and sending it again sends the same ciphertext.
"""

import hashlib
import hmac
import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

EXPORTER_LABEL = b"EXPORTER-causeway-session-v1"
MASTER_SIZE = 32
NONCE_SIZE = 16
MAC_SIZE = 32
SESSION_ID_SIZE = 16
JOIN_SIZE = SESSION_ID_SIZE + 1 + NONCE_SIZE + MAC_SIZE
JOINED_SIZE = NONCE_SIZE + MAC_SIZE
FIRST_LINK = bytes(NONCE_SIZE)
"""Both nonces of the link over which the handshake itself ran."""


def _expand(master: bytes, info: bytes, size: int = 32) -> bytes:
    return HKDFExpand(algorithm=hashes.SHA256(), length=size, info=b"causeway " + info).derive(master)


class LinkCipher:
    """Seals our direction and opens the peer's, each under one key for the life of the link."""

    def __init__(self, key_out: bytes, key_in: bytes) -> None:
        self._seal = AESGCM(key_out).encrypt_into
        self._open = AESGCM(key_in).decrypt_into

    def seal(self, number: int, header: memoryview, plain: memoryview, out: memoryview) -> None:
        self._seal(number.to_bytes(12, "big"), plain, header, out)

    def open(self, epoch: int, number: int, header: memoryview, body: memoryview, out: memoryview) -> None:
        self._open(number.to_bytes(12, "big"), body, header, out)


class SessionCipher:
    """As LinkCipher for records, with a chain of keys per direction: each epoch's key follows from the last.

    The epoch in a header is one byte; a receiver keeps the current key and the one before (records that are
    sent again), and steps forward when a record of the next epoch proves to be authentic.
    """

    def __init__(self, secret_out: bytes, secret_in: bytes) -> None:
        self.epoch = 0
        self._out = secret_out
        self._seal = AESGCM(_expand(secret_out, b"key")).encrypt_into
        self._in = secret_in
        self._epoch_in = 0
        self._keys = {0: AESGCM(_expand(secret_in, b"key"))}

    def rekey(self) -> None:
        self._out = _expand(self._out, b"next")
        self.epoch = (self.epoch + 1) & 0xFF
        self._seal = AESGCM(_expand(self._out, b"key")).encrypt_into

    def seal(self, number: int, header: memoryview, plain: memoryview, out: memoryview) -> None:
        self._seal(number.to_bytes(12, "big"), plain, header, out)

    def open(self, epoch: int, number: int, header: memoryview, body: memoryview, out: memoryview) -> None:
        key = self._keys.get(epoch)
        if key is not None:
            key.decrypt_into(number.to_bytes(12, "big"), body, header, out)
            return
        following = (self._epoch_in + 1) & 0xFF
        if epoch != following:
            raise ValueError(f"epoch {epoch} where {self._epoch_in} or {following} was expected")
        secret = _expand(self._in, b"next")
        key = AESGCM(_expand(secret, b"key"))
        key.decrypt_into(number.to_bytes(12, "big"), body, header, out)
        self._in, self._keys = secret, {self._epoch_in: self._keys[self._epoch_in], following: key}
        self._epoch_in = following


class SessionKeys:
    """Everything that follows from one handshake. `initiator`: we were the TLS client."""

    def __init__(self, master: bytes, *, initiator: bool) -> None:
        self._master = master
        self.initiator = initiator
        self.session_id = _expand(master, b"session id", SESSION_ID_SIZE)
        self._join = _expand(master, b"join")

    def _pair(self, info: bytes) -> tuple[bytes, bytes]:
        ours, theirs = (b" i2r", b" r2i") if self.initiator else (b" r2i", b" i2r")
        return _expand(self._master, info + ours), _expand(self._master, info + theirs)

    def session_cipher(self) -> SessionCipher:
        return SessionCipher(*self._pair(b"records"))

    def link_cipher(self, dialler_nonce: bytes, other_nonce: bytes) -> LinkCipher:
        return LinkCipher(*self._pair(b"link" + dialler_nonce + other_nonce))

    def link_id(self, dialler_nonce: bytes, other_nonce: bytes) -> int:
        return int.from_bytes(_expand(self._master, b"link id" + dialler_nonce + other_nonce, 4), "big")

    def join_mac(self, text: bytes) -> bytes:
        return hmac.new(self._join, text, hashlib.sha256).digest()

    # JOIN: session id, kind of link, nonce, mac.  JOINED: nonce, mac over both nonces.

    def join(self, kind: int, nonce: bytes) -> bytes:
        """Body of JOIN. The role is under the MAC, so that a body cannot be reflected."""
        said = bytes([kind]) + nonce
        return self.session_id + said + self.join_mac(b"join" + bytes([self.initiator]) + said)

    def check_join(self, body: bytes) -> tuple[int, bytes] | None:
        """What kind of link the other side takes it for, and its nonce; None when the body was not made by the other end
        of this session."""
        said, mac = body[SESSION_ID_SIZE : JOIN_SIZE - MAC_SIZE], body[JOIN_SIZE - MAC_SIZE :]
        if not hmac.compare_digest(self.join_mac(b"join" + bytes([not self.initiator]) + said), mac):
            return None
        return said[0], said[1:]

    def joined(self, dialler_nonce: bytes, nonce: bytes) -> bytes:
        """Body of JOINED."""
        return nonce + self.join_mac(b"joined" + dialler_nonce + nonce)

    def check_joined(self, dialler_nonce: bytes, body: bytes) -> bytes | None:
        """The other nonce, or None."""
        nonce = body[:NONCE_SIZE]
        return (
            nonce if hmac.compare_digest(self.join_mac(b"joined" + dialler_nonce + nonce), body[NONCE_SIZE:]) else None
        )


def fresh_nonce() -> bytes:
    """16 random bytes."""
    return os.urandom(NONCE_SIZE)
