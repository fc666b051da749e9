"""Records, relays and servers as bytes: protobuf ↔ domain, signed and verified."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from protos import discovery_pb2 as pb
from services.runtime.address import is_ip
from services.runtime.identity import Identity, Rejection

from .core.contacts import Endpoint
from .core.errors import BadSignature, NameMismatch, TooLarge
from .core.model import Address, AddressSource, Record, RelayRole, Reservation, Signed, node_id
from .core.overlay import RELAYS_TOLD
from .core.routing import Node
from .core.vantage import DialOutcome

# What is signed begins with this, so that a signature over anything else of ours never passes for a record's.
SIGNED_PREFIX = b"causeway-record-v1\0"
# Bytes of a signed record in all, and of any message on the public port.
MAX_RECORD = 16 * 1024
MAX_MESSAGE = 64 * 1024
# Addresses that a relay's claim may name.
MAX_PROVEN = 8
# Bytes of all relays' records in one message, and addresses of one server.
MAX_TOLD = 32 * 1024
MAX_WHERE = 4
# Characters of a node's name (DNS).
MAX_NAME = 253


def seal(identity: Identity, record: Record) -> Signed:
    """Encode and sign a record."""
    data = record_to_wire(record).SerializeToString()
    return Signed(data, identity.sign(SIGNED_PREFIX + data), identity.certificate_der)


def unseal(identity: Identity, signed: Signed, expected_node: str = "") -> Record:
    """Verify and decode a record.

    Raises TooLarge, BadSignature, or NameMismatch (the record is about another node than its signer, or than the
    one expected). Times are not judged here.
    """
    if signed.size > MAX_RECORD:
        raise TooLarge(f"the record has {signed.size} bytes, expected at most {MAX_RECORD}")
    try:
        signer = identity.verify(signed.certificate, SIGNED_PREFIX + signed.record, signed.signature)
        record = record_from_wire(pb.PeerRecord.FromString(signed.record))
    except Rejection as error:
        raise BadSignature(f"{error.reason}: {error.message}") from error
    except (DecodeError, ValueError, OverflowError) as error:
        raise BadSignature(f"the signed bytes are not a record: {error}") from error
    if record.node_name != signer or record.cluster != identity.cluster:
        raise NameMismatch(
            f"the record is about {record.node_name!r} of cluster {record.cluster!r}, but {signer!r} of "
            f"{identity.cluster!r} signed it; a node speaks only for itself"
        )
    if expected_node and signer != expected_node:
        raise NameMismatch(f"the record is about {signer!r}, expected {expected_node!r}")
    return record


def signed_to_wire(signed: Signed) -> pb.SignedRecord:
    """Domain → protobuf."""
    return pb.SignedRecord(record=signed.record, signature=signed.signature, certificate=signed.certificate)


def signed_from_wire(message: pb.SignedRecord) -> Signed:
    """Protobuf → domain."""
    return Signed(message.record, message.signature, message.certificate)


def record_to_wire(record: Record) -> pb.PeerRecord:
    """Domain → protobuf."""
    message = pb.PeerRecord(
        cluster=record.cluster,
        node_name=record.node_name,
        revision=record.revision,
        instance_id=record.instance_id,
        addresses=map(address_to_wire, record.addresses),
        tunnel_port=record.tunnel_port,
        relay_port=record.relay_port,
        discovery_port=record.discovery_port,
    )
    if record.revision:
        message.issued_at.FromNanoseconds(round(record.issued_at * 1000) * 1_000_000)
        message.expires_at.FromNanoseconds(round(record.expires_at * 1000) * 1_000_000)
    if record.relay is not None:
        message.relay.CopyFrom(role_to_wire(record.relay))
    for reservation in record.reservations:
        message.reservations.add(relay=reservation.relay).rtt.FromNanoseconds(round(reservation.rtt * 1e9))
    return message


def record_from_wire(message: pb.PeerRecord) -> Record:
    """Protobuf → domain. Raises ValueError for values out of range."""
    ports = (message.tunnel_port, message.relay_port, message.discovery_port)
    if not message.node_name or not message.revision or max(ports) > 65_535:
        raise ValueError("a name, a revision and ports up to 65535 are expected")
    for address in message.addresses:
        ipaddress.ip_address(address.ip)
    return Record(
        node_name=message.node_name,
        cluster=message.cluster,
        revision=message.revision,
        issued_at=message.issued_at.ToMilliseconds() / 1000,
        expires_at=message.expires_at.ToMilliseconds() / 1000,
        instance_id=message.instance_id,
        addresses=tuple(map(address_from_wire, message.addresses)),
        tunnel_port=message.tunnel_port,
        relay_port=message.relay_port,
        discovery_port=message.discovery_port,
        relay=role_from_wire(message.relay) if message.HasField("relay") else None,
        reservations=tuple(map(reservation_from_wire, message.reservations)),
    )


def address_to_wire(address: Address) -> pb.Address:
    """Domain → protobuf."""
    source = pb.AddressSource.ValueType(address.source)
    return pb.Address(ip=address.ip, source=source, tunnel_port=address.tunnel_port)


def address_from_wire(message: pb.Address) -> Address:
    """Protobuf → domain; a source of a later version is unspecified here."""
    try:
        source = AddressSource(message.source)
    except ValueError:
        source = AddressSource.UNSPECIFIED
    return Address(message.ip, source, min(message.tunnel_port, 65_535))


def role_to_wire(role: RelayRole) -> pb.RelayRole:
    """Domain → protobuf."""
    message = pb.RelayRole(
        configured=role.configured,
        load_permille=role.load_permille,
        circuits=role.circuits,
        draining=role.draining,
        proven=role.proven,
        throughput=role.throughput,
    )
    if role.up_since:
        message.up_since.FromMilliseconds(round(role.up_since * 1000))
    return message


def role_from_wire(message: pb.RelayRole) -> RelayRole:
    """Protobuf → domain. Raises ValueError for a proven address that is none."""
    for ip in message.proven:
        ipaddress.ip_address(ip)
    return RelayRole(
        message.configured,
        min(message.load_permille, 1000),
        message.circuits,
        message.draining,
        tuple(message.proven[:MAX_PROVEN]),
        message.throughput,
        message.up_since.ToMilliseconds() / 1000,
    )


def reservation_from_wire(message: pb.Reservation) -> Reservation:
    """Protobuf → domain."""
    return Reservation(message.relay, message.rtt.ToNanoseconds() / 1e9)


def relays_to_wire(relays: Iterable[Signed]) -> list[pb.SignedRecord]:
    """Domain → protobuf; what does not fit is left out."""
    found: list[pb.SignedRecord] = []
    size = 0
    for signed in relays:
        size += signed.size
        if size <= MAX_TOLD:
            found.append(signed_to_wire(signed))
    return found


def relays_from_wire(messages: Sequence[pb.SignedRecord]) -> tuple[Signed, ...]:
    """Protobuf → domain; no more than there should be."""
    return tuple(map(signed_from_wire, messages[:RELAYS_TOLD]))


def server_to_wire(node: Node) -> pb.Server:
    """Domain → protobuf."""
    return pb.Server(node_name=node.name, addresses=node.where.split(","))


def server_from_wire(message: pb.Server, cluster: str) -> Node:
    """Protobuf → domain; without `where` when no address makes sense. The id is ours to compute."""
    name = message.node_name[:MAX_NAME]
    where = ",".join(str(it) for it in endpoints_from_wire(message.addresses))
    return Node(node_id(cluster, name), name, where)


def endpoints_from_wire(addresses: Sequence[str]) -> list[Endpoint]:
    """The addresses ("ip:port") among the first MAX_WHERE that are some."""
    found: list[Endpoint] = []
    for text in addresses[:MAX_WHERE]:
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if is_ip(host) and port.isascii() and port.isdigit() and 0 < int(port) <= 65_535:
            found.append(Endpoint(host, int(port)))
    return found


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a dial that was wished for."""

    token: bytes
    ip: str
    outcome: DialOutcome


def outcome_to_wire(outcome: DialOutcome) -> pb.DialBackOutcome.ValueType:
    return pb.DialBackOutcome.ValueType(outcome)


def outcome_from_wire(number: int) -> DialOutcome:
    """Protobuf → domain; one of a later version is UNREACHABLE here."""
    try:
        return DialOutcome(number)
    except ValueError:
        return DialOutcome.UNREACHABLE


def report_from_wire(message: pb.DialBackReport) -> Report:
    """Protobuf → domain. Raises ValueError for what is no address."""
    ipaddress.ip_address(message.ip)
    return Report(message.token, message.ip, outcome_from_wire(message.outcome))
