"""`causeway ca`: certificates from an authority of your own, instead of a PSK; and new PSKs."""

import contextlib
import datetime
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from causeway import options
from services.runtime import address, authority, files
from services.runtime.authority import Authority, AuthorityError

_DAY = 86400.0
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_HERE: dict[str, Any] = {"default": Path("ca"), "show_default": True, "type": _FOLDER, "metavar": "DIR"}


@click.group(short_help="Make and revoke node certificates; make a PSK.")
def ca() -> None:
    """Make and revoke node certificates; make a PSK.

    A cluster needs one of two things: a PSK that all its nodes hold (`causeway ca psk > psk`; whoever has it
    can speak for any node), or an authority whose key stays in one place:

    \b
      causeway ca init --cluster default --out ca     once, on a machine you trust
      causeway ca issue edge-a --ca ca --out edge-a   for each node; copy the folder to it
      causeway ca revoke edge-a --ca ca               then copy ca/ca.crl to all nodes

    and in each node's configuration

    \b
      modules:
        edgeTunnel:
          ca: {enable: true, caFile: ca.crt, certFile: node.crt, keyFile: node.key, crlFile: ca.crl}
    """


@ca.command(short_help="Make an authority.")
@click.option("--cluster", default="default", show_default=True, help="Name of the cluster, as in the configuration.")
@click.option("--out", help="Folder to make: ca.crt, ca.key (keep it secret), ca.crl, issued/.", **_HERE)
@click.option("--days", default=3650, show_default=True, type=click.IntRange(1, 36500), help="Lifetime in days.")
def init(cluster: str, out: Path, days: int) -> None:
    """Make an authority for a cluster.

    \b
    Example:
      causeway ca init --cluster default --out ca
    """
    if not address.is_cluster_name(cluster):
        raise click.ClickException(f"--cluster: found {cluster!r}; expected lower-case letters, digits and '-', ≤ 63")
    if (out / "ca.key").exists():
        raise click.ClickException(f"{out / 'ca.key'} exists; choose another folder with --out")
    with _told():
        made = authority.new_authority(cluster, time.time(), days * _DAY)
        assert made.key is not None
        out.mkdir(parents=True, exist_ok=True)
        (out / "issued").mkdir(exist_ok=True)
        files.write_atomically(out / "ca.key", authority.key_pem(made.key))
        files.write_atomically(out / "ca.crt", made.pem(), 0o644)
        _write_revocations(out, made, {})
    click.echo(f"{out / 'ca.crt'}: authority of the cluster {cluster}, {days} days; {out / 'ca.key'} is its secret")


@ca.command(short_help="Issue the certificate of a node.")
@click.argument("node")
@click.option("--ca", "folder", help="Folder of the authority.", **_HERE)
@click.option("--out", type=_FOLDER, metavar="DIR", help="Folder to write [default: the node's name].")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 36500), help="Lifetime in days.")
def issue(node: str, folder: Path, out: Path | None, days: int) -> None:
    """Issue the certificate of NODE: node.crt, node.key, ca.crt and ca.crl, to be copied to that node.

    A key that is there already is kept, so this also renews; the running node takes the new certificate over.

    \b
    Example:
      causeway ca issue edge-a --ca ca --out edge-a && scp edge-a/* edge-a:/etc/causeway/
    """
    node = node.lower()
    if not address.is_node_name(node):
        raise click.ClickException(f"found {node!r}; expected a node name: letters, digits, '-' and '.', ≤ 253")
    out = out or Path(node)
    with _told(), _locked(folder):
        trusted, cluster = _open(folder)
        now = time.time()
        end = trusted.certificates[0].not_valid_after_utc
        if end.timestamp() <= now:
            raise click.ClickException(f"{folder / 'ca.crt'}: this authority ended at {end:%Y-%m-%d}; make a new one")
        # Nobody accepts a certificate after the end of its authority.
        lifetime = min(days * _DAY, end.timestamp() - now)
        key_file = out / "node.key"
        key = authority.read_key(key_file) if key_file.exists() else authority.new_key()
        certificate = trusted.issue(cluster, node, key.public_key(), now, lifetime)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        out.mkdir(parents=True, exist_ok=True)
        # The authority's own note comes first: what was handed out must be revocable.
        files.write_atomically(folder / "issued" / f"{certificate.serial_number:x}.crt", pem, 0o644)
        files.write_atomically(key_file, authority.key_pem(key))
        files.write_atomically(out / "node.crt", pem, 0o644)
        files.write_atomically(out / "ca.crt", (folder / "ca.crt").read_bytes(), 0o644)
        files.write_atomically(out / "ca.crl", (folder / "ca.crl").read_bytes(), 0o644)
    until = f"{days} days" if lifetime == days * _DAY else f"until {end:%Y-%m-%d}, when the authority itself ends"
    click.echo(f"{out / 'node.crt'}: node {node} of the cluster {cluster}, {until}")


