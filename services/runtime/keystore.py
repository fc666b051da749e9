"""The key and certificate of a node in psk mode: made on first start, kept on disk, made anew when they are due.

One file, so that what is in it always matches: the key, its certificate, and after them the CA certificates of every
PSK that was accepted when it was written. Those are public. They let a node say of another one that it still uses a PSK
that was given up here, instead of only that it is a stranger.

A disk that is full, worn out or read-only must not end a node that worked before, and a full one not even one that
starts for the first time: it goes on with a certificate that is kept in memory, until that can be written.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.runtime import authority, files
from services.runtime.authority import Authority, AuthorityError

MAX_RETIRED = 8
"""CA certificates of former PSKs that are remembered, 0.6 KiB each."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What passes by itself; other errors on the first start are a mistake in the configuration."""

_log = logging.getLogger("causeway.identity")


@dataclass(frozen=True)
class Credentials:
    """What a node shows and trusts at one time; replaced as a whole. retired: CA certificates of former PSKs."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    authority: Authority
    retired: tuple[x509.Certificate, ...] = ()

    def chain_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


class KeyStore:
    """`folder`/node.pem of one node. clock: Unix seconds."""

    def __init__(self, folder: Path, cluster: str, node_name: str, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._path = folder / "node.pem"
        self._names = (cluster, node_name)
        self._clock = clock
        self._unkept: Credentials | None = None
        self.problem = ""
        """Why what is in use is not on disk, in one line; empty: it is."""

    def stamp(self) -> object:
        """Changes whenever the file does."""
        return files.stamp(self._path)

    def credentials(self, trusted: Authority, lifetime: float) -> Credentials:
        """The stored ones if they were issued by the first of `trusted` and are not due; else new ones, for `lifetime`
        seconds. AuthorityError when they cannot be kept and there are none from before, unless the disk is just full.
        With a `problem`, calling it again tries to keep the same."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with files.locked(self._folder / "lock"):
                stored, retired = self._stored(trusted)
                if stored is None:
                    stored = self._in_memory(trusted) or self._issue(trusted, lifetime, retired)
                    self._unkept = stored
                    pem = authority.key_pem(stored.key) + stored.chain_pem() + trusted.pem() + Authority(retired).pem()
                    files.write_atomically(self._path, pem)
                self._unkept, self.problem = None, ""
                return stored
        except OSError as error:
            if not self._path.exists() and error.errno not in _FULL:
                raise AuthorityError(
                    f"{self._folder}: the node's key cannot be kept here: {error.strerror}; set stateDir to a folder "
                    "that can be written"
                ) from None
            stored, retired = self._stored(trusted)
            if stored is not None:
                return stored
            self._unkept = self._in_memory(trusted) or self._issue(trusted, lifetime, retired)
            problem = f"{self._path} cannot be written: {error.strerror}; the node's key is kept in memory only"
            if problem != self.problem:
                self.problem = problem
                _log.error(problem)
            return self._unkept

    def fresh(self, certificate: x509.Certificate) -> bool:
        """Whether less than 2/3 of its lifetime is over."""
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        issued = begin + authority.CLOCK_SKEW
        return begin <= self._clock() < issued + (end - issued) * 2 / 3

    def _issue(self, trusted: Authority, lifetime: float, retired: tuple[x509.Certificate, ...]) -> Credentials:
        key = authority.new_key()
        return Credentials(
            key, trusted.issue(*self._names, key.public_key(), self._clock(), lifetime), trusted, retired
        )

    def _in_memory(self, trusted: Authority) -> Credentials | None:
        """What could not be written the last time, if it is still of use."""
        kept = self._unkept
        if kept is None or kept.authority.pem() != trusted.pem() or not self.fresh(kept.certificate):
            return None
        return kept

    def _stored(self, trusted: Authority) -> tuple[Credentials | None, tuple[x509.Certificate, ...]]:
        """What is in the file if it is of use, and the CA certificates in it that are not trusted any more."""
        if not self._path.exists():
            return None, ()
        try:
            key = authority.read_key(self._path)
            certificate, *issuers = authority.read_certificates(self._path)
        except AuthorityError as error:
            _log.warning("stored certificate replaced", extra={"reason": str(error)})
            return None, ()
        retired = tuple(it for it in issuers if it not in trusted.certificates)[:MAX_RETIRED]
        usable = (
            certificate.public_key() == key.public_key()
            and authority.names(certificate) == self._names
            and authority.signed_by(certificate, trusted.certificates[:1])
            and self.fresh(certificate)
        )
        return (Credentials(key, certificate, trusted, retired) if usable else None), retired
