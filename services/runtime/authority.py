"""The cluster CA: who issues node certificates, and what such a certificate says.

A node certificate holds a P-256 key, the URI `spiffe://<cluster>/node/<nodeName>` and the DNS name that
gRPC compares. P-256 because gRPC's BoringSSL does not offer Ed25519 certificates by default.
"""

import datetime
import functools
import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.runtime import address

# Certificates begin this long before they are made, so that a node whose clock is late accepts them. Seconds.
CLOCK_SKEW = 600

# A secret below this length is likelier a word than 128 random bits (24 characters of base64).
PSK_MIN_LENGTH = 24
PSK_MAX_BYTES = 4096
# SHA-256 of the PSK printed in EdgeMesh's example manifests: known to everybody, hence no secret.
PUBLISHED_PSK = "701f220bda0be8eae39eae133f343e41ed5b810be92db5efed3ada23613d61b1"

# Pairs of certificate and issuer whose signature is remembered; a node meets fewer others at a time.
MAX_JUDGED = 256

# P-256 group order (FIPS 186-4, D.1.2.3).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# "No well-defined end" (RFC 5280, 4.1.2.5); the PSK's CA must not depend on any node's clock.
_ALWAYS = (datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59))  # noqa: DTZ001


class AuthorityError(Exception):
    """A secret or CA file that cannot be used; one line that says what to do."""


@dataclass(frozen=True)
class Authority:
    """CA certificates that are trusted, and the key of the first where this process may issue."""

    certificates: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey | None = None

    def pem(self) -> bytes:
        """All trusted certificates."""
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in self.certificates)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether one of the trusted certificates signed this one."""
        return any(_signed(certificate, issuer) for issuer in self.certificates)

    def end(self, certificate: x509.Certificate) -> float:
        """Until when those that signed this one may vouch for it, in Unix seconds; 0 when none did."""
        signers = [issuer for issuer in self.certificates if _signed(certificate, issuer)]
        return max((issuer.not_valid_after_utc.timestamp() for issuer in signers), default=0.0)

    def issue(
        self, cluster: str, node_name: str, key: ec.EllipticCurvePublicKey, now: float, lifetime: float
    ) -> x509.Certificate:
        """A node certificate, valid from CLOCK_SKEW before `now` (Unix seconds) until `lifetime` seconds after."""
        assert self.key is not None, "issuing needs the CA key"
        issuer = self.certificates[0]
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, node_name[:64])  # ub-common-name of RFC 5280
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster)
        names = [
            x509.UniformResourceIdentifier(spiffe_id(cluster, node_name)),
            x509.DNSName(dns_name(cluster, node_name)),
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([organization, common_name]))
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(secrets.randbits(120) | 1 << 120)
            .not_valid_before(_time(now - CLOCK_SKEW))
            .not_valid_after(_time(now + lifetime))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256())


def spiffe_id(cluster: str, node_name: str) -> str:
    """The URI that says who a node is."""
    return f"spiffe://{cluster}/node/{node_name}"


def dns_name(cluster: str, node_name: str) -> str:
    """The DNS name in a node's certificate. Names too long for DNS (253, RFC 1035) are replaced by their hash."""
    name = f"{node_name}.node.{cluster}.causeway"
    if len(name) <= 253:
        return name
    return f"{hashlib.sha256(node_name.encode()).hexdigest()[:48]}.node.{cluster}.causeway"


def parse_spiffe_id(uri: str) -> tuple[str, str] | None:
    """(cluster, node name) of a node's URI; None when it is not one."""
    cluster, separator, node_name = uri.removeprefix("spiffe://").partition("/node/")
    if not uri.startswith("spiffe://") or not separator:
        return None
    if not address.is_cluster_name(cluster) or not address.is_node_name(node_name):
        return None
    return cluster, node_name


def signed_by(certificate: x509.Certificate, issuers: Iterable[x509.Certificate]) -> bool:
    """Whether one of the issuers signed this certificate."""
    return any(_signed(certificate, issuer) for issuer in issuers)


@functools.lru_cache(MAX_JUDGED)
def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether one signed the other: for these bytes the answer is the same for ever, and a signature takes 0.1 ms."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:
        return False  # hostile input: whatever fails means "not by this one"
    return True


