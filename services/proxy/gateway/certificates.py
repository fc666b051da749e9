"""The certificates of a gateway's TLS servers: from Secrets, from folders or from files, and new ones while running.

A certificate that cannot be used changes nothing: the one from before stays, and the problem is told.
"""

import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.proxy.core.gateway.model import Tls
from services.runtime import files

MAX_PEM = 1 << 20  # bytes of one file

# TLS 1.2 is Istio's lowest for gateways, too.
_LOWEST = ssl.TLSVersion.TLSv1_2
_VERSIONS = {
    "TLSV1_0": ssl.TLSVersion.TLSv1_2,  # older ones are refused by what we are linked with, and by RFC 8996
    "TLSV1_1": ssl.TLSVersion.TLSv1_2,
    "TLSV1_2": ssl.TLSVersion.TLSv1_2,
    "TLSV1_3": ssl.TLSVersion.TLSv1_3,
}
# What goes on as a stream may be HTTP/1.1 to who does not know better; HTTP/2 would have to be its backend's, too.
_ALPN = ["h2", "http/1.1"]
_MODES = {"SIMPLE": ssl.CERT_NONE, "MUTUAL": ssl.CERT_REQUIRED, "OPTIONAL_MUTUAL": ssl.CERT_OPTIONAL}
_NAMES = ("tls.crt", "tls.key", "ca.crt")
# Where the CA of clients may be by itself: in a credential of that name (Istio, "Configure a mutual TLS ingress gateway").
_CA_SUFFIX = "-cacert"

Pems = Mapping[str, str]


class CertificateError(ValueError):
    """Something is missing, or is no certificate."""


class Certificates:
    """Contexts for TLS servers. `refresh` whenever something may have changed, then `get` for each connection."""

    def __init__(self, secrets_dir: Path | None) -> None:
        """`secrets_dir`: holds a folder for each credential."""
        self.secrets_dir = secrets_dir
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._sources: dict[Tls, object] = {}
        self.problems: dict[Tls, str] = {}

    def get(self, tls: Tls) -> ssl.SSLContext | None:
        """The context to greet clients with; None: there is no certificate (yet)."""
        return self._contexts.get(tls)

    def refresh(self, wanted: Iterable[Tls], secrets: Mapping[str, Pems]) -> list[Tls]:
        """Reads what is new for those `wanted`; returns those whose state changed. `secrets`: by "namespace/name"."""
        keep = {tls for tls in wanted if tls.mode != "PASSTHROUGH"}
        for gone in self._sources.keys() - keep:
            self._contexts.pop(gone, None)
            self._sources.pop(gone)
            self.problems.pop(gone, None)
        news = []
        for tls in keep:
            secret = secrets.get(tls.credential)
            authority = secrets.get(tls.credential + _CA_SUFFIX) if secret is not None else None
            if secret is not None and authority is not None:
                secret = {**secret, **{name: pem for name, pem in authority.items() if name == _NAMES[2]}}
            paths = self._paths(tls)
            source = (secret, tuple(map(files.stamp, paths)))
            if self._sources.get(tls) == source:
                continue
            self._sources[tls] = source
            news.append(tls)
            try:
                pems = secret if secret is not None else dict(zip(_NAMES, map(_read, paths), strict=True))
                self._contexts[tls] = self._context(tls, pems)
                self.problems.pop(tls, None)
            except CertificateError as error:
                self.problems[tls] = f"{error}{'; the one from before stays' if tls in self._contexts else ''}"
        return news

    def _paths(self, tls: Tls) -> list[Path | None]:
        if not tls.credential:
            return [Path(one) if one else None for one in (tls.certificate_file, tls.key_file, tls.ca_file)]
        namespace, _, name = tls.credential.partition("/")
        if self.secrets_dir is None:
            return [None, None, None]
        # A folder may be meant for one namespace, or for all.
        folder = self.secrets_dir / namespace / name
        if not folder.is_dir():
            folder = self.secrets_dir / name
        apart = folder.with_name(name + _CA_SUFFIX) / _NAMES[2]
        return [*(folder / file for file in _NAMES[:2]), apart if apart.is_file() else folder / _NAMES[2]]

    def _context(self, tls: Tls, pems: Pems) -> ssl.SSLContext:
        where = f"credential {tls.credential}" if tls.credential else tls.certificate_file
        for name in _NAMES[:2] if tls.mode == "SIMPLE" else _NAMES:
            if not pems.get(name):
                raise CertificateError(f"{where} has no {name}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS.get(tls.lowest, _LOWEST)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(_ALPN if tls.http else _ALPN[1:])
        try:
            if tls.highest:
                context.maximum_version = _VERSIONS[tls.highest]
            with ExitStack() as stack:
                chain, key = (stack.enter_context(_in_memory(pems[name])) for name in _NAMES[:2])
                # Without an answer OpenSSL would ask on the terminal for the password of an encrypted key.
                context.load_cert_chain(chain, key, password=lambda: "")
            if tls.mode != "SIMPLE":
                context.load_verify_locations(cadata=pems["ca.crt"])
                context.verify_mode = _MODES[tls.mode]
        except (ssl.SSLError, ValueError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise CertificateError(f"{where} is not usable: {reason}") from None
        return context


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM).decode("ascii")
    except (OSError, ValueError):
        return ""


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A path from which OpenSSL, which takes nothing but paths, can read `text`: a key never touches a disk."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
