"""HAProxy in TCP mode, with its defaults: one plain hop, and two hops with TLS between them."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.process import Child, run
from bench.rig import PORTS, Address, NotRun, Rig, Roles

HEAD = """\
global
  maxconn {maxconn}
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
"""


class Haproxy(Rig):
    """client → haproxy → server"""

    name: ClassVar[str] = "haproxy"
    title: ClassVar[str] = "haproxy"

    def prepare(self) -> None:
        if not shutil.which("haproxy"):
            raise NotRun("haproxy is not installed")

    def open(self, servers: dict[str, Address]) -> dict[str, Address]:
        self._hop = self.start_hop("hop", f"{self.block}.1", servers)
        return {name: (f"{self.block}.1", PORTS[name]) for name in servers}

    def roles(self) -> Roles:
        return Roles(middle=[self._hop.pid])

    @property
    def max_streams(self) -> int:
        return super().max_streams // 2  # a connection takes two descriptors in one process

    def start_hop(
        self, name: str, host: str, servers: dict[str, Address], *, bind: str = "", server: str = ""
    ) -> Child:
        """One haproxy in the foreground that listens on `host`; `bind` and `server` are added to those lines."""
        text = HEAD.format(maxconn=min(self.max_streams, 20_000))
        for entry, (server_host, server_port) in servers.items():
            text += f"listen {entry}\n  bind {host}:{PORTS[entry]} {bind}\n"
            text += f"  server far {server_host}:{server_port} {server}\n"
        file = self.folder / f"{name}.cfg"
        file.write_text(text)
        run(["haproxy", "-c", "-q", "-f", str(file)])
        return self.spawn(["haproxy", "-db", "-f", str(file)], log=name)


class HaproxyTls(Haproxy):
    """client → haproxy ═ TLS ═ haproxy → server"""

    name: ClassVar[str] = "haproxy-tls"
    title: ClassVar[str] = "haproxy+TLS"

    def open(self, servers: dict[str, Address]) -> dict[str, Address]:
        authority, pair = make_certificates(self.folder)
        near, far = f"{self.block}.1", f"{self.block}.2"
        self._far = self.start_hop("far", far, servers, bind=f"ssl crt {pair}")
        between = {name: (far, PORTS[name]) for name in servers}
        self._near = self.start_hop(
            "near", near, between, server=f"ssl verify required ca-file {authority} verifyhost far.bench"
        )
        return {name: (near, PORTS[name]) for name in servers}

    def roles(self) -> Roles:
        return Roles(near=[self._near.pid], far=[self._far.pid])


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """A CA and a server certificate for far.bench, P-256, for one day: (CA file, certificate + key file)."""
    now = datetime.datetime.now(datetime.UTC)

    def issue(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(signer, hashes.SHA256())
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority, pair = folder / "ca.pem", folder / "far.pem"
    pem = serialization.Encoding.PEM
    authority.write_bytes(issue("ca.bench", ca_key, "ca.bench", ca_key, ca=True).public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair.write_bytes(issue("far.bench", key, "ca.bench", ca_key, ca=False).public_bytes(pem) + secret)
    pair.chmod(0o600)
    return authority, pair
