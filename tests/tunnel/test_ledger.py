"""Metrics of what streams carried: whole, by service and path, and no stranger makes one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from protos import tunnel_pb2 as pb
from services.tunnel import ledger
from services.tunnel.core.frames import Reason
from services.tunnel.errors import UnknownPeer
from services.tunnel.ledger import Ledger
from services.tunnel.peers import PeerInfo
from tests.tunnel.inside import inside
from tests.tunnel.local import (
    UDP,
    Attached,
    Backend,
    Exit,
    dial,
    receive,
    reset,
    send,
    tcp_pair,
    udp_pair,
    until,
    was_reset,
)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"causeway_tunnel_{name}", labels) or 0.0


def carried(service: str, direction: str) -> float:
    return value("bytes_total", service=service, path="direct", direction=direction)


@pytest.mark.slow
async def test_bytes_first_bytes_and_errors_by_service_and_path(short_path: Path, backend: Backend) -> None:
    async with inside(short_path) as net:
        a, b = await net.tunnel("a"), await net.tunnel("b", listens=True)
        attached = Attached(a)
        async with Exit(b) as proxy:
            proxy.service = "ns/exit"

            # A stream: counted while it is open, and what comes later at its end.
            client, accepted = tcp_pair()
            target = pb.Target(network=pb.NETWORK_TCP, address=backend.address, service="ns/entry")
            attached.give(pb.Attach(open=pb.Outbound(node="b", target=target)), accepted)
            served = await backend.accept()
            await send(client, b"x" * 100_000)
            assert await receive(served, 100_000)
            assert not value("first_byte_seconds_count", service="ns/entry", path="direct"), "nothing has come yet"
            await send(served, b"y" * 300)
            assert await receive(client, 300)
            assert value("first_byte_seconds_count", service="ns/entry", path="direct") == 1
            for node in (a, b):
                node.tunnel.streams.count()
                node.tunnel.streams.count()  # twice is once
            assert (carried("ns/entry", "out"), carried("ns/entry", "in")) == (100_000, 300)
            assert (carried("ns/exit", "out"), carried("ns/exit", "in")) == (300, 100_000)
            await send(client, b"z" * 7)
            assert await receive(served, 7)
            client.close()
            served.close()
            await until(lambda: carried("ns/entry", "out") == carried("ns/exit", "in") == 100_007, "all is counted")
            assert value("first_byte_seconds_count", service="ns/entry", path="direct") == 1
            assert value("first_byte_seconds_sum", service="ns/entry", path="direct") > 0

            # A flow: the same, the datagram that came before the socket included.
            one, accepted = udp_pair()
            echo, peer = udp_pair()

            async def decide(_: pb.Offer) -> object:
                return peer

            proxy.decide = decide  # type: ignore[assignment]
            proxy.service = "ns/exit-udp"
            target = pb.Target(network=UDP, address=backend.address, service="ns/entry-udp")
            attached.give(pb.Attach(open=pb.Outbound(node="b", target=target, datagrams=[b"early"])), accepted)
            assert await receive(echo, 5) == b"early"
            await send(echo, b"answer")
            assert await receive(one, 6) == b"answer"
            for node in (a, b):
                node.tunnel.streams.count()
            assert (carried("ns/entry-udp", "out"), carried("ns/entry-udp", "in")) == (5, 6)
            assert (carried("ns/exit-udp", "out"), carried("ns/exit-udp", "in")) == (6, 5)
            assert value("first_byte_seconds_count", service="ns/entry-udp", path="direct") == 1

            # Errors: refused by the exit, a node that nobody knows, broken in the middle.
            async def refuse(_: pb.Offer) -> object:
                return pb.Refusal(reason=pb.REFUSAL_REASON_DENIED, message="not you")

            def errors(reason: str, path: str = "direct") -> float:
                return value("stream_errors_total", service="ns/entry", path=path, reason=reason)

            proxy.decide = refuse  # type: ignore[assignment]
            target = pb.Target(network=pb.NETWORK_TCP, address=backend.address, service="ns/entry")
            client, accepted = tcp_pair()
            attached.give(pb.Attach(open=pb.Outbound(node="b", target=target)), accepted)
            assert await was_reset(client)
            await until(lambda: errors("denied") == 1, "the refusal is counted")
            known = a.view.resolve

            async def resolve(name: str, **how: Any) -> PeerInfo | None:
                if name == "nobody":
                    raise UnknownPeer(name)
                return await known(name, **how)

            a.view.resolve = resolve  # type: ignore[method-assign]
            client, accepted = tcp_pair()
            outbound = pb.Outbound(node="nobody", target=target)
            outbound.timeout.FromMilliseconds(200)
            attached.give(pb.Attach(open=outbound), accepted)
            assert await was_reset(client)
            await until(lambda: errors("unknown_node", "none") == 1, "so is the unknown node")

            proxy.decide = dial
            client, accepted = tcp_pair()
            attached.give(pb.Attach(open=pb.Outbound(node="b", target=target)), accepted)
            served = await backend.accept()
            await send(served, b"half")
            assert await receive(client, 4)
            reset(served)
            assert await was_reset(client)
            await until(lambda: errors("reset") == 1, "and the reset")
            for sock in (one, echo, client):
                sock.close()
        attached.close()


def test_the_number_of_services_is_bounded() -> None:
    books = Ledger()
    names = {books.name(f"ns/{number}") for number in range(3 * ledger.MAX_SERVICES)}
    assert len(names) == ledger.MAX_SERVICES + 1 and ledger.OTHER in names
    assert books.name("ns/0") == "ns/0"


def test_a_peer_s_reasons_are_bounded_too() -> None:
    books = Ledger()
    for code in range(200, 300):
        books.refused("ns/bounded", "direct", Reason(code, "whatever"))
    assert value("stream_errors_total", service="ns/bounded", path="direct", reason="other") == 100


def test_a_look_at_what_has_not_moved_costs_nothing_more() -> None:
    """Ten thousand idle streams are looked at every few seconds."""
    books = Ledger()

    class Idle:
        counted = (3, 4)
        pairing = SimpleNamespace()  # whoever asks for the path fails

        def carried(self) -> tuple[int, int]:
            return 3, 4

    books.look([Idle(), Idle()])  # type: ignore[list-item]
