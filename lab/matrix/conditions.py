"""Under which conditions an event is looked at: the network, and what reaches what in it."""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from lab.mesh import RELAY_SHAPES, Mesh
from lab.nat import Kind, Nat
from lab.node import WITHOUT_RELAY, NodeError
from lab.wire import Shape

SETTLE = 60.0  # seconds until the mesh is whole, which takes one to three after a relay has returned
PORT, TARGET_PORT = 7000, 7001


class Ground(enum.Enum):
    """Who can reach whom."""

    RELAYED = "relayed"
    """a behind a masquerading router, b behind a symmetric one: only relays help."""
    SYMMETRIC = "symmetric"
    """The same with a symmetric router at a: a forgotten flow gets another outside port."""
    DIRECT = "direct"
    """b has a public address: a reaches it directly, and over the relays if need be."""


@dataclass(frozen=True)
class Net:
    """What the wires do. 40 ms there and back between a and b on the path in use."""

    name: str
    title: str
    loss: float
    """Share of the packets on a's link that vanish, in each direction."""
    bulk_rate: float
    """Bits per second of the bulk stream: what the path carries with some room, so that requests beside it do not
    wait for it. With 2 % loss and 20 ms to the relay TCP is good for about 5 Mbit/s (Mathis et al., 1997)."""

    @property
    def caption(self) -> str:
        """What a reader of the numbers must know."""
        return f"{self.title}, TCP bulk paced at {self.bulk_rate / 1e6:g} Mbit/s"

    def mesh(self, folder: Path, ground: Ground) -> Mesh:
        """A mesh that does not run yet."""
        # a–r1–b: 2 × (5 + 5 + 5 + 5) ms; a–b directly: 2 × (10 + 10) ms.
        home = Shape(delay=0.010 if ground is Ground.DIRECT else 0.005)
        mesh = Mesh.simulated(
            folder,
            home=home,
            relays=RELAY_SHAPES,
            a_home=replace(home, loss=self.loss),
            a_nat=Nat(Kind.SYMMETRIC) if ground is Ground.SYMMETRIC else None,
            b_public=ground is Ground.DIRECT,
        )
        if self.loss:
            for node in mesh.nodes.values():
                # A wire loses frames. Of 64 KiB frames TCP could not lose 2 %: it would lose all of a window or nothing.
                assert node.place.namespace is not None
                node.place.namespace.ip("link set eth0 gso_max_segs 1")
        else:
            mesh.congestion("reno")  # where frames are lost it would be too slow: there it is what the host has
        for node, cluster_ip in zip((mesh.a, mesh.b), mesh.cluster_ips, strict=True):
            services = [
                mesh.service(f"echo-{protocol.lower()}", cluster_ip, PORT, TARGET_PORT, protocol)
                for protocol in ("TCP", "UDP")
            ]
            node.publish([document for it in services for document in it])
        return mesh


NETS = (Net("clean", "40 ms RTT", 0.0, 16e6), Net("lossy", "40 ms RTT, 2 % loss", 0.02, 2e6))


async def settled(mesh: Mesh, ground: Ground) -> None:
    """Waits until all runs and both ends have what they are to have: a link over each relay, or a direct one.
    Raises NodeError."""
    await mesh.heal()
    await mesh.a.ping(mesh.b.name, timeout=SETTLE)
    deadline = time.monotonic() + SETTLE
    while not await _whole(mesh, ground):
        if time.monotonic() > deadline:
            raise NodeError(
                f"a and b are not {ground.value} as they should be after {SETTLE:.0f} s: {await paths(mesh)}"
            )
        await asyncio.sleep(0.1)


async def paths(mesh: Mesh) -> str:
    """The links of a to b, and of b to a, for people."""
    told = []
    for node, peer in ((mesh.a, mesh.b), (mesh.b, mesh.a)):
        links = [f"{it.relay or 'direct'} {it.state}" for it in await node.links(peer.name)]
        told.append(f"{node.name}: {', '.join(links) or 'no link'}")
    return "; ".join(told)


async def _whole(mesh: Mesh, ground: Ground) -> bool:
    try:
        if ground is not Ground.DIRECT:
            return await mesh.warm()
        links = [await node.active(peer.name) for node, peer in ((mesh.a, mesh.b), (mesh.b, mesh.a))]
        return all(it is not None and it.kind in WITHOUT_RELAY for it in links)
    except grpc.aio.AioRpcError:  # a tunnel that is busy may answer too late
        return False
