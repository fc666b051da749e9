"""Gateway, VirtualService and TLS Secret documents → objects for the proxy's ingress gateway.

Only the envelope is judged here (kind, version, name): what a body means is for its reader, who serves it. An object
that is wrong is left out with a warning, and never keeps out the others, or the services of the same file.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .fields import FieldError, Fields

# Characters of one body; etcd takes 1.5 MiB.
MAX_BODY = 1 << 20
# Keys of a Secret that are carried, with what its reader calls them; what else it holds stays where it is. Those of
# Kubernetes ("TLS Secrets"), and those of Istio ("Secure Gateways", key formats).
PEM_KEYS = {
    "tls.crt": "tls.crt",
    "tls.key": "tls.key",
    "ca.crt": "ca.crt",
    "cert": "tls.crt",
    "key": "tls.key",
    "cacert": "ca.crt",
}

_VERSIONS = tuple(f"networking.istio.io/{version}" for version in ("v1", "v1beta1", "v1alpha3"))
_KINDS = {"Gateway": _VERSIONS, "VirtualService": _VERSIONS, "Secret": ("v1",)}
_SECRET_TYPES = ("kubernetes.io/tls", "Opaque")


@dataclass(frozen=True, slots=True)
class GatewayObject:
    """`body`: JSON, as GatewayObject in protos/discovery.proto says. Never shown: it may hold a key."""

    kind: str
    namespace: str
    name: str
    body: str = field(repr=False)

    @property
    def key(self) -> str:
        """ "kind/namespace/name"."""
        return f"{self.kind}/{self.namespace}/{self.name}"


def parse(documents: Iterable[object]) -> tuple[dict[str, GatewayObject], list[str]]:
    """The objects of some documents by key, and one line for each that is left out. Other kinds are passed over."""
    objects: dict[str, GatewayObject] = {}
    warnings: list[str] = []
    for kind, document in _items(documents):
        try:
            found = _object(kind, Fields(document))
            if found is None:
                continue
            if found.key in objects:
                raise FieldError("it is defined twice; the first is used")
            objects[found.key] = found
        except FieldError as error:
            metadata = document.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else None
            warnings.append(f"{kind} {name or 'without a name'} is not used: {error}")
    return objects, warnings


def _items(documents: Iterable[object], kind: str = "") -> Iterator[tuple[str, dict[object, object]]]:
    """Objects of our kinds, lists unfolded; `kind` is that of a list's items, which need not repeat it."""
    for document in documents:
        if not isinstance(document, dict):
            continue
        own = document.get("kind", kind)
        items = document.get("items")
        if own in _KINDS:
            yield own, document
        elif isinstance(own, str) and own.endswith("List") and isinstance(items, list):
            yield from _items(items, own.removesuffix("List"))


def _object(kind: str, item: Fields) -> GatewayObject | None:
    version = item.text("apiVersion") or _KINDS[kind][0]
    if version not in _KINDS[kind]:
        if kind == "Gateway" and version.startswith("gateway.networking.k8s.io/"):
            raise FieldError(
                f"apiVersion is {version!r}, the Gateway API, which is not served; expected {_VERSIONS[0]}"
            )
        raise FieldError(f"apiVersion is {version!r}, expected {' or '.join(_KINDS[kind])}")
    metadata = item.section("metadata", required=True)
    namespace, name = metadata.text("namespace") or "default", metadata.name("name")
    if kind == "Secret":
        pems = _pems(item)
        if pems is None:
            return None
        body = json.dumps(pems)
    else:
        body = json.dumps(item.section("spec", required=True).values, default=str)
    if len(body) > MAX_BODY:
        raise FieldError(f"it has {len(body)} characters, expected at most {MAX_BODY}")
    return GatewayObject(kind, namespace, name, body)


def _pems(item: Fields) -> dict[str, str] | None:
    """The PEM texts of a Secret; None when it is for something else."""
    if (item.text("type") or "Opaque") not in _SECRET_TYPES:
        return None
    plain, encoded = item.texts("stringData"), item.texts("data")
    pems: dict[str, str] = {}
    for key, name in PEM_KEYS.items():
        if name in pems:
            continue
        if key in plain:
            pems[name] = plain[key]
        elif key in encoded:
            try:
                pems[name] = base64.b64decode("".join(encoded[key].split()), validate=True).decode("ascii")
            except (binascii.Error, ValueError):
                raise FieldError(f"data[{key}] is not base64 of a PEM file") from None
    return pems or None
