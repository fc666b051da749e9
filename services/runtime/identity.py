"""Who this node is, and whether others are who they say.

A peer is judged by us, not by the TLS library, so that a refusal has a reason a person can act on, and
both sides can be told. The decision: a certificate signed by the cluster CA, within its time, not revoked,
whose URI names the cluster and the node.
"""

import datetime
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.runtime import authority, files
from services.runtime.authority import Authority, AuthorityError
from services.runtime.config import Config
from services.runtime.keystore import Credentials, KeyStore

if TYPE_CHECKING:
    import grpc

# A certificate of ours takes 0.6 KiB; nobody makes us parse more than this.
MAX_CERTIFICATE_BYTES = 16384

_NEW_CA = "make a new one with `causeway ca init`, and issue new certificates"

IdentityError = AuthorityError
_log = logging.getLogger("causeway.identity")


class Rejection(Exception):
    """A peer that is not accepted. reason: one of the words in the wire's Reject; message: one line."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Identity:
    """The node's key and certificate, and its judgement of others.

    generation: grows with every change of the credentials; a gRPC channel keeps those it was made with.
    clock: Unix seconds.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        tunnel = config.modules.edge_tunnel
        self.node_name = config.node_name
        self.cluster = config.cluster
        self.generation = 0
        self.lifetime = 0.0
        self._secrets: tuple[Path, ...] = ()
        self._ca = tunnel.ca
        self._store = KeyStore(config.state_dir / "identity", config.cluster, config.node_name, clock)
        self._clock = clock
        self._stamps: object = None
        self._revoked: frozenset[int] = frozenset()
        self._revocation_stamp: object = None
        self._revocation_problem = ""
        self._crl_file = tunnel.ca.crl_file if tunnel.ca.enable else None
        self._complaint = ""
        self.credentials: Credentials
        self.certificate_der: bytes
        self._settle(config)

    @classmethod
    def load(cls, config: Config, clock: Callable[[], float] = time.time) -> "Identity":
        """Reads key and certificate; in psk mode makes them on first start. IdentityError in one line."""
        identity = cls(config, clock)
        identity._adopt(identity._read())
        if identity._crl_file is not None:
            # Without its list a node would let in whom it is there to keep out; later the one read last stays.
            identity._revoked = authority.read_revocations(identity._crl_file, identity.credentials.authority)
            identity._revocation_stamp = files.stamp(identity._crl_file)
        return identity

    def reconfigure(self, config: Config) -> None:
        """Takes over other secrets, or another lifetime. IdentityError when that cannot be; all then stays as it was.

        A secret is replaced in three steps, each on all nodes before the next, and at every moment each of two nodes
        accepts what the other shows: the new one is accepted, the new one is the first, the old one goes.
        """
        former = self._secrets, self.lifetime
        self._settle(config)
        try:
            credentials = self._read()
        except IdentityError:
            self._secrets, self.lifetime = former
            raise
        if not self._as_before(credentials):
            self._adopt(credentials)

    def refresh(self) -> bool:
        """Renews at 2/3 of the lifetime, and takes over what another service or a person renewed.

        True when the credentials changed. Keeps the old ones, and logs why once, where new ones are unusable.
        """
        self._revocations()
        settled = not self._store.problem and self._stamps == self._stamp()
        if settled and self._store.fresh(self.credentials.certificate):
            return False
        try:
            credentials = self._read()
        except IdentityError as error:
            self._complain("credentials not renewed, the old ones stay", str(error))
            return False
        if self._as_before(credentials):
            self._stamps = self._stamp()
            if self._ca.enable:  # only a person can renew it
                end = _utc(_validity(credentials.certificate)[1])
                advice = f"it ends at {end}; issue one with `causeway ca issue {self.node_name}`"
                self._complain("the certificate should be renewed", advice)
            return False
        self._adopt(credentials)
        return True

    @property
    def warnings(self) -> list[str]:
        """What a person should know, one line each."""
        return [problem for problem in (self._store.problem, self._revocation_problem) if problem]

    # Judging others

    def judge(self, certificate_der: bytes | None, expected_node: str = "") -> str:
        """The node name in an acceptable certificate. Raises Rejection.

        Proves nothing about possession of the key: that is the TLS handshake's or a signature's matter.
        """
        return self._examine(certificate_der, expected_node)[0]

    def sign(self, data: bytes) -> bytes:
        """ECDSA P-256 with SHA-256, DER."""
        return self.credentials.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def verify(self, certificate_der: bytes, data: bytes, signature: bytes) -> str:
        """Judges the certificate, checks the signature over `data`, returns the node name. Raises Rejection
        (for the signature with the reason "bad-signature")."""
        node_name, key = self._examine(certificate_der, "")
        try:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise Rejection("bad-signature", f"the signature was not made by the key of {node_name}") from None
        return node_name

    def caller(self, auth_context: Mapping[str, Iterable[bytes]]) -> str:
        """The node that calls, from a gRPC servicer's `context.auth_context()`. Raises Rejection."""
        pem = next(iter(auth_context.get("x509_pem_cert", ())), b"")
        try:
            der = ssl.PEM_cert_to_DER_cert(pem.decode()) if pem else None
        except ValueError:
            raise Rejection("bad-certificate", "the certificate of the caller is not readable") from None
        return self.judge(der)

    # For gRPC

    def server_credentials(self) -> "grpc.ServerCredentials":
        """Mutual TLS; each handshake uses the credentials of its time."""
        import grpc

        def configuration() -> grpc.ServerCertificateConfiguration:
            current = self.credentials
            pair = (authority.key_pem(current.key), current.chain_pem())
            return grpc.ssl_server_certificate_configuration([pair], root_certificates=current.authority.pem())

        served = self.generation

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            if served == self.generation:
                return None  # means: as before
            served = self.generation
            return configuration()

        return grpc.dynamic_ssl_server_credentials(configuration(), fetch, require_client_authentication=True)  # type: ignore[arg-type]

    def channel_credentials(self) -> "grpc.ChannelCredentials":
        """For channels to other nodes; make a new channel when `generation` has changed."""
        import grpc

        current = self.credentials
        return grpc.ssl_channel_credentials(
            current.authority.pem(), authority.key_pem(current.key), current.chain_pem()
        )

    def target_name(self, node_name: str) -> str:
        """Value of `grpc.ssl_target_name_override` that makes gRPC accept this node only."""
        return authority.dns_name(self.cluster, node_name)

    # Inside

    def _examine(self, der: bytes | None, expected: str) -> tuple[str, ec.EllipticCurvePublicKey]:
        if not der:
            raise Rejection("no-certificate", f"no certificate was presented to {self.node_name}, which requires one")
        certificate, cluster, name, key = _parse(der)
        if cluster != self.cluster:
            raise Rejection(
                "wrong-cluster",
                f"{name} belongs to the cluster {cluster!r} and {self.node_name} to {self.cluster!r}; "
                "set the same `cluster` on both, or remove one from the other's configuration",
            )
        if not self.credentials.authority.issued(certificate):
            raise self._not_ours(name, certificate)
        now = self._clock()
        begin, end = _validity(certificate)
        if now < begin:
            raise Rejection(
                "certificate-not-yet-valid",
                f"the certificate of {name} is valid from {_utc(begin)} but the clock of {self.node_name} says "
                f"{_utc(now)} (a difference of {authority.CLOCK_SKEW // 60} min is allowed for already); set the clock "
                "that is wrong",
            )
        if now > end:
            raise Rejection(
                "certificate-expired",
                f"the certificate of {name} expired at {_utc(end)} and the clock of {self.node_name} says {_utc(now)}; "
                f"{'set the clock that is wrong' if self._secrets else 'issue a new one with `causeway ca issue`'}",
            )
        end = self.credentials.authority.end(certificate)
        if now > end:
            raise Rejection(
                "certificate-expired",
                f"the cluster CA that issued the certificate of {name} expired at {_utc(end)} and the clock of "
                f"{self.node_name} says {_utc(now)}; {_NEW_CA}",
            )
        if certificate.serial_number in self._revocations():
            raise Rejection(
                "revoked",
                f"the certificate of {name} was revoked (serial {certificate.serial_number:x}); issue a new one",
            )
        if expected and name != expected:
            raise Rejection(
                "name-mismatch",
                f"expected {expected}, but the certificate says {name}; correct the address of {expected}, or the name",
            )
        return name, key

    def _not_ours(self, name: str, certificate: x509.Certificate) -> Rejection:
        if self._secrets and authority.signed_by(certificate, self.credentials.retired):
            return Rejection(
                "wrong-psk",
                f"{name} still uses a PSK that was replaced, and that {self.node_name} does not accept any more; "
                f"put the present secret into the PSK file of {name}",
            )
        if self._secrets:
            return Rejection(
                "wrong-psk",
                f"{name} and {self.node_name} do not have the same PSK; put the same secret into the PSK file of both "
                "(if it was replaced lately, one of the two has not got the new one)",
            )
        return Rejection(
            "bad-certificate",
            f"the certificate of {name} was not issued by the cluster CA that {self.node_name} trusts; "
            "issue it with `causeway ca issue`, or give both the same caFile",
        )

    def _revocations(self) -> frozenset[int]:
        stamp = files.stamp(self._crl_file)
        if self._crl_file is not None and stamp != self._revocation_stamp:
            self._revocation_stamp = stamp
            try:
                self._revoked = authority.read_revocations(self._crl_file, self.credentials.authority)
                self._revocation_problem = ""
            except AuthorityError as error:
                self._revocation_problem = f"{error}; the list that was read before stays in force"
                _log.error("revocation list not reread, the old one stays", extra={"error": str(error)})
        return self._revoked

    def _complain(self, message: str, error: str) -> None:
        if error != self._complaint:
            self._complaint = error
            _log.error(message, extra={"error": error})

    def _as_before(self, credentials: Credentials) -> bool:
        old = self.credentials
        return credentials.certificate == old.certificate and credentials.authority.pem() == old.authority.pem()

    def _settle(self, config: Config) -> None:
        psk = config.modules.edge_tunnel.psk
        self._secrets = () if self._ca.enable else (psk.path, *psk.accept_paths)
        self.lifetime = float(psk.certificate_lifetime_seconds)

    def _adopt(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.certificate_der = credentials.certificate.public_bytes(serialization.Encoding.DER)
        self.generation += 1
        self._stamps = self._stamp()
        self._complaint = ""

    def _stamp(self) -> object:
        if self._secrets:
            return *map(files.stamp, self._secrets), self._store.stamp()
        return tuple(files.stamp(p) for p in (self._ca.ca_file, self._ca.cert_file, self._ca.key_file))

    def _read(self) -> Credentials:
        if not self._secrets:
            return self._read_ca()
        trusted = authority.from_psks([authority.read_psk(path) for path in self._secrets], self.cluster)
        return self._store.credentials(trusted, self.lifetime)

    def _read_ca(self) -> Credentials:
        trusted = Authority(authority.read_certificates(self._ca.ca_file))
        certificate = authority.read_certificates(self._ca.cert_file)[0]
        key = authority.read_key(self._ca.key_file)
        file = self._ca.cert_file
        advice = f"issue one with `causeway ca issue {self.node_name}`"
        if certificate.public_key() != key.public_key():
            raise IdentityError(f"{file}: does not belong to the key in {self._ca.key_file}; {advice}")
        names = authority.names(certificate)
        if names != (self.cluster, self.node_name):
            says = "no node at all" if names is None else f"node {names[1]} of cluster {names[0]}"
            raise IdentityError(
                f"{file}: is for {says}, expected node {self.node_name} of cluster {self.cluster}; {advice}, or correct "
                "nodeName and cluster"
            )
        if not trusted.issued(certificate):
            raise IdentityError(f"{file}: was not issued by the CA in {self._ca.ca_file}; {advice}")
        if self._clock() > _validity(certificate)[1]:
            raise IdentityError(f"{file}: expired at {_utc(_validity(certificate)[1])}; {advice}")
        if self._clock() > trusted.end(certificate):
            raise IdentityError(f"{self._ca.ca_file}: this CA expired at {_utc(trusted.end(certificate))}; {_NEW_CA}")
        return Credentials(key, certificate, trusted)


def _parse(der: bytes) -> tuple[x509.Certificate, str, str, ec.EllipticCurvePublicKey]:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise Rejection(
            "bad-certificate", f"a certificate of {len(der)} bytes; at most {MAX_CERTIFICATE_BYTES} are read"
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = authority.names(certificate)
        key = certificate.public_key()
        _validity(certificate)
    except Exception as error:
        # Whatever a parser raises on hostile bytes: the certificate is bad, and we go on.
        raise Rejection("bad-certificate", f"not a certificate that can be read: {error}") from None
    if names is None:
        raise Rejection("bad-certificate", "a certificate that names no node (one URI spiffe://CLUSTER/node/NAME)")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Rejection("bad-certificate", f"the certificate of {names[1]} has no P-256 key")
    return certificate, names[0], names[1], key


def _validity(certificate: x509.Certificate) -> tuple[float, float]:
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
