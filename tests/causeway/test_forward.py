"""`causeway forward`: what it is told, and what it says of what is wrong. Across nodes: tests/e2e/test_ways_in.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from causeway.errors import CommandError
from causeway.forward import target
from causeway.forward.target import Backend, NodeTarget, ServiceTarget, Turns
from protos import discovery_pb2


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("web:80", ServiceTarget("default/web", "80")),
        ("web:http", ServiceTarget("default/web", "http")),
        ("Web.Shop:80", ServiceTarget("shop/web", "80")),
        ("web.shop.svc:80", ServiceTarget("shop/web", "80")),
        ("web.shop.svc.cluster.local.:80", ServiceTarget("shop/web", "80")),
        ("edge-b:127.0.0.1:22", NodeTarget(Backend("edge-b", "127.0.0.1", 22))),
        ("edge-b.example:db:5432", NodeTarget(Backend("edge-b.example", "db", 5432))),
        ("edge-b:[fd00::1]:22", NodeTarget(Backend("edge-b", "fd00::1", 22))),
    ],
)
def test_targets(text: str, meant: ServiceTarget | NodeTarget) -> None:
    assert target.parse(text) == meant


@pytest.mark.parametrize(
    "text",
    ["", "web", "web:", ":80", "a.b.c:80", "..:80", "edge-b::22", "edge-b:host:0", "edge-b:fd00::1:22", "a:b:c:1"],
)
def test_no_targets(text: str) -> None:
    with pytest.raises(CommandError, match=r"SERVICE:PORT, such as .* NODE:HOST:PORT"):
        target.parse(text)


def test_local_addresses() -> None:
    for text, meant in (
        ("8080", ("127.0.0.1", 8080)),
        (":0", ("127.0.0.1", 0)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
    ):
        assert target.parse_local(text) == meant
    for text in ("", "host:80", "::1:80", "1.2.3.4", "1.2.3.4:99999", "-1"):
        with pytest.raises(CommandError, match="IP:"):
            target.parse_local(text)


def web() -> discovery_pb2.Service:
    tcp, udp = discovery_pb2.PROTOCOL_TCP, discovery_pb2.PROTOCOL_UDP
    ready = {"ready": True, "node_name": "b", "ports": [{"name": "http", "protocol": tcp, "port": 8080}]}
    return discovery_pb2.Service(
        namespace="default",
        name="web",
        ports=[{"name": "http", "protocol": tcp, "port": 80}, {"name": "dns", "protocol": udp, "port": 53}],
        endpoints=[
            ready | {"addresses": ["10.0.0.1"]},
            ready | {"addresses": ["10.0.0.2"], "ready": False},
            ready | {"addresses": ["10.0.0.3"], "node_name": ""},
            ready | {"addresses": ["fd00::4"]},
        ],
    )


def test_backends_of_a_port_by_number_and_name() -> None:
    for port in ("80", "http"):
        assert [one.address for one in target.backends(web(), port, udp=False)] == ["10.0.0.1:8080", "[fd00::4]:8080"]
    assert target.backends(web(), "53", udp=True) == []
    ending = web()
    for one in ending.endpoints:
        one.ready, one.leaving = False, not one.ready
    assert [one.address for one in target.backends(ending, "80", udp=False)] == ["10.0.0.2:8080"], "better than none"
    with pytest.raises(CommandError, match=r"default/web has no UDP port 80; it has 53 \(dns\)"):
        target.backends(web(), "80", udp=True)


def test_backends_take_turns() -> None:
    one, two = Backend("b", "10.0.0.1", 1), Backend("b", "10.0.0.2", 1)
    turns = Turns([one, two])
    assert turns.order() != turns.order()
    assert {*turns.order()} == {one, two}
    turns.replace([one])
    assert turns.order() == [one]
    turns.replace([])
    assert turns.order() == []


@pytest.mark.slow  # starts the command
def test_without_a_node_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "causeway", "forward", "0", "b:127.0.0.1:22", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(b"causeway: tunnel is not running (no socket at ")
