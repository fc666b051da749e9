"""Port mapping with a real gateway: `miniupnpd` on a router of the lab."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.nat import Kind, Nat
from lab.network import Host, Lan, Network
from lab.node import WITHOUT_RELAY, Node, together
from lab.place import simulated
from protos import discovery_pb2
from protos import tunnel_pb2 as pb
from tests.e2e.conftest import refuse, require_simulation
from tests.e2e.miniupnpd import EXTERNAL, Miniupnpd, program
from tests.e2e.traffic import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]

PATIENCE = 60.0
PSK = "a secret of the tests of port mapping, long enough"


@pytest.fixture
def net() -> Iterator[Network]:
    require_simulation()
    if program() is None:
        refuse("miniupnpd is not installed (Debian package miniupnpd-nftables)")
    with Network() as network:
        yield network


async def test_a_node_behind_a_gateway_is_reached_directly(net: Network, short_path: Path) -> None:
    relays = [simulated(net.public("r1")), simulated(net.public("r2"))]
    home = net.lan("home")
    a, off = simulated(home.host("a")), simulated(home.host("off"))
    r1, r2 = (Node(it, short_path / it.name, psk=PSK, relays=relays) for it in relays)
    common: dict[str, Any] = {"psk": PSK, "relays": relays, "relay_mode": "off"}
    mapped = Node(a, short_path / "a", **common)
    unmapped = Node(
        off,
        short_path / "off",
        **common,
        modules={"edgeTunnel": {"portMapping": {"enable": False}, "listenPort": 20016}},
    )
    nodes = (r1, r2, mapped, unmapped)
    with Miniupnpd(net, home) as gateway:
        try:
            for node in nodes:
                node.start("discovery", "tunnel", *(("relay",) if node in (r1, r2) else ()))
            await together(node.ready(*node.started) for node in nodes)

            async def published() -> bool:
                addresses = getattr(await mapped.discovery(), "self").addresses  # noqa: B009  self is its name
                source = discovery_pb2.ADDRESS_SOURCE_MAPPED
                return any((address.ip, address.source) == (EXTERNAL, source) for address in addresses)

            await eventually(published, "the mapped address is in the node's record, as such")

            async def direct() -> bool:
                await r1.ping("a")
                link = await r1.active("a")
                # By a's own dial, which r1 takes for a punched one when it comes while it punches itself, or by r1's.
                return link is not None and link.kind in WITHOUT_RELAY

            await eventually(direct, "r1 has a link to a without a relay")

            found = await mapped.netcheck()
            assert (found.port_mapping.protocol, found.port_mapping.external) == ("PCP", f"{EXTERNAL}:20006")
            address = next(one for one in found.addresses if one.address == f"{EXTERNAL}:20006")
            assert (address.source, address.reachable) == ("mapped", pb.FINDING_YES), found
            # The mapping of one port does not make the NAT another kind.
            assert found.kind == pb.NAT_KIND_PORT_RESTRICTED, found

            rules = gateway.rules
            assert f"dnat ip to {a.address}:20006" in rules and off.address not in rules, rules
            assert (await unmapped.netcheck()).port_mapping.why == "not asked for"
            await mapped.stop("tunnel")
            assert a.address not in gateway.rules
        except BaseException:
            print(mapped.tail("tunnel"), mapped.tail("discovery"), await mapped.status(), gateway.log[-2000:])
            raise
        finally:
            await asyncio.gather(*(node.stop(timeout=5) for node in nodes))


class Mapping:
    """A mapper in a process of its own on a host, see tests/tunnel/portmap_child.py."""

    def __init__(self, host: Host, state_dir: Path, only: str = "all", lifetime: int = 7200) -> None:
        state_dir.mkdir(exist_ok=True)
        self._output = state_dir / f"output-{time.monotonic_ns()}"
        argv = [sys.executable, "-m", "tests.tunnel.portmap_child", str(state_dir), only, str(lifetime)]
        with self._output.open("wb") as output:
            self.process: subprocess.Popen[bytes] = host.namespace.popen(argv, stdout=output, stderr=output)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it said, the last line included only when it is complete."""
        text = self._output.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    @property
    def now(self) -> dict[str, Any]:
        lines = self.lines
        return lines[-1] if lines else {"protocol": "", "external": None, "why": ""}

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Mapping:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def until(condition: Callable[[], object], what: str, show: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE:g} s: {what}; {show()}"
        time.sleep(0.05)


