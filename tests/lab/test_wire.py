"""Wires: decisions with fake time, and real packets over real wires."""

import random
import socket
import threading
import time

import pytest

from lab.network import Network
from lab.panel import Wire
from lab.wire import Direction, Shape
from tests.lab.sockets import listener, tcp, udp, until


def direction(shape: Shape) -> Direction:
    return Direction(shape, random.Random(7))


def swallowed(wire: Wire, frames: int = 1) -> None:
    """Waits until a dark wire has dropped so many frames on their way out."""
    deadline = time.monotonic() + 10
    while wire.count()["forward"]["dropped"] < frames:
        assert time.monotonic() < deadline, "the wire carried them"


def test_delay_is_added() -> None:
    assert direction(Shape(delay=0.02)).due(100.0, 1500) == 100.02


def test_rate_spaces_frames_and_the_queue_is_bounded() -> None:
    wire = direction(Shape(rate=8000, queue=2000))  # 1000 bytes a second
    assert [wire.due(10.0, 1000) for _ in range(4)] == [11.0, 12.0, 13.0, None]
    assert wire.due(12.5, 500) == 13.5
    assert (wire.frames, wire.bytes, wire.dropped) == (5, 4500, 1)


def test_loss_is_a_share() -> None:
    wire = direction(Shape(loss=0.25))
    lost = sum(wire.due(0.0, 100) is None for _ in range(10_000))
    assert 2300 < lost < 2700
    assert lost == wire.dropped


def test_jitter_keeps_the_order() -> None:
    wire = direction(Shape(delay=0.05, jitter=0.02))
    times = [wire.due(now / 1000, 100) for now in range(1000)]
    due = [at for at in times if at is not None]
    assert due == sorted(due)
    assert len({round(at - now / 1000, 6) for now, at in enumerate(due)}) > 10


def test_darkness_swallows_everything() -> None:
    wire = direction(Shape(dark=True))
    assert [wire.due(0.0, 1), wire.due(1.0, 1)] == [None, None]


@pytest.mark.lab
def test_a_round_trip_takes_at_least_the_delay(network: Network) -> None:
    one = network.public("one", shape=Shape(delay=0.03))
    two = network.public("two", shape=Shape(delay=0.01))
    with udp(one) as here, udp(two) as there:
        start = time.monotonic()
        here.sendto(b"ping", there.getsockname())
        _, source = there.recvfrom(100)
        there.sendto(b"pong", source)
        assert here.recv(100) == b"pong"
        assert time.monotonic() - start >= 0.08


@pytest.mark.lab
def test_a_cut_wire_is_silent_and_mends(network: Network) -> None:
    one, two = network.public("one", shape=Shape(delay=0.001)), network.public("two")
    assert one.wire is not None
    with udp(one) as here, udp(two) as there:
        here.sendto(b"before", there.getsockname())
        assert there.recv(100) == b"before"
        one.wire.cut()
        here.sendto(b"lost", there.getsockname())
        swallowed(one.wire)
        one.wire.mend()
        here.sendto(b"after", there.getsockname())
        assert until(there, b"after") == [b"after"]


@pytest.mark.lab
def test_one_direction_can_be_cut_alone(network: Network) -> None:
    one, two = network.public("one", shape=Shape()), network.public("two")
    assert one.wire is not None
    with udp(one) as here, udp(two) as there:
        here.sendto(b"know each other", there.getsockname())  # address resolution needs both directions
        there.recv(100)
        there.sendto(b"yes", here.getsockname())
        here.recv(100)
        one.wire.cut(backward=False)
        here.sendto(b"lost", there.getsockname())
        there.sendto(b"arrives", here.getsockname())
        assert here.recv(100) == b"arrives"
        one.wire.mend()
        here.sendto(b"end", there.getsockname())
        assert until(there, b"end") == [b"end"]


@pytest.mark.lab
@pytest.mark.parametrize("shape", [Shape(delay=0.005), Shape(rate=200e6), Shape(delay=0.002, loss=0.01)])
def test_a_connection_arrives_intact(network: Network, shape: Shape) -> None:
    """Offload frames pass whole and with right checksums, losses are the business of TCP."""
    data = random.Random(1).randbytes(2 << 20)
    server = listener(network.public("two"))
    received = bytearray()

    def receive() -> None:
        peer, _ = server.accept()
        with peer:
            while chunk := peer.recv(65536):
                received.extend(chunk)

    thread = threading.Thread(target=receive)
    thread.start()
    with tcp(network.public("one", shape=shape)) as sock:
        sock.settimeout(60)
        sock.connect(server.getsockname())
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        thread.join(60)
    assert received == data


@pytest.mark.lab
def test_hosts_and_inner_routers_of_a_lan_have_wires_of_their_own(network: Network) -> None:
    carrier = network.lan("carrier", carrier=True)
    home = network.lan("home", behind=carrier, shape=Shape(delay=0.001))
    one, two = home.host("one", shape=Shape(delay=0.001)), home.host("two")
    server = network.public("server")
    assert one.wire is not None and home.wire is not None
    with udp(one) as here, udp(two) as neighbour, udp(server) as there:
        for away in (neighbour, there):
            here.sendto(b"before", away.getsockname())
            assert away.recv(100) == b"before"
        home.wire.cut()
        here.sendto(b"lost", there.getsockname())
        here.sendto(b"inside", neighbour.getsockname())
        assert neighbour.recv(100) == b"inside"
        swallowed(home.wire)
        home.wire.mend()
        one.wire.cut()
        here.sendto(b"lost", neighbour.getsockname())
        here.sendto(b"lost", there.getsockname())
        swallowed(one.wire, 2)
        one.wire.mend()
        for away in (neighbour, there):
            here.sendto(b"after", away.getsockname())
            assert until(away, b"after") == [b"after"]
