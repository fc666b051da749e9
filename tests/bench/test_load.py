"""The load generators count what really happened, and do not take a wrong answer for a right one."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from bench import load
from bench.load import SIZE, Ticker, Wrong
from bench.process import ROOT
from bench.serve import CHUNK
from tests import loopback

Address = tuple[str, int]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Address]]:
    host = loopback.address()
    argv = [sys.executable, "-m", "bench.serve", host]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        assert process.stdin
        ports = json.loads(process.stdout.readline())
        yield {name: (host, port) for name, port in ports.items()}
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.fixture
def crooked() -> Iterator[Callable[[Callable[[socket.socket], None]], Address]]:
    """Makes servers that do to one connection after the other what the test says."""
    listeners = []

    def make(answer: Callable[[socket.socket], None]) -> Address:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        answer(connection)
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        address: Address = listener.getsockname()
        return address

    yield make
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, 5 * CHUNK + 17])
def test_bulk_is_counted_to_the_byte(servers: dict[str, Address], size: int) -> None:
    assert load.push(servers["sink"], size)["bytes"] == size
    assert load.pull(servers["source"], size)["bytes"] == size


@pytest.mark.parametrize(("connections", "total"), [(1, 1), (8, 3), (32, 1000)])
def test_round_trips_and_short_connections_are_counted(
    servers: dict[str, Address], connections: int, total: int
) -> None:
    assert load.rr(servers["echo"], connections, total)["count"] == total
    assert load.connect(servers["echo"], connections, total)["count"] == total


def test_latency_is_given_for_every_sample(servers: dict[str, Address]) -> None:
    result = load.ping(servers["echo"], 500)
    assert result["count"] == 500
    assert 0 < result["p50_us"] <= result["p99_us"]


def test_held_streams_are_really_open_until_the_end_of_input(servers: dict[str, Address]) -> None:
    host, port = servers["echo"]
    argv = [sys.executable, "-m", "bench.load", "hold", host, str(port), "200"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        assert process.stdin
        assert json.loads(process.stdout.readline()) == {"count": 200}
        with open("/proc/net/tcp") as table:
            local = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
            rows = [line.split() for line in table]
        # By the far end: while other sockets come and go the kernel may print one twice.
        assert len({far for _, near, far, state, *_ in rows[1:] if near == local and state == "01"}) == 200
        process.stdin.close()
        assert process.wait(20) == 0


def test_ticks_are_numbered_and_all_come_back(servers: dict[str, Address]) -> None:
    host, port = servers["echo"]
    argv = [sys.executable, "-m", "bench.load", "tick", host, str(port), "1"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        assert process.stdin
        count = 0
        while count < 50:
            process.stdin.write(b"\n")
            process.stdin.flush()
            count = json.loads(process.stdout.readline())["count"]
        process.stdin.close()
        assert json.loads(process.stdout.readline())["count"] >= count
        assert process.wait(40) == 0


def test_an_echo_takes_more_than_its_client_reads(servers: dict[str, Address]) -> None:
    data = random.Random(1).randbytes(20 << 20)  # far more than both sockets buffer
    with socket.create_connection(servers["echo"]) as connection:
        writer = threading.Thread(target=connection.sendall, args=(data,))
        writer.start()
        back = bytearray()
        while len(back) < len(data):
            chunk = connection.recv(1 << 20)
            assert chunk, f"the echo ended after {len(back)} bytes"
            back += chunk
        writer.join()
    assert back == data


def swallow(connection: socket.socket) -> int:
    total = 0
    while data := connection.recv(1 << 20):
        total += len(data)
    return total


def test_a_sink_that_got_less_is_noticed(crooked: Callable[..., Address]) -> None:
    address = crooked(lambda it: it.sendall((swallow(it) - 1).to_bytes(8, "big")))
    with pytest.raises(Wrong, match="sent 1000 bytes, the sink counted 999"):
        load.push(address, 1000)


def test_a_sink_that_never_confirms_is_noticed(crooked: Callable[..., Address]) -> None:
    with pytest.raises(Wrong):
        load.push(crooked(swallow), 1000)


@pytest.mark.parametrize("amount", [999, 1001])
def test_a_source_that_sends_another_amount_is_noticed(crooked: Callable[..., Address], amount: int) -> None:
    def pour(connection: socket.socket) -> None:
        connection.recv(8)
        connection.sendall(bytes(amount))

    with pytest.raises(Wrong, match=f"asked the source for 1000 bytes, got {amount}"):
        load.pull(crooked(pour), 1000)


def flip(connection: socket.socket) -> None:
    """An echo that is right the first time only."""
    connection.sendall(connection.recv(SIZE))
    while data := connection.recv(SIZE):
        connection.sendall(data[:-1] + b"\xff")


def drop(connection: socket.socket) -> None:
    """An echo that is right the first time and then ends."""
    connection.sendall(connection.recv(SIZE))
    connection.recv(SIZE)


@pytest.mark.parametrize("answer", [flip, drop])
def test_a_wrong_answer_is_no_round_trip(
    crooked: Callable[..., Address], answer: Callable[[socket.socket], None]
) -> None:
    with pytest.raises(Wrong):
        load.rr(crooked(answer), 1, 5)
    with pytest.raises(Wrong):
        load.ping(crooked(answer), 5)


def test_a_short_connection_that_ends_early_is_not_counted(crooked: Callable[..., Address]) -> None:
    with pytest.raises(Wrong):
        load.connect(crooked(lambda it: it.sendall(it.recv(SIZE)[:-1])), 2, 5)


def test_an_answer_in_pieces_is_one_round_trip(crooked: Callable[..., Address]) -> None:
    def dribble(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(SIZE):
            for byte in data:
                connection.sendall(bytes([byte]))

    assert load.rr(crooked(dribble), 1, 20)["count"] == 20


def test_nobody_listens_is_one_clear_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        argv = [sys.executable, "-m", "bench.load", "connect", "127.0.0.1", str(unused.getsockname()[1]), "1", "1"]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "refused" in done.stderr


def test_the_ticker_keeps_the_longest_gap_between_echoes() -> None:
    ticker = Ticker(now=0.0, period=0.01)
    messages = ticker.due(0.045)
    assert ticker.sent == 5  # at 0, 10, 20, 30 and 40 ms
    ticker.receive(messages[: 3 * SIZE], 0.1)
    ticker.receive(messages[3 * SIZE :], 0.4)
    assert ticker.report(0.5) == {"gap_ms": pytest.approx(300), "count": 5, "behind": 0}
    assert ticker.report(0.9)["gap_ms"] == pytest.approx(500)  # a gap that goes on counts as long as it is


def test_the_ticker_measures_a_stall_to_its_end_and_forgets_only_when_told() -> None:
    ticker = Ticker(now=0.0, period=0.01)
    messages = ticker.due(0.095)
    assert ticker.report(3.0)["behind"] == 10  # nothing has come back: whoever reads the gap now must go on waiting
    ticker.receive(messages, 8.0)
    assert ticker.report(8.1, reset=True) == {"gap_ms": pytest.approx(8000), "count": 10, "behind": 0}
    assert ticker.report(8.2)["gap_ms"] == pytest.approx(100)


@pytest.mark.parametrize("numbers", [[1], [0, 0], [0, 2]])
def test_the_ticker_notices_loss_and_duplicates(numbers: list[int]) -> None:
    ticker = Ticker(now=0.0, period=0.01)
    ticker.due(0.1)
    with pytest.raises(Wrong):
        ticker.receive(b"".join(number.to_bytes(SIZE, "big") for number in numbers), 0.2)


def test_the_ticker_joins_pieces() -> None:
    ticker = Ticker(now=0.0, period=0.01)
    for byte in ticker.due(0.05):
        ticker.receive(bytes([byte]), 0.06)
    assert ticker.echoed == ticker.sent == 6
