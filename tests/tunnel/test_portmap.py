"""Port mapping without a gateway: the bytes of PCP and NAT-PMP, clocks of gateways, and what answers may hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tunnel.core import natpmp, pcp
from services.tunnel.core.epoch import Epoch
from services.tunnel.portmap import gateway, upnp
from services.tunnel.portmap.gateway import parse

NONCE = bytes(range(12))


def test_nat_pmp_requests_are_those_of_the_rfc() -> None:
    assert natpmp.encode_address() == b"\0\0"
    assert natpmp.encode_map(20006, 20006, 7200).hex() == "0002" + "0000" + "4e26" + "4e26" + "00001c20"
    # To give back: no lifetime, and no outside port (section 3.4).
    assert natpmp.encode_map(20006, 20006, 0).hex() == "0002" + "0000" + "4e26" + "0000" + "00000000"


def test_nat_pmp_answers() -> None:
    found = natpmp.decode(bytes.fromhex("0080" + "0000" + "0000002a" + "0b000001"))
    assert found == natpmp.Answer(natpmp.ADDRESS, 0, 42, ip="11.0.0.1")
    found = natpmp.decode(bytes.fromhex("0082" + "0000" + "0000002a" + "4e26" + "4e27" + "00000e10"))
    assert found == natpmp.Answer(natpmp.MAP_TCP, 0, 42, internal_port=20006, external_port=20007, lifetime=3600)
    refusal = natpmp.decode(bytes.fromhex("0082" + "0002" + "0000002a"))
    assert refusal is not None and refusal.result == 2
    for nothing in ("", "0080", "0002000000000000", "028000000000002a0b000001", "00800000" + "0000002a" + "0b00"):
        assert natpmp.decode(bytes.fromhex(nothing)) is None


def test_pcp_requests_are_those_of_the_rfc() -> None:
    client = "00000000000000000000ffffc0a80102"
    assert pcp.encode_announce("192.168.1.2").hex() == "02000000" + "00000000" + client
    asked = pcp.encode_map("192.168.1.2", NONCE, 20006, ("0.0.0.0", 20006), 7200)
    assert len(asked) == 60
    head = "02010000" + "00001c20" + client
    assert asked.hex() == head + NONCE.hex() + "06000000" + "4e26" + "4e26" + "00000000000000000000ffff00000000"


def test_pcp_answers() -> None:
    head = "0281" + "0000" + "00000e10" + "0000002a" + "00" * 12
    body = NONCE.hex() + "06000000" + "4e26" + "4e27" + "00000000000000000000ffff0b000001"
    found = pcp.decode(bytes.fromhex(head + body))
    assert found == pcp.Answer(pcp.MAP, 0, 3600, 42, NONCE, 20006, 20007, "11.0.0.1")
    six = pcp.decode(bytes.fromhex(head + body[:-32] + "20010db8" + "00" * 11 + "01"))
    assert six is not None and six.ip == "2001:db8::1"
    refusal = pcp.decode(bytes.fromhex("0281" + "0002" + "0000001e" + "0000002a" + "00" * 12 + body))
    assert refusal is not None and (refusal.result, refusal.lifetime, refusal.nonce) == (2, 30, NONCE)
    announced = pcp.decode(bytes.fromhex("0280" + "0000" + "00000000" + "0000002a" + "00" * 12))
    assert announced is not None and (announced.opcode, announced.epoch) == (pcp.ANNOUNCE, 42)
    udp = body.replace("06000000", "11000000")
    for nothing in (
        "",
        head[:-2],
        head,
        head + body[:-2],
        head + udp,
        "0201" + head[4:] + body,
        "0081" + head[4:] + body,
    ):
        assert pcp.decode(bytes.fromhex(nothing)) is None


@given(st.binary(max_size=80))
def test_whatever_comes_is_an_answer_or_nothing(data: bytes) -> None:
    for decode in (natpmp.decode, pcp.decode):
        decode(data)  # type: ignore[operator]
    assert isinstance(upnp.location_of(data), str)


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ((100, 0.0), (160, 60.0), True),
        ((100, 0.0), (163, 60.0), True),  # one in sixteen and two seconds are jitter
        ((100, 0.0), (155, 60.0), True),
        ((100, 0.0), (170, 60.0), False),
        ((100, 0.0), (3, 60.0), False),  # it began anew
        ((100, 0.0), (100, 60.0), False),
        ((100, 0.0), (99, 0.5), True),
        ((100, 0.0), (97, 0.5), False),
    ],
)
def test_epochs(first: tuple[int, float], second: tuple[int, float], fits: bool) -> None:
    epoch = Epoch()
    assert epoch.fits(*first)
    assert epoch.fits(*second) is fits
    # What was found out once is not found out again.
    assert epoch.fits(second[0] + 60, second[1] + 60)


ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
"""


def test_the_gateway_with_the_lowest_metric() -> None:
    assert parse(ROUTES) == "192.168.1.1"
    assert parse("") == parse(ROUTES.splitlines()[0]) == parse("\n".join(ROUTES.splitlines()[:2])) == ""


@pytest.mark.parametrize("address", ["127.0.0.1", "127.88.3.4", "::1", "2001:db8::1"])
def test_a_node_on_loopback_or_ipv6_only_has_nothing_to_map(address: str) -> None:
    assert gateway.find(address) is None


def answer(*lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join((status, *lines, "", "")).encode()


KIND = upnp.KINDS[1]


@pytest.mark.parametrize(
    ("data", "location"),
    [
        (answer(f"ST: {KIND}", "LOCATION: http://192.168.1.1:5000/a.xml"), "http://192.168.1.1:5000/a.xml"),
        (answer(f"st:{KIND}", "location:http://192.168.1.1/"), "http://192.168.1.1/"),
        (answer("ST: urn:schemas-upnp-org:device:MediaServer:1", "LOCATION: http://192.168.1.9/"), ""),
        (answer(f"ST: {KIND}"), ""),
        (answer(f"ST: {KIND}", "LOCATION: http://192.168.1.1/", status="NOTIFY * HTTP/1.1"), ""),
        (b"", ""),
    ],
)
def test_answers_to_the_search(data: bytes, location: str) -> None:
    assert upnp.location_of(data) == location


def test_only_plain_http_is_a_description() -> None:
    assert upnp.host_of("http://192.168.1.1:5000/a.xml") == "192.168.1.1"
    for url in ("", "https://192.168.1.1/", "file:///etc/passwd", "http://[", "192.168.1.1"):
        assert upnp.host_of(url) == ""
