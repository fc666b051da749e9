"""Where records are published and looked up: the discovery services of relays, and first contacts.

With few relays that is all of them. With many, a record is kept by the contacts nearest to its subject's id
(XOR), so that whoever looks for it asks the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from .model import node_id

# Copies of a record beside the configured contacts; k of Kademlia.
COPIES = 20
# Configured contacts that are used.
MAX_CONFIGURED = 64
# Addresses tried of one contact.
MAX_ENDPOINTS = 32


@dataclass(frozen=True, slots=True)
class Endpoint:
    """IP literal or DNS name, and TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Contact:
    """A discovery service to ask. `node_name` is empty while nobody knows who answers there."""

    node_name: str
    endpoints: tuple[Endpoint, ...]
    configured: bool = False

    @property
    def key(self) -> str:
        """What tells contacts apart."""
        return self.node_name or ",".join(map(str, self.endpoints))


def nearest(cluster: str, subject: str, contacts: list[Contact]) -> list[Contact]:
    """Those to publish the record of `subject` at, or to ask for it: configured first, then by nearness."""
    target = node_id(cluster, subject)
    configured = [contact for contact in contacts if contact.configured and contact.endpoints]
    others = [contact for contact in contacts if not contact.configured and contact.endpoints]
    others.sort(key=lambda contact: node_id(cluster, contact.node_name) ^ target)
    return configured[:MAX_CONFIGURED] + others[:COPIES]
