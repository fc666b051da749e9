"""The shapes of services with real sockets: nodePort, externalIPs, headless, EdgeMesh's filter; IPv4 and IPv6."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from protos import discovery_pb2
from services.proxy.core.plan import FILTER_LABEL
from services.proxy.listeners import ELSEWHERE
from tests import loopback
from tests.proxy.conftest import Node, make, until
from tests.proxy.neighbours import service

LoopbackIp = Callable[[], str]


def with_node_port(one: discovery_pb2.Service, port: int) -> discovery_pb2.Service:
    one.ports[0].node_port = port
    return one


async def connected(ip: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    sock.setblocking(False)
    async with asyncio.timeout(20):
        await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    return sock


async def target(node: Node, ip: str, port: int) -> tuple[str, str]:
    """Where a TCP client of ip:port is sent: node and address."""
    client = await connected(ip, port)
    outbound, taken = await node.tunnel.next()
    taken.close()
    client.close()
    return outbound.node, outbound.target.address


def errors(node: Node) -> dict[str, str]:
    """Of the addresses that are not served, by "service address"."""
    return {f"{row.label} {row.spot}": row.error for row in node.status().rows if row.error}


async def test_a_node_port_is_served_at_every_address_ipv4_and_ipv6(node: Node, loopback_ip: LoopbackIp) -> None:
    port, ip = loopback.port(), loopback_ip()
    node.discovery.put(with_node_port(service("web", ip, ("b", "10.0.0.1", 8080)), port))
    await node.listening(f"{ip}:80", f"0.0.0.0:{port}", f"[::]:{port}")
    for address in ("127.0.0.1", loopback_ip(), "::1"):
        assert await target(node, address, port) == ("b", "10.0.0.1:8080")
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 8080)))
    await node.listening(f"{ip}:80")
    with pytest.raises(ConnectionRefusedError):
        await connected("127.0.0.1", port)


@pytest.mark.parametrize("ips", [("127.0.0.1", "127.77.0.1", "127.77.0.2"), ("::1",)])
async def test_a_node_ports_datagrams_come_back_from_the_address_they_went_to(node: Node, ips: tuple[str, ...]) -> None:
    port = loopback.port()
    node.discovery.put(with_node_port(service("dns", "", ("b", "10.0.0.1", 53), udp=True, port=53), port))
    await node.listening(f"0.0.0.0:{port}", f"[::]:{port}")
    client = socket.socket(socket.AF_INET6 if ":" in ips[0] else socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(20)
    flows = {}
    for ip in ips:  # one client, several flows: the address it sends to tells them apart
        client.sendto(f"to {ip}".encode(), (ip, port))
        outbound, flows[ip] = await node.tunnel.next()
        assert list(outbound.datagrams) == [f"to {ip}".encode()]
        client.sendto(f"more to {ip}".encode(), (ip, port))
    loop = asyncio.get_running_loop()
    for ip, flow in flows.items():
        async with asyncio.timeout(20):
            assert await loop.sock_recv(flow, 100) == f"more to {ip}".encode()
        flow.send(b"answer")
        assert client.recvfrom(100)[1][:2] == (ip, port)
        flow.close()
    client.close()


async def test_many_clients_of_a_node_port_at_once(node: Node) -> None:
    port = loopback.port()
    node.discovery.put(with_node_port(service("dns", "", ("b", "10.0.0.1", 53), udp=True, port=53), port))
    await node.listening(f"0.0.0.0:{port}", f"[::]:{port}")
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(100)]
    for turn in range(2):
        for number, client in enumerate(clients):
            client.sendto(b"%d:%d" % (number, turn), ("127.0.0.1", port))
    got: dict[int, list[bytes]] = {}
    flows = []
    for _ in clients:
        outbound, flow = await node.tunnel.next()
        flows.append(flow)
        got[int(outbound.client.rpartition(":")[2])] = list(outbound.datagrams)
    assert node.tunnel.opened.empty(), "one flow for each client"
    for number, client in enumerate(clients):
        assert got[client.getsockname()[1]] == [b"%d:0" % number, b"%d:1" % number]
    for sock in [*clients, *flows]:
        sock.close()


async def test_a_listen_address_is_the_only_one_for_node_ports(node_config: Any, loopback_ip: LoopbackIp) -> None:
    ip, port = loopback_ip(), loopback.port()
    own = make(node_config("n", listenAddress=ip))
    async with up(own):
        own.discovery.put(with_node_port(service("web", "", ("b", "10.0.0.1", 8080)), port))
        await own.listening(f"{ip}:{port}")
        assert await target(own, ip, port) == ("b", "10.0.0.1:8080")
        with pytest.raises(ConnectionRefusedError):
            await connected("127.0.0.1", port)


async def test_an_external_ip_is_served_where_it_is_local(node: Node, loopback_ip: LoopbackIp) -> None:
    ip, external = loopback_ip(), loopback_ip()
    web = service("web", ip, ("b", "10.0.0.1", 8080))
    web.external_ips.extend([external, "203.0.113.5", "no address"])
    node.discovery.put(web)
    await node.listening(f"{ip}:80", f"{external}:80")
    assert await target(node, external, 80) == ("b", "10.0.0.1:8080")
    assert errors(node) == {"default/web:80 203.0.113.5:80": ELSEWHERE}


async def test_each_endpoint_of_a_headless_service_is_reached_under_its_address(
    node: Node, loopback_ip: LoopbackIp
) -> None:
    first, second, here = loopback_ip(), loopback_ip(), loopback_ip()
    endpoints = ("b", first, 5432), ("c", second, 5433), ("n", here, 5432), ("d", "127.0.0.1", 5432)
    node.discovery.put(service("db", "", *endpoints))
    await node.listening(f"{first}:5432", f"{second}:5433")
    for _ in range(3):  # no balancing: the client said which one it wants
        assert await target(node, first, 5432) == ("b", f"{first}:5432")
        assert await target(node, second, 5433) == ("c", f"{second}:5433")
    assert "every host has this address" in errors(node)["default/db:80 127.0.0.1:5432"]
    node.discovery.put(service("db", "", ("b", first, 5432), ready=False))
    await node.listening()


async def test_several_named_ports_each_go_to_their_own(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    web = service("web", ip, ("b", "10.0.0.1", 8080))
    web.ports.add(name="metrics", protocol=discovery_pb2.PROTOCOL_TCP, port=9090)
    web.endpoints[0].ports.add(name="metrics", protocol=discovery_pb2.PROTOCOL_TCP, port=9191)
    node.discovery.put(web)
    await node.listening(f"{ip}:80", f"{ip}:9090")
    assert await target(node, ip, 80) == ("b", "10.0.0.1:8080")
    assert await target(node, ip, 9090) == ("b", "10.0.0.1:9191")


async def test_an_endpoint_that_is_its_service_again_is_not_dialled(node: Node, loopback_ip: LoopbackIp) -> None:
    """Who names the service's own address as its endpoint would have each connection make the next one, without end."""
    ip, port = loopback_ip(), loopback.port()
    node.discovery.put(
        service("web", ip, ("", ip, 80)), with_node_port(service("np", "", ("n", "127.0.0.1", port)), port)
    )
    await node.listening(f"{ip}:80", f"0.0.0.0:{port}", f"[::]:{port}")
    for address, number in ((ip, 80), ("127.0.0.1", port)):
        client = await connected(address, number)
        await asyncio.get_running_loop().sock_sendall(client, b"\0")  # no HTTP: no answer is due
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(20):
                await asyncio.get_running_loop().sock_recv(client, 1)
        client.close()
    assert node.status().accepted == 2


