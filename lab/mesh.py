"""The mesh of the demo and of the end-to-end tests: a and b cannot reach each other, r1 and r2 can be reached.

Simulated, a is behind a masquerading router and b behind a symmetric one, which no hole punching gets
through; r1 and r2 have public addresses. On loopback, a and b do not listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from lab.manifest import Document, service
from lab.nat import Kind, Nat
from lab.network import Lan, Network
from lab.node import SERVICES, Node, together
from lab.place import Loopback, Place, simulated
from lab.wire import Shape

# One way, in seconds. Round trips: a–r1 20 ms, a–r2 24 ms, a–r1–b 40 ms, a–r2–b 48 ms.
HOME_SHAPE = Shape(delay=0.005)
RELAY_SHAPES = (Shape(delay=0.005), Shape(delay=0.007))


class Mesh:
    """Four nodes; use `loopback` or `simulated`."""

    def __init__(
        self, places: list[Place], cluster_ips: tuple[str, str], folder: Path, ground: Network | Loopback
    ) -> None:
        self.folder = folder
        self.psk = secrets.token_hex(32)
        self.cluster_ips = cluster_ips
        """Addresses for services, at a and at b: two nodes on one machine cannot both listen on one."""
        self.homes: dict[str, Lan] = {}
        """The LANs of a simulated mesh by the name of the node in them."""
        self._ground = ground
        self._services: dict[str, tuple[str, ...]] = {}
        relays = places[2:]
        self.nodes = {
            it.name: Node(it, folder / it.name, psk=self.psk, relays=relays, **_options(it, relays)) for it in places
        }
        self.a, self.b, self.r1, self.r2 = (self.nodes[it.name] for it in places)

    @classmethod
    def loopback(cls, folder: Path) -> Mesh:
        """On the loopback interface of this machine; needs no rights."""
        loopback = Loopback(random.Random())
        places = [loopback.place(name, listens=name[0] == "r") for name in ("a", "b", "r1", "r2")]
        return cls(places, (loopback.address(), loopback.address()), folder, loopback)

    @classmethod
    def simulated(
        cls,
        folder: Path,
        *,
        home: Shape = HOME_SHAPE,
        relays: tuple[Shape, Shape] = RELAY_SHAPES,
        a_home: Shape | None = None,
        a_nat: Nat | None = None,
        b_nat: Nat | None = None,
        b_public: bool = False,
    ) -> Mesh:
        """In a simulated network. home: the links of the two LANs; relays: those of r1 and r2.

        a_home: the link of a's LAN when it differs. a_nat: of a's router, masquerading by default. b_nat: of b's, symmetric by
        default. b_public: b has a
        public address, at which a reaches it without a relay.
        """
        network = Network()
        try:
            lans = {"a": network.lan("home-a", a_nat, shape=a_home or home)}
            if not b_public:
                lans["b"] = network.lan("home-b", b_nat or Nat(Kind.SYMMETRIC), shape=home)
            places = [simulated(lan.host(name), lan.wire) for name, lan in lans.items()]
            publics = {**({"b": home} if b_public else {}), **{f"r{1 + i}": shape for i, shape in enumerate(relays)}}
            places += [simulated(network.public(name, shape=shape)) for name, shape in publics.items()]
            mesh = cls(places, ("127.88.0.1", "127.88.0.1"), folder, network)
            mesh.homes = lans
            return mesh
        except BaseException:
            network.close()
            raise

    @property
    def network(self) -> Network:
        """The simulated network. Raises TypeError on loopback."""
        if not isinstance(self._ground, Network):
            raise TypeError("a mesh on loopback has no network of its own")
        return self._ground

    @property
    def is_simulated(self) -> bool:
        """Whether there are real NATs between the nodes."""
        return isinstance(self._ground, Network)

    def congestion(self, name: str) -> None:
        """How TCP of all nodes controls its rate, from the next connection on; without it as on this host. "reno" is
        everywhere. BBR, where it is the host's, lets each flow rest for 200 ms every 10 s (PROBE_RTT), whatever its path:
        who measures silences had better not have it."""
        for node in self.nodes.values():
            if node.place.namespace is None:
                raise TypeError("a mesh on loopback has no network of its own")
            node.place.namespace.sysctl("ipv4/tcp_congestion_control", name)

    def another_place(self, name: str) -> Place:
        """A place for one more node, from which r1 and r2 can be reached."""
        if isinstance(self._ground, Network):
            return simulated(self._ground.public(name))
        return self._ground.place(name)

    def publish(self, name: str, port: int, target_port: int, protocol: str = "TCP") -> str:
        """Makes b's `target_port` a service at a, and returns the address there. Earlier services go."""
        for node, cluster_ip in zip((self.a, self.b), self.cluster_ips, strict=True):
            node.publish(self.service(name, cluster_ip, port, target_port, protocol))
        return self.cluster_ips[0]

    def service(self, name: str, cluster_ip: str, port: int, target_port: int, protocol: str = "TCP") -> list[Document]:
        """Manifests of a service whose backend is at b."""
        return service(
            name,
            cluster_ip=cluster_ip,
            port=port,
            node=self.b.name,
            address=self.b.place.address,
            target_port=target_port,
            protocol=protocol,
        )

    async def start(self, *, lean: bool = False) -> None:
        """Starts all nodes and waits until they serve. lean: without the services that have nothing to do here,
        the relays of a and b and the tunnels and proxies of r1 and r2."""
        self._services = dict.fromkeys(self.nodes, SERVICES)
        if lean:
            self._services |= dict.fromkeys(("a", "b"), ("discovery", "tunnel", "proxy"))
            self._services |= dict.fromkeys(("r1", "r2"), ("discovery", "relay"))
        await self.heal()

    async def heal(self) -> None:
        """Starts what does not run, lets everybody be heard again, and waits until all serve."""
        for name, node in self.nodes.items():
            node.unsilence()
            if missing := [it for it in self._services[name] if not node.running(it)]:
                node.start(*missing)
        await together(node.ready(*self._services[name]) for name, node in self.nodes.items())

    async def warm(self) -> bool:
        """Whether both ends have an active link over one relay and a warm one over the other."""
        for node, peer in ((self.a, self.b), (self.b, self.a)):
            links = await node.links(peer.name)
            if {it.relay for it in links if it.state in ("active", "standby")} != {self.r1.name, self.r2.name}:
                return False
            if [it.state for it in links].count("active") != 1:
                return False
        return True

    @contextlib.asynccontextmanager
    async def running(self, *, lean: bool = False) -> AsyncIterator[Mesh]:
        """Started, for the length of a block; see `start`."""
        try:
            await self.start(lean=lean)
            yield self
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Ends all processes, then takes the network down."""
        with contextlib.ExitStack() as stack:
            if isinstance(self._ground, Network):
                stack.callback(self._ground.close)
            await asyncio.gather(*(node.stop(timeout=5) for node in self.nodes.values()))


def _options(place: Place, relays: list[Place]) -> dict[str, Any]:
    return {"relay_mode": "auto" if place in relays else "off"}