def names(certificate: x509.Certificate) -> tuple[str, str] | None:
    """(cluster, node name) in a certificate; None when it names no node, or several."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return None
    # More than one identity is none (SPIFFE X509-SVID, section 2).
    return parse_spiffe_id(uris[0]) if len(uris) == 1 else None


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(cluster: str, now: float, lifetime: float) -> Authority:
    """A CA with a random key, for `causeway ca init`."""
    key = new_key()
    return Authority((_self_signed(key, cluster, _time(now - CLOCK_SKEW), _time(now + lifetime)),), key)


def from_psk(secret: bytes, cluster: str) -> Authority:
    """The CA that every holder of the PSK derives alike: same key, same subject, own self-signature."""
    # 48 bytes reduced modulo the order leave a bias of 2^-128 (FIPS 186-5, A.2.1).
    seed = HKDF(hashes.SHA256(), 48, salt=b"causeway", info=b"causeway-ca-v1").derive(secret)
    key = ec.derive_private_key(int.from_bytes(seed) % (_ORDER - 1) + 1, ec.SECP256R1())
    return Authority((_self_signed(key, cluster, *_ALWAYS),), key)


def from_psks(secrets: Sequence[bytes], cluster: str) -> Authority:
    """Issues under the first secret, and trusts what was issued under any of them."""
    issuers = [from_psk(secret, cluster) for secret in dict.fromkeys(secrets)]
    return Authority(tuple(certificate for issuer in issuers for certificate in issuer.certificates), issuers[0].key)


def read_psk(path: Path) -> bytes:
    """The secret in the file without surrounding blanks. AuthorityError tells how to make one."""
    advice = f"make one with `causeway ca psk > {path}` and give the same file to all nodes of the cluster"
    try:
        with path.open("rb") as file:
            secret = file.read(PSK_MAX_BYTES + 1)
    except FileNotFoundError:
        raise AuthorityError(f"{path}: there is no PSK; {advice}") from None
    except OSError as error:
        raise AuthorityError(f"{path}: the PSK cannot be read: {error.strerror}") from None
    if len(secret) > PSK_MAX_BYTES:
        raise AuthorityError(f"{path}: larger than {PSK_MAX_BYTES} bytes, which is no PSK; {advice}")
    secret = secret.strip()
    if not secret:
        raise AuthorityError(f"{path}: the PSK is empty; {advice}")
    if len(secret) < PSK_MIN_LENGTH or len(set(secret)) < 8:
        raise AuthorityError(
            f"{path}: the PSK is too easy to guess ({len(secret)} characters, at least {PSK_MIN_LENGTH} random ones "
            f"are needed); {advice}"
        )
    if hashlib.sha256(secret).hexdigest() == PUBLISHED_PSK:
        raise AuthorityError(f"{path}: this PSK is the example printed in EdgeMesh's manifests, hence public; {advice}")
    return secret


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """The PEM certificates in a file, at least one. AuthorityError otherwise."""
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except OSError as error:
        raise AuthorityError(f"{path}: the certificate cannot be read: {error.strerror}") from None
    except ValueError:
        raise AuthorityError(f"{path}: expected PEM certificates (-----BEGIN CERTIFICATE-----)") from None


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The unencrypted PEM key in a file. AuthorityError when it is none, or not P-256."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise AuthorityError(f"{path}: the key cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise AuthorityError(f"{path}: expected an unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthorityError(f"{path}: expected a P-256 key")
    return key


def read_revocation_list(path: Path) -> x509.CertificateRevocationList:
    """The PEM CRL in a file, whoever signed it. AuthorityError otherwise."""
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except OSError as error:
        raise AuthorityError(f"{path}: the revocation list cannot be read: {error.strerror}") from None
    except ValueError:
        raise AuthorityError(f"{path}: expected a PEM revocation list (-----BEGIN X509 CRL-----)") from None


def read_revocations(path: Path, authority: Authority) -> frozenset[int]:
    """Serial numbers in a CRL that one of the CA certificates signed. AuthorityError otherwise."""
    revocations = read_revocation_list(path)
    for certificate in authority.certificates:
        key = certificate.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and revocations.is_signature_valid(key):
            return frozenset(entry.serial_number for entry in revocations)
    raise AuthorityError(f"{path}: this revocation list was not signed by the cluster CA")


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS #8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _self_signed(
    key: ec.EllipticCurvePrivateKey, cluster: str, begin: datetime.datetime, end: datetime.datetime
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, "causeway cluster CA"),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        # One serial for all: OpenSSL looks issuers up by name and key identifier.
        .serial_number(int.from_bytes(identifier.digest[:15]) | 1 << 120)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        # Deterministic, so that all nodes make the same bytes.
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