async def test_what_a_rule_says_without_effect_is_told(node: Node, loopback_ip: LoopbackIp) -> None:
    one = service("web", loopback_ip(), ("b", "10.0.0.1", 8080))
    one.traffic_policy = '{"loadBalancer": {"simple": "RANDOM"}, "outlierDetection": {"interval": "1s"}}'
    node.discovery.put(one)
    told = "service default/web: its DestinationRule's trafficPolicy.outlierDetection has no effect"
    await until(lambda: node.status().warnings == [told], "it is told")
    node.discovery.remove("default/web")
    await until(lambda: not node.status().warnings, "it is gone")


async def test_prefer_close_prefers_a_direct_path_to_a_relayed_one(node: Node, loopback_ip: LoopbackIp) -> None:
    ip, node.tunnel.relayed = loopback_ip(), {"b"}
    one = service("web", ip, ("b", "10.0.0.1", 8080), ("c", "10.0.0.2", 8080))
    one.traffic_distribution = "PreferClose"
    node.discovery.put(one)
    await node.listening(f"{ip}:80")
    seen = [(await target(node, ip, 80))[0] for _ in range(20)]
    assert seen.count("b") <= 5, "it turns out with the first client that goes there"
    assert set(seen[-10:]) == {"c"}


async def test_clients_of_each_family_get_addresses_of_that_family(node: Node, loopback_ip: LoopbackIp) -> None:
    ip, port = loopback_ip(), loopback.port()
    one = service("web", ip, ("b", "10.0.0.1", 8080), ("b", "fd00::1", 8080), port=port)
    one.cluster_ips.append("::1")
    node.discovery.put(one)
    await node.listening(f"{ip}:{port}", f"[::1]:{port}")
    assert [await target(node, ip, port) for _ in range(3)] == [("b", "10.0.0.1:8080")] * 3
    assert [await target(node, "::1", port) for _ in range(3)] == [("b", "[fd00::1]:8080")] * 3


async def test_the_filter_says_why_and_changes_while_the_proxy_runs(node: Node, loopback_ip: LoopbackIp) -> None:
    plain, labelled = loopback_ip(), loopback_ip()
    theirs = service("theirs", labelled, ("n", labelled, 8080))
    theirs.labels[FILTER_LABEL] = ""
    node.discovery.put(service("ours", plain, ("n", plain, 8080)), theirs)
    await node.listening(f"{plain}:80")
    await node.settled()
    assert "it has the label service.edgemesh" in errors(node)[f"default/theirs:80 {labelled}:80"]
    refusal, _ = await node.tunnel.offer(f"{labelled}:8080")  # nor is it served to other nodes
    assert "not an endpoint" in refusal.message

    path = node.service.config.source
    assert path is not None
    document = yaml.safe_load(path.read_text())
    document["modules"]["edgeProxy"]["serviceFilterMode"] = "FilterIfLabelDoesNotExistsMode"
    path.write_text(yaml.safe_dump(document))
    node.service.reload.look()
    await until(lambda: f"default/ours:80 {plain}:80" in errors(node))
    await node.listening(f"{labelled}:80")
    assert "it lacks the label" in errors(node)[f"default/ours:80 {plain}:80"]
    assert not node.status().warnings


class up:
    """A node with its neighbours, started and stopped."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def __aenter__(self) -> Node:
        await self._node.tunnel.start()
        await self._node.discovery.start()
        await self._node.start()
        return self._node

    async def __aexit__(self, *_: object) -> None:
        await self._node.stop()
        await self._node.discovery.stop()
        await self._node.tunnel.stop()
