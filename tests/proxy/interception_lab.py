"""Two nodes with public addresses, a pod on each of them, and echo servers at b."""

import asyncio
import contextlib
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.child import Child
from lab.manifest import Document
from lab.namespace import LabError, Namespace, connect
from lab.network import Network
from lab.node import Node, together
from lab.place import simulated
from tests.patience import PATIENCE, until

IP4, IP6 = "10.96.0.10", "fd96::10"
PORT, TARGET = 80, 8080
POD4, POD6 = "10.244.0", "fd44::"

# Answers every datagram and every piece of a stream with where it came from and what it was; "big" with 1200 bytes.
_ECHO = """
import socket, sys, threading
address, port = sys.argv[1], int(sys.argv[2])
def serve(stream):
    with stream:
        while data := stream.recv(65536):
            stream.sendall(data)
def datagrams():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    while True:
        data, source = sock.recvfrom(65536)
        sock.sendto(data, source)
threading.Thread(target=datagrams, daemon=True).start()
listener = socket.create_server((address, port), backlog=128)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def manifest(
    name: str, *, ips: list[str], node: str, address: str, port: int = PORT, target: int = TARGET
) -> list[Document]:
    """A Service for TCP and UDP on all of `ips`, with one backend."""
    labels = {"kubernetes.io/service-name": name}
    ports = [{"name": name, "protocol": name.upper()} for name in ("tcp", "udp")]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ports": [{**it, "port": port, "targetPort": target} for it in ports],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-1", "labels": labels},
            "addressType": "IPv4",
            "ports": [{**it, "port": target} for it in ports],
            "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {"ready": True}}],
        },
    ]


class Lab:
    """Node b has the backends, and a can dial it. a's pod is on an interface with addresses; the one of b's pod has none."""

    def __init__(self, folder: Path) -> None:
        self.network = Network()
        a, b = (self.network.public(name, ipv6=True) for name in ("a", "b"))
        self.host = a.namespace
        self.pod = self.network.namespace("pod", ipv6=True)
        connect(self.host, "pod0", self.pod, "eth0")
        self.host.ip(f"addr add {POD4}.1/24 dev pod0", f"addr add {POD6}1/64 dev pod0 nodad")
        self.far_host, self.far_pod = b.namespace, self.network.namespace("far-pod")
        connect(self.far_host, "pod0", self.far_pod, "eth0")
        self.far_pod.ip(f"addr add {POD4}.3/32 dev eth0", "route add default dev eth0")
        self.far_host.ip(f"route add {POD4}.3 dev pod0")
        self.far_host.sysctl("ipv4/conf/pod0/proxy_arp", 1)
        for host in (self.host, self.far_host):
            for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                host.sysctl(switch, 1)
        self.pod.ip(
            f"addr add {POD4}.2/24 dev eth0",
            f"addr add {POD6}2/64 dev eth0 nodad",
            f"route add default via {POD4}.1",
            f"route add default via {POD6}1",
        )
        self.folder = folder
        self.psk = psk = secrets.token_hex(32)
        more: dict[str, Any] = {"edgeDiscovery": {"bootstrap": [b.address], "mdns": {"enable": False}}}
        self.a = Node(simulated(a), folder / "a", psk=psk, relay_mode="off", modules=more)
        own: dict[str, Any] = {"edgeProxy": {"listenInterface": "eth0", "subNet": "10.96.0.0/12"}}
        self.b = Node(simulated(b), folder / "b", psk=psk, relay_mode="off", modules=own)
        self.web = manifest("web", ips=[IP4, IP6], node="b", address=b.address)
        self._echo = Child([sys.executable, "-c", _ECHO, b.address, str(TARGET)], output=None, namespace=b.namespace)

    async def start(self) -> None:
        """Both nodes serve, a knows the service and b."""
        assert await asyncio.to_thread(self._echo.stdout.readline) == b"ready\n"
        services = ("discovery", "tunnel", "proxy")
        for node in (self.a, self.b):
            node.publish(self.web)
            node.start(*services)
        await together(node.ready(*services) for node in (self.a, self.b))
        await self.a.ping("b", timeout=PATIENCE)

    async def stop(self) -> None:
        """Ends all processes, then takes the network down."""
        await asyncio.gather(self.a.stop(), self.b.stop(), self._echo.stop())
        self.network.close()

    def table(self) -> str:
        """Our table at a as nft lists it; "" without one."""
        return _listed(self.host, "inet causeway")

    async def intercepting(self, *addresses: str) -> None:
        """Waits until a intercepts exactly these ("ip:port"), for TCP and UDP."""
        wanted = sorted((it, network) for it in addresses for network in ("tcp", "udp"))

        async def so() -> bool:
            status = await self.a.proxy()
            return wanted == sorted(
                (it.address, it.network) for it in status.listeners if it.intercepted and not it.error
            )

        await until(so, f"a intercepts {addresses}")


def _listed(place: Namespace, table: str) -> str:
    try:
        return place.run(["nft", "list", "table", *table.split()])
    except LabError as error:
        if "No such file" in str(error):
            return ""
        raise


@contextlib.contextmanager
def stream(place: Namespace, ip: str, port: int = PORT) -> Iterator[socket.socket]:
    """A connection from a place."""
    with place.socket(family=_family(ip)) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((ip, port))
        yield sock


def say(sock: socket.socket, message: bytes) -> None:
    """One round trip over a stream."""
    sock.sendall(message)
    answer = b""
    while len(answer) < len(message):
        piece = sock.recv(65536)
        assert piece, "the stream ended"
        answer += piece
    assert answer == message


@contextlib.contextmanager
def datagrams(place: Namespace) -> Iterator[dict[str, socket.socket]]:
    """A socket for each IP version, by the cluster IP of that version."""
    with contextlib.ExitStack() as stack:
        yield {ip: stack.enter_context(place.socket(socket.SOCK_DGRAM, _family(ip))) for ip in (IP4, IP6)}


def ask(sock: socket.socket, message: bytes, ip: str, port: int = PORT) -> None:
    """One datagram there, and the same one back from where it was sent to. Datagrams may get lost: a few tries."""
    sock.settimeout(2.0)
    for _ in range(15):
        sock.sendto(message, (ip, port))
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            while True:  # late answers to earlier datagrams
                answer, source = sock.recvfrom(65536)
                assert source[:2] == (ip, port), "an answer from elsewhere"
                if answer == message:
                    return
    raise AssertionError(f"no answer to a datagram of {len(message)} bytes")


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET
