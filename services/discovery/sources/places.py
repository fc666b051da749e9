"""Servers of the DHT as contacts, and nodes as servers: a table keeps where they are as one text."""

from __future__ import annotations

from dataclasses import replace

from ..core.contacts import Contact, Endpoint
from ..core.model import AddressSource, Peer, Record
from ..core.routing import Node
from ..directory import contact_of
from ..wire import MAX_WHERE


def is_public(node: Node) -> bool:
    """It can be reached from outside our LAN, as far as we can tell."""
    return not node.near or "," in node.where


def contact_at(record: Record, source: AddressSource | None = None) -> Contact:
    """How to call a node, at its addresses of one source or at all."""
    addresses = tuple(it for it in record.addresses if source is None or it.source is source)
    return contact_of(Peer(replace(record, addresses=addresses)))


def contact_of_server(node: Node) -> Contact:
    """How to call a server of the DHT."""
    return Contact(node.name, tuple(map(endpoint_of, node.where.split(","))))


def server_at(key: int, contact: Contact) -> Node:
    """A contact with this id, as one that a search may ask."""
    return Node(key, contact.node_name, ",".join(str(it) for it in contact.endpoints[:MAX_WHERE]))


def endpoint_of(where: str) -> Endpoint:
    """Of "ip:port"."""
    host, _, port = where.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))
