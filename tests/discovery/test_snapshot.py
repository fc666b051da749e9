"""What is on disk is read as it was written, or refused."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.discovery.core.memory import Remembered
from services.discovery.core.model import Address, AddressSource, RelayRole, Reservation, Signed
from services.discovery.core.own import RelayReport, TunnelReport
from services.discovery.core.snapshot import Snapshot, decode, encode
from services.runtime.core.envelope import BadSnapshot

FULL = Snapshot(
    saved_at=1_800_000_000.5,
    revision=1_800_000_000_123,
    tunnel=TunnelReport(
        20006,
        (Reservation("r1", 0.02),),
        (Address("198.51.100.7", AddressSource.OBSERVED, 4711),),
        (Address("198.51.100.7", AddressSource.MAPPED, 20006),),
    ),
    relay=RelayReport(20007, RelayRole(True, 10, 2)),
    peers=(Signed(b"\x00\xff", b"sig", b"cert"), Signed(b"", b"", b"")),
    servers=(Remembered("r1", "203.0.113.1:20008,[2001:db8::1]:20008", 1_799_999_999.5),),
)


@pytest.mark.parametrize("snapshot", [Snapshot(), FULL])
def test_it_comes_back_as_it_was(snapshot: Snapshot) -> None:
    assert decode(encode(snapshot)) == snapshot


def test_every_cut_is_noticed() -> None:
    data = encode(FULL)
    for end in range(len(data) - 1):  # the last byte is a line feed
        with pytest.raises(BadSnapshot):
            decode(data[:end])


def test_every_changed_byte_of_the_body_is_noticed() -> None:
    data = encode(FULL)
    for index in range(data.index(b"\n") + 1, len(data) - 1):
        with pytest.raises(BadSnapshot, match="checksum"):
            decode(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(BadSnapshot):
        decode(data)


def test_another_version_is_named() -> None:
    data = encode(FULL).replace(b'"version": 1', b'"version": 7', 1)
    with pytest.raises(BadSnapshot, match="version 7, expected 1"):
        decode(data)


@pytest.mark.parametrize(
    "body",
    [
        '{"savedAt":1}',
        "[]",
        '{"savedAt":1,"revision":1,"tunnel":5,"relay":null,"peers":[]}',
        '{"savedAt":1,"revision":1,"tunnel":null,"relay":null,"peers":[],"servers":[["r1","nowhere"]]}',
    ],
)
def test_a_body_of_another_shape_is_refused(body: str) -> None:
    with pytest.raises(BadSnapshot, match="cannot be read"):
        decode(file_of(body))


def test_a_file_from_before_the_dht_is_read() -> None:
    body = '{"savedAt":5,"revision":7,"tunnel":null,"relay":null,"peers":[]}'
    assert decode(file_of(body)) == Snapshot(5, 7)


def file_of(body: str) -> bytes:
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"format": "causeway-registry", "version": 1, "sha256": "{digest}"}}\n{body}\n'.encode()
