"""A topology, built and running: its network, its nodes and its programs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.child import Child
from lab.manifest import Document, service
from lab.namespace import Namespace
from lab.network import Host, Lan, Network
from lab.node import Node, together
from lab.panel import Wire
from lab.place import simulated
from lab.topology import LanSpec, NodeSpec, ServiceSpec, Topology, WireSpec
from services.runtime import address

READY_TIMEOUT = 30.0  # seconds for one service, and some more for each that starts beside it
READY_TIMEOUT_EACH = 3.0


class Stage:
    """Owns everything it builds. Create, `start`, use, `stop`; all in the main thread."""

    def __init__(self, topology: Topology, folder: Path) -> None:
        """Builds the network and writes the nodes' files into `folder`. Raises LabError."""
        self.topology = topology
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self.lans: dict[str, Lan] = {}
        self.nodes: dict[str, Node] = {}
        self.programs: dict[str, list[Child]] = {}
        self.network = Network()
        try:
            self._build()
        except BaseException:
            self.network.close()
            raise

    @property
    def wires(self) -> dict[str, Wire]:
        """The links by the name of the host or LAN that they lead to."""
        every: dict[str, Host | Lan] = {**self.hosts, **self.lans}
        return {name: it.wire for name, it in every.items() if it.wire is not None}

    def services(self, node: str) -> tuple[str, ...]:
        """The services that run on a node unless they were killed."""
        return tuple(self.topology.nodes[node].services)

    def namespace(self, name: str) -> Namespace:
        """Where a host is, or a LAN's router, or "internet". Raises KeyError."""
        if name == "internet":
            return self.network.internet
        return self.lans[name].router if name in self.lans else self.hosts[name].namespace

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        """A command line for that place: `causeway` in it means the node that runs there."""
        variables = [f"CAUSEWAY_LAB_HOST={name}"]
        if name in self.nodes:
            variables.append(f"CAUSEWAY_CONFIG={self.nodes[name].config_file}")
        return ["env", *variables, *argv]

    # -- life

    async def start(self, progress: Callable[[int, int], None]) -> None:
        """Starts programs and nodes and waits until all services serve. progress: how many of how many do.

        Raises NodeError, and LabError for a program that cannot be started.
        """
        for name, (host, _) in self.topology.machines.items():
            self.programs[name] = [self._program(name, line) for line in host.programs]
        for name, node in self.nodes.items():
            node.start(*self.services(name))
        await self._ready([(node, it) for name, node in self.nodes.items() for it in self.services(name)], progress)

    async def kill(self, name: str, *services: str) -> None:
        """SIGKILL to services of a node that run."""
        if services:
            await self.nodes[name].kill(*services)

    async def revive(self, name: str, *services: str) -> None:
        """Starts services of a node again, and waits until they serve."""
        if services:
            node = self.nodes[name]
            node.start(*services)
            await self._ready([(node, it) for it in services], lambda _, __: None)

    async def stop(self) -> None:
        """Ends all processes, then takes the network down."""
        children = [it for programs in self.programs.values() for it in programs]
        try:
            await asyncio.gather(
                *(node.stop(timeout=5) for node in self.nodes.values()), *(it.stop(timeout=1) for it in children)
            )
        finally:
            self.network.close()

    async def _ready(self, wanted: list[tuple[Node, str]], progress: Callable[[int, int], None]) -> None:
        timeout = READY_TIMEOUT + READY_TIMEOUT_EACH * len(wanted)
        ready = 0

        async def one(node: Node, service: str) -> None:
            nonlocal ready
            await node.ready(service, timeout=timeout)
            ready += 1
            progress(ready, len(wanted))

        progress(0, len(wanted))
        await together(one(node, service) for node, service in wanted)

    def _program(self, name: str, line: str) -> Child:
        output = self.folder / name / "programs.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        return Child(self.command(name, ["sh", "-c", line]), output=output, namespace=self.namespace(name))

    # -- building

    def _build(self) -> None:
        for name, host in self.topology.hosts.items():
            ipv6 = self.topology.ipv6 if host.ipv6 is None else host.ipv6
            self._place(self.network.public(name, shape=host.wire.shapes[0], ipv6=ipv6), host.wire)
        for name, lan in _outer_first(self.topology.lans):
            self.lans[name] = made = self.network.lan(
                name,
                lan.nat.nat,
                shape=lan.wire.shapes[0],
                behind=self.lans[lan.behind] if lan.behind else None,
                carrier=lan.carrier,
                ipv6=self.topology.ipv6 if lan.ipv6 is None else lan.ipv6,
            )
            _shape(made.wire, lan.wire)
            for host_name, inside in lan.hosts.items():
                self._place(made.host(host_name, shape=inside.wire.shapes[0]), inside.wire)
        psk = secrets.token_hex(32)
        for name in self.topology.nodes:
            self.nodes[name] = self._node(name, psk)

    def _place(self, host: Host, wire: WireSpec) -> None:
        self.hosts[host.name] = host
        _shape(host.wire, wire)

    def _node(self, name: str, psk: str) -> Node:
        return Node(
            simulated(self.hosts[name]),
            self.folder / name,
            psk=psk,
            cluster=self.topology.cluster,
            relays=[simulated(self.hosts[it]) for it in self.topology.relays],
            services=[it for name, spec in self.topology.services.items() for it in self._manifests(name, spec)],
            config=self.topology.config_of(name),
        )

    def _manifests(self, name: str, spec: ServiceSpec) -> list[Document]:
        """A Service, and an EndpointSlice for each backend."""
        cluster_ip, port = address.split(spec.listen)
        documents: list[Document] = []
        for number, (host, target_port) in enumerate(map(address.split, spec.backends), 1):
            front, slice_ = service(
                name,
                cluster_ip=cluster_ip,
                port=port,
                node=host,
                address=self.hosts[host].address,
                target_port=target_port,
                protocol=spec.protocol.upper(),
            )
            slice_["metadata"]["name"] = f"{name}-{number}"
            documents += [slice_] if documents else [front, slice_]
        return documents

    # -- telling

    def describe(self) -> dict[str, Any]:
        """What was built, as plain data: the schema of `causeway lab -o json`."""
        return {
            "name": self.topology.name,
            "cluster": self.topology.cluster,
            "folder": str(self.folder),
            "hosts": [self._host(name) for name in self.topology.machines],
            "lans": [self._lan(lan) for lan in self.lans.values()],
            "services": [
                {"name": name, "listen": it.listen, "backends": it.backends, "protocol": it.protocol}
                for name, it in self.topology.services.items()
            ],
            "relays": self.topology.relays,
        }

    def _host(self, name: str) -> dict[str, Any]:
        host, (spec, lan) = self.hosts[name], self.topology.machines[name]
        routers: list[Lan] = []
        behind = self.lans.get(lan)
        while behind is not None:
            routers.append(behind)
            behind = behind.behind
        translating = [it for it in routers if it.nat.translates]
        return {
            "name": name,
            "address": host.address,
            "address6": host.address6,
            "lan": lan,
            "routers": [{"name": it.name, "kind": it.nat.kind.value} for it in routers],
            # Who is asked on the internet sees what the outermost translating router puts there.
            "seen_as": translating[-1].wan_address if translating else host.address,
            "wire": _ways(host.wire),
            "node": self._described_node(name, spec.node) if spec.node is not None else None,
            "programs": list(spec.programs),
        }

    def _described_node(self, name: str, node: NodeSpec) -> dict[str, Any]:
        return {
            "services": list(node.services),
            "relay": name in self.topology.relays,
            "config_file": str(self.nodes[name].config_file),
        }

    def _lan(self, lan: Lan) -> dict[str, Any]:
        return {
            "name": lan.name,
            "kind": lan.nat.kind.value,
            "hairpin": lan.nat.hairpin,
            "reset": lan.nat.answers_rst,
            "lifetime": lan.nat.lifetime,
            "network": lan.network,
            "network6": lan.network6,
            "gateway": lan.gateway,
            "wan_address": lan.wan_address,
            "wan_address6": lan.wan_address6,
            "behind": lan.behind.name if lan.behind else "",
            "wire": _ways(lan.wire),
        }


def _outer_first(lans: dict[str, LanSpec]) -> list[tuple[str, LanSpec]]:
    """LANs such that each comes after the one that it is behind. Circles have been refused before."""

    def depth(lan: LanSpec) -> int:
        return 1 + depth(lans[lan.behind]) if lan.behind else 0

    return sorted(lans.items(), key=lambda item: depth(item[1]))


def _shape(wire: Wire | None, spec: WireSpec) -> None:
    out, back = spec.shapes
    if wire is not None and out != back:
        wire.shape(out, back)


def _ways(wire: Wire | None) -> dict[str, Any] | None:
    if wire is None:
        return None
    return {way: vars(shape) for way, shape in (("out", wire.forward), ("in", wire.backward))}
