"""Who is refused, and that both nodes say why, with the same word."""

import asyncio
import re
import time
from collections.abc import AsyncIterator

import pytest

from lab.node import Node
from services.runtime import config
from services.runtime.identity import Identity, Rejection
from services.runtime.tls import FramedTls
from services.tunnel import dialling, handshake
from services.tunnel.errors import LinkFailed
from services.tunnel.handshake import Greeting
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import until

pytestmark = pytest.mark.slow  # real processes: several nodes


def identity(node: Node) -> Identity:
    """What the node would be with this configuration."""
    return Identity.load(config.load(node.config_file))


async def complains(node: Node, reason: str, *, warned: bool = True) -> None:
    """Waits until log and status of a node's tunnel hold the word."""
    await until(lambda: reason in node.log("tunnel").read_text(), f"{node.name}'s log says {reason}")
    if warned:

        async def shown() -> bool:
            return any(reason in warning for warning in (await node.tunnel()).warnings)

        await until(shown, f"{node.name}'s status says {reason}")


@pytest.fixture
async def stranger(nodes: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """A node whose relayNodes name b, so that it dials b's tunnel without anybody's help."""
    name = f"s{len(list(nodes.folder.iterdir()))}"
    place = nodes.ground.place(name)
    node = Node(place, nodes.folder / name, relays=[nodes.b.place], relay_mode="off", **{"psk": "", **request.param})
    node.start("discovery", "tunnel")
    try:
        await node.ready("discovery", "tunnel")
        yield node
    finally:
        await node.stop(timeout=5)


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        ({"psk": "another secret than that of the tests, long enough"}, "wrong-psk"),
        ({"psk": "a secret of the tests of the tunnel, long enough", "cluster": "elsewhere"}, "wrong-cluster"),
    ],
    indirect=["stranger"],
)
async def test_a_node_with_another_secret_or_of_another_cluster(nodes: Nodes, stranger: Node, reason: str) -> None:
    with pytest.raises(Exception) as caught:
        await stranger.ping("b", timeout=4)
    assert reason in str(caught.value)
    await complains(stranger, reason)
    await complains(nodes.b, reason)


class Visitor:
    """One end of a handshake in this process, with an identity that may have aged or may lie."""

    def __init__(self, nodes: Nodes, name: str, **options: object) -> None:
        self.node = nodes.make(name, **options)
        self.nodes = nodes
        self.identity = identity(self.node)

    async def knock(self, peer: str = "b", greeting: Greeting | None = None) -> handshake.NewSession:
        sock = await dialling.connect(self.nodes.b.place.address, 20006, source=("", 0))
        hello = greeting or Greeting("lab", self.node.name, "0123")
        return await handshake.initiate(sock, self.identity, peer, hello, 10.0)


async def test_an_expired_certificate(nodes: Nodes) -> None:
    """Its own side does not know: it is told."""
    visitor = Visitor(nodes, "old", modules={"edgeTunnel": {"psk": {"path": "psk", "certificateLifetimeSeconds": 3}}})
    # The clock-skew allowance of minutes is too long to wait for: the certificate is one from long ago.
    visitor.identity = Identity.load(config.load(visitor.node.config_file), lambda: time.time() - 3600)
    visitor.identity._clock = time.time
    with pytest.raises(LinkFailed, match="certificate-expired"):
        await visitor.knock()
    await complains(nodes.b, "certificate-expired")


async def test_a_certificate_of_the_future(nodes: Nodes) -> None:
    visitor = Visitor(nodes, "early")
    (visitor.node.folder / "state").rename(visitor.node.folder / "before")
    visitor.identity = Identity.load(config.load(visitor.node.config_file), lambda: time.time() + 86400 * 3)
    visitor.identity._clock = time.time
    with pytest.raises(LinkFailed, match="certificate-not-yet-valid"):
        await visitor.knock()
    await complains(nodes.b, "certificate-not-yet-valid")


async def test_somebody_else_answers_than_was_called(nodes: Nodes) -> None:
    """We notice, and tell the one who answered."""
    visitor = Visitor(nodes, "caller")
    with pytest.raises(LinkFailed, match="name-mismatch"):
        await visitor.knock(peer="c")
    await complains(nodes.b, "name-mismatch")


async def test_a_greeting_in_another_name(nodes: Nodes) -> None:
    visitor = Visitor(nodes, "liar")
    with pytest.raises(LinkFailed, match="refused by the other side: name-mismatch"):
        await visitor.knock(greeting=Greeting("lab", "a", "0123"))
    await complains(nodes.b, "greets as a of cluster lab")
    with pytest.raises(LinkFailed, match="refused by the other side: name-mismatch"):
        await visitor.knock(greeting=Greeting("elsewhere", "liar", "0123"))
    await complains(nodes.b, "of cluster elsewhere")


@pytest.mark.parametrize(
    "hello",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"[" * 60_000,
        b'{"version": 1}',
        b'{"version": 1, "cluster": "lab", "node": "odd", "instance": "1", "resume": "zz", "known": false}',
        b'{"reject": "' + b"x" * 60_000 + b'", "message": "y"}',
        b"\xff" * 100,
    ],
    ids=range(10),
)
async def test_greetings_that_are_none(nodes: Nodes, hello: bytes) -> None:
    visitor = Visitor(nodes, "odd")
    sock = await dialling.connect(nodes.b.place.address, 20006, source=("", 0))
    tls = await FramedTls.start(sock, visitor.identity, server=False)
    assert tls.judge("b") == "b"
    await tls.send(hello)
    try:
        async with asyncio.timeout(20):
            assert b"resume" in hello or not await tls.receive()
    except (EOFError, OSError):
        pass
    tls.abort()
    assert "welcome failed" not in nodes.b.log("tunnel").read_text()
    await nodes.a.ping("b")


async def test_another_version(nodes: Nodes) -> None:
    visitor = Visitor(nodes, "newer")
    sock = await dialling.connect(nodes.b.place.address, 20006, source=("", 0))
    tls = await FramedTls.start(sock, visitor.identity, server=False)
    tls.judge("b")
    await tls.send(b'{"version": 99, "cluster": "lab", "node": "newer", "instance": "1", "resume": "", "known": false}')
    answer = await tls.receive()
    with pytest.raises(Rejection) as caught:
        Greeting.decode(answer)
    assert caught.value.reason == "bad-version" and "99" in str(caught.value)
    tls.abort()
    await complains(nodes.b, "bad-version")


async def test_one_warning_for_one_host_however_often_it_comes(nodes: Nodes) -> None:
    visitor = Visitor(nodes, "insistent")
    for _ in range(30):
        with pytest.raises(LinkFailed):
            await visitor.knock(peer="c")
    warnings = [text for text in (await nodes.b.tunnel()).warnings if "insistent" in text or "name-mismatch" in text]
    assert len(warnings) == len({re.sub(r":\d+", "", text) for text in warnings}) < 5