@pytest.mark.parametrize("protocol", ["PCP", "NAT-PMP", "UPnP"])
def test_a_mapping_is_made_outlives_the_gateways_restart_and_is_given_back(
    net: Network, short_path: Path, protocol: str
) -> None:
    home = net.lan("home")
    host = home.host("a")
    with Miniupnpd(net, home) as gateway, Mapping(host, short_path / "a", protocol) as mapping:
        until(lambda: mapping.now["external"], "mapped", lambda: (mapping.lines, gateway.log[-2000:]))
        assert mapping.now == {"protocol": protocol, "external": [EXTERNAL, 20006], "why": ""}
        assert_open(net, host)

        gateway.kill()
        time.sleep(4)  # RFC 6887 lets two seconds pass as jitter: a clock that is set back less is none set back
        gateway.start()
        until(lambda: host.address in gateway.rules, "mapped again", lambda: (mapping.lines, gateway.log[-2000:]))
        assert_open(net, host)

        assert mapping.end() == 0
        assert host.address not in gateway.rules


def assert_open(net: Network, host: Host) -> None:
    """A connection from the internet to the mapped port arrives at the host."""
    with host.namespace.socket() as server, net.internet.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host.address, 20006))
        server.listen()
        client.settimeout(PATIENCE)
        client.connect((EXTERNAL, 20006))
        server.settimeout(PATIENCE)
        server.accept()[0].close()


@pytest.mark.parametrize(("protocol", "request_in_log"), [("PCP", " 60bytes"), ("UPnP", "#AddPortMapping")])
def test_a_mapping_is_renewed_before_it_ends(
    net: Network, short_path: Path, protocol: str, request_in_log: str
) -> None:
    home = net.lan("home")
    host = home.host("a")
    with Miniupnpd(net, home) as gateway, Mapping(host, short_path / "a", protocol, lifetime=16) as mapping:
        until(lambda: mapping.now["external"], "mapped", lambda: (mapping.lines, gateway.log[-2000:]))
        until(lambda: gateway.log.count(request_in_log) >= 2, "asked again", lambda: gateway.log[-2000:])
        assert len(mapping.lines) == 1, mapping.lines  # it was not lost, and nobody is told anything new
        assert mapping.now["external"] == [EXTERNAL, 20006]
        # To renew it the gateway takes the rule away and sets it again.
        until(lambda: host.address in gateway.rules, "the rule", lambda: gateway.rules)


def test_a_node_that_was_killed_takes_its_mapping_up_again(net: Network, short_path: Path) -> None:
    """PCP gives a mapping only to whoever knows its nonce."""
    home = net.lan("home")
    host = home.host("a")
    with Miniupnpd(net, home) as gateway:
        for _ in range(2):
            with Mapping(host, short_path / "a", "PCP") as mapping:
                until(lambda m=mapping: m.now["external"], "mapped", lambda m=mapping: (m.lines, gateway.log[-2000:]))  # type: ignore[misc]
                assert mapping.now["external"] == [EXTERNAL, 20006]


@pytest.mark.parametrize("protocol", ["PCP", "NAT-PMP", "UPnP"])
def test_two_nodes_with_one_port_behind_one_gateway(net: Network, short_path: Path, protocol: str) -> None:
    home = net.lan("home")
    hosts = [home.host("a"), home.host("b")]
    with (
        Miniupnpd(net, home) as gateway,
        Mapping(hosts[0], short_path / "a", protocol) as one,
        Mapping(hosts[1], short_path / "b", protocol) as other,
    ):
        for mapping in (one, other):
            until(lambda m=mapping: m.now["external"], "mapped", lambda m=mapping: (m.lines, gateway.log[-3000:]))  # type: ignore[misc]
        assert one.now["external"] != other.now["external"]
        assert all(host.address in gateway.rules for host in hosts)


def test_a_gateway_behind_a_carriers_nat_is_of_no_use(net: Network, short_path: Path) -> None:
    home = net.lan("home", behind=net.lan("carrier", carrier=True))
    host = home.host("a")
    with Miniupnpd(net, home, external="") as gateway, Mapping(host, short_path / "a") as mapping:
        until(lambda: mapping.now["why"], "asked", lambda: gateway.log[-2000:])
        assert mapping.now["external"] is None
        assert host.address not in gateway.rules


def test_a_router_that_maps_nothing(net: Network, short_path: Path) -> None:
    home: Lan = net.lan("home")
    with Mapping(home.host("a"), short_path / "a") as mapping:
        until(lambda: mapping.now["why"], "asked in vain")
        assert all(name in mapping.now["why"] for name in ("PCP", "NAT-PMP", "UPnP"))
        assert mapping.end() == 0
        assert len(mapping.lines) == 1


@pytest.mark.parametrize("where", ["public", "firewall"])
def test_a_node_with_a_public_address_asks_nobody(net: Network, short_path: Path, where: str) -> None:
    host = net.public("a") if where == "public" else net.lan("office", Nat(Kind.FIREWALL)).host("a")
    with Mapping(host, short_path / "a") as mapping:
        until(lambda: mapping.now["why"], "looked")
        assert "public address" in mapping.now["why"]
