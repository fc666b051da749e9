"""What nftables is told and what the kernel tells, as text and bytes."""

import struct

import pytest

from services.proxy import nft
from services.proxy.core import kernel, ruleset
from services.proxy.core.ruleset import Ruleset

FULL = Ruleset(
    20009,
    tcp=frozenset({("10.96.0.1", 80), ("fd96::1", 443)}),
    udp=frozenset({(("10.96.0.1", 53), 21001)}),
    refused=frozenset({"10.96.0.1"}),
)


def test_elements_are_listed_by_ip_version() -> None:
    text = ruleset.replace(FULL)
    assert "set tcp4 { type ipv4_addr . inet_service; elements = { 10.96.0.1 . 80 } }" in text
    assert "set tcp6 { type ipv6_addr . inet_service; elements = { fd96::1 . 443 } }" in text
    assert "map udp4 { type ipv4_addr . inet_service : inet_service; elements = { 10.96.0.1 . 53 : 21001 } }" in text
    assert "set ours { type inet_proto . inet_service; elements = { tcp . 20009, udp . 21001 } }" in text
    # One transaction: the old table goes with it, and it is no error if there was none.
    assert text.index("table inet causeway { }") < text.index("delete table") < text.index("set tcp4")


def test_a_change_names_what_differs_only() -> None:
    after = Ruleset(
        20009, tcp=FULL.tcp | {("10.96.0.2", 80)}, udp=frozenset({(("10.96.0.1", 53), 21002)}), refused=FULL.refused
    )
    assert ruleset.change(FULL, after).splitlines() == [
        "delete element inet causeway udp4 { 10.96.0.1 . 53 : 21001 }",
        "delete element inet causeway ours { udp . 21001 }",
        "add element inet causeway tcp4 { 10.96.0.2 . 80 }",
        "add element inet causeway udp4 { 10.96.0.1 . 53 : 21002 }",
        "add element inet causeway ours { udp . 21002 }",
    ]
    assert ruleset.change(FULL, FULL) == ""
    assert FULL.frame == after.frame != Ruleset(20010).frame


def test_nothing_to_redirect() -> None:
    assert not Ruleset(20009, refused=frozenset({"10.96.0.1"}), subnets=("10.96.0.0/12",))
    assert FULL


def test_udp_ports_are_the_same_ones_every_time() -> None:
    ports = list(ruleset.udp_ports("10.96.0.10", 53))
    assert ports == list(ruleset.udp_ports("10.96.0.10", 53))
    assert ports[0] == 26_512  # in every process: conntrack remembers it
    assert len(set(ports)) == ruleset.MAX_TRIES
    for last in range(256):
        for port in ruleset.udp_ports(f"10.96.0.{last}", 53):
            assert 21_000 <= port < 30_000  # NodePorts begin there


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHIIBBH", 20 + len(body), kind, 0, 0, 0, 2, 0, 0) + body


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + b"\0" * (-len(content) % 4)


def test_transactions_on_our_table_are_counted() -> None:
    changes = kernel.TableChanges("causeway")
    ours, theirs = (message(10 << 8 | 6, attribute(1, name)) for name in (b"causeway\0", b"causeway2\0"))
    generation = message(10 << 8 | 15, attribute(1, b"\0\0\0\1"))
    changes.receive(theirs + generation)
    assert changes.count == 0
    changes.receive(ours + ours)
    changes.receive(theirs + generation)  # one transaction may take several datagrams
    assert changes.count == 1
    changes.receive(ours + generation + theirs + generation + ours + generation)
    assert changes.count == 3
    for cut in range(len(ours)):
        changes.receive(ours[:cut])  # never raises


def entry(protocol: int, ip: bytes, port: int, answerer: bytes, status: int) -> bytes:
    source, destination = (1, 2) if len(ip) == 4 else (3, 4)

    def flow(kind: int, a: bytes, b: bytes) -> bytes:
        ports = attribute(1, bytes([protocol])) + attribute(2, b"\1\1") + attribute(3, port.to_bytes(2, "big"))
        addresses = attribute(source, a) + attribute(destination, b)
        return attribute(0x8000 | kind, attribute(0x8001, addresses) + attribute(0x8002, ports))

    client = bytes(len(ip))
    return message(
        1 << 8,
        flow(1, client, ip)
        + flow(2, answerer, client)
        + attribute(3, status.to_bytes(4, "big"))
        + attribute(12, b"id!!"),
    )


def test_only_unanswered_connections_that_nobody_translates_are_forgotten() -> None:
    service, other = bytes([10, 96, 0, 1]), bytes([127, 0, 0, 1])
    six = bytes.fromhex("fd96" + "00" * 13 + "01")
    wanted = entry(17, service, 53, service, 0)
    listed = b"".join(
        [
            entry(17, service, 54, service, 0),  # another port
            entry(6, service, 53, service, 0),  # another transport
            entry(17, other, 53, other, 0),  # another address
            entry(17, service, 53, other, 0),  # translated: redirected already
            entry(17, service, 53, service, 2),  # answered: somebody is there
            wanted,
            entry(6, six, 80, six, 0),
        ]
    )
    targets: list[kernel.Target] = [("udp", "10.96.0.1", 53), ("tcp", "fd96::1", 80)]
    requests = list(kernel.forget_unanswered(listed, targets))
    assert len(requests) == 2
    for request, family in zip(requests, (2, 10), strict=True):
        length, kind, _, _, _, found, _, _ = struct.unpack_from("=IHHIIBBH", request)
        assert (length, kind, found) == (len(request), 1 << 8 | 2, family)
        # The tuple and the id of that entry: a request without them would mean all of conntrack.
        assert struct.unpack_from("=HH", request, 20)[1] == 0x8001
        assert request.endswith(attribute(12, b"id!!"))
    assert requests[0][20:].removesuffix(attribute(12, b"id!!")) in wanted
    assert not list(kernel.forget_unanswered(listed, []))
    for cut in range(len(wanted)):
        list(kernel.forget_unanswered(wanted[:cut], targets))  # never raises


def test_whether_connections_of_a_port_are_held() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = "   0: 0100007F:{port:04X} 017100CB:DF66 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 x\n"
    for port, state, inode, held in (
        (20009, "01", 77, True),
        (20009, "05", 77, True),  # half-closed
        (20009, "05", 0, False),  # of a process that is gone
        (20009, "0A", 77, False),  # the listener
        (20008, "01", 77, False),
    ):
        assert kernel.connected(head + line.format(port=port, state=state, inode=inode), 20009) is held
    assert not kernel.connected("", 20009)


def test_without_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_PATH", "/nonexistent")
    with pytest.raises(nft.NftError, match="nftables"):
        nft.listing()