@ca.command(short_help="Revoke certificates.")
@click.argument("what", metavar="NODE|FILE")
@click.option("--ca", "folder", help="Folder of the authority.", **_HERE)
def revoke(what: str, folder: Path) -> None:
    """Revoke all certificates issued to NODE, or the one in FILE, and write ca.crl anew.

    Copy ca.crl to all nodes (crlFile); they reread it when it changes.

    \b
    Examples:
      causeway ca revoke edge-a
      causeway ca revoke old/node.crt
    """
    with _told(), _locked(folder):
        trusted, _ = _open(folder)
        if Path(what).is_file():
            chosen = list(authority.read_certificates(Path(what)))
            strange = [c for c in chosen if not trusted.issued(c)]
            if strange:
                raise click.ClickException(f"{what}: was not issued by the authority in {folder}")
        else:
            issued = [authority.read_certificates(path)[0] for path in sorted((folder / "issued").glob("*.crt"))]
            chosen = [c for c in issued if _node(c) == what.lower()]
            if not chosen:
                known = ", ".join(sorted({_node(c) for c in issued})) or "none yet"
                raise click.ClickException(f"{what}: no certificate was issued to this node (issued to: {known})")
        revoked = _revoked(folder)
        now = datetime.datetime.now(datetime.UTC)
        fresh = [c for c in chosen if c.serial_number not in revoked]
        _write_revocations(folder, trusted, revoked | {c.serial_number: now for c in fresh})
    click.echo(
        f"{folder / 'ca.crl'}: {len(fresh)} revoked now, {len(revoked) + len(fresh)} in all; copy it to all nodes"
    )


@ca.command(short_help="Say what a certificate or revocation list holds.")
@click.argument("file", type=_FILE)
@options.output
def show(file: Path, output: str) -> None:
    """Say what a certificate or revocation list holds.

    \b
    Examples:
      causeway ca show edge-a/node.crt
      causeway ca show ca/ca.crl -o json
    """
    with _told():
        described = _describe(file)
    if output == "json":
        click.echo(json.dumps(described, indent=2))
        return
    for key, value in described.items():
        click.echo(f"{key + ':':<14} {', '.join(value) if isinstance(value, list) else value}")


@ca.command(short_help="Print a new PSK.")
def psk() -> None:
    """Print a new PSK: 32 random bytes. Give the same one to all nodes of a cluster, and keep it secret.

    \b
    Example:
      causeway ca psk > psk && chmod 600 psk
    """
    click.echo(secrets.token_urlsafe(32))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Failures that the user can do something about, as one line."""
    try:
        yield
    except (AuthorityError, ValueError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'files'}: {error.strerror or error}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if not (folder / "ca.key").exists():
        raise click.ClickException(
            f"{folder}: there is no authority here; make one with `causeway ca init --out {folder}`"
        )
    with files.locked(folder / ".lock"):
        yield


def _open(folder: Path) -> tuple[Authority, str]:
    trusted = Authority(authority.read_certificates(folder / "ca.crt"), authority.read_key(folder / "ca.key"))
    names = trusted.certificates[0].subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    if not names or not address.is_cluster_name(str(names[0].value)):
        raise AuthorityError(f"{folder / 'ca.crt'}: names no cluster; was it made by `causeway ca init`?")
    return trusted, str(names[0].value)


def _node(certificate: x509.Certificate) -> str:
    names = authority.names(certificate)
    return names[1] if names else ""


def _revoked(folder: Path) -> dict[int, datetime.datetime]:
    listed = authority.read_revocation_list(folder / "ca.crl")
    return {entry.serial_number: entry.revocation_date_utc for entry in listed}


def _write_revocations(folder: Path, trusted: Authority, revoked: dict[int, datetime.datetime]) -> None:
    assert trusted.key is not None
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(trusted.certificates[0].subject)
        .last_update(now)
        .next_update(now + datetime.timedelta(days=3650))
    )
    for serial, when in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    listed = builder.sign(trusted.key, hashes.SHA256())
    files.write_atomically(folder / "ca.crl", listed.public_bytes(serialization.Encoding.PEM), 0o644)


def _describe(file: Path) -> dict[str, Any]:
    if b"X509 CRL" in file.read_bytes():
        listed = authority.read_revocation_list(file)
        return {
            "kind": "revocation list",
            "issuer": listed.issuer.rfc4514_string(),
            "updated": listed.last_update_utc.isoformat(),
            "revoked": [f"{entry.serial_number:x}" for entry in listed],
        }
    certificate = authority.read_certificates(file)[0]
    names = authority.names(certificate)
    end = certificate.not_valid_after_utc
    return {
        "kind": "node certificate" if names else "authority",
        "cluster": names[0] if names else certificate.subject.rfc4514_string(),
        "node": names[1] if names else "",
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "validFrom": certificate.not_valid_before_utc.isoformat(),
        "validUntil": end.isoformat(),
        "expired": end < datetime.datetime.now(datetime.UTC),
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
    }
