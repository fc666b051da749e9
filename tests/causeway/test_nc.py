"""`causeway nc` from both sides: a user's shell on one, the attach socket of the contract on the other."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from protos import tunnel_pb2
from tests.causeway.attach_end import AttachEnd, answer


def nc(
    folder: Path, *, data: bytes | None = None, target: str = "127.0.0.1:22"
) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "causeway", "nc", "edge-b", target, "--run-dir", str(folder), "-w", "7.5"]
    if data is None:
        return subprocess.run(command, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    return subprocess.run(command, capture_output=True, timeout=120, input=data)


def drain(stream: socket.socket) -> bytes:
    return b"".join(iter(lambda: stream.recv(65536), b""))


def test_the_request_is_the_contracts(tmp_path: Path) -> None:
    seen: list[tunnel_pb2.Attach] = []

    def script(control: socket.socket, attach: tunnel_pb2.Attach, stream: socket.socket) -> None:
        seen.append(attach)
        answer(control, attach)

    with AttachEnd(tmp_path, script):
        assert nc(tmp_path, target="[::1]:22").returncode == 0
    (attach,) = seen
    assert attach.id != 0
    assert attach.open.node == "edge-b"
    assert attach.open.target.network == tunnel_pb2.NETWORK_TCP
    assert attach.open.target.address == "[::1]:22"
    assert attach.open.timeout.ToMilliseconds() == 7500


def test_half_close_then_an_answer_that_depends_on_all_of_the_question(tmp_path: Path) -> None:
    question = random.Random(5).randbytes(3_000_001)  # more than both socket buffers

    def script(control: socket.socket, attach: tunnel_pb2.Attach, stream: socket.socket) -> None:
        answer(control, attach)
        stream.sendall(drain(stream)[::-1])  # drain ends only if end of file on stdin was passed on

    with AttachEnd(tmp_path, script):
        done = nc(tmp_path, data=question)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == question[::-1]


def test_both_directions_full_at_once_do_not_block_each_other(tmp_path: Path) -> None:
    question = random.Random(6).randbytes(4_000_000)

    def script(control: socket.socket, attach: tunnel_pb2.Attach, stream: socket.socket) -> None:
        answer(control, attach)
        while chunk := stream.recv(10_000):  # an echo: it stops reading while its own writing is stuck
            stream.sendall(chunk)

    with AttachEnd(tmp_path, script):
        assert nc(tmp_path, data=question).stdout == question


def test_it_ends_when_the_other_side_closes_though_stdin_is_open(tmp_path: Path) -> None:
    def script(control: socket.socket, attach: tunnel_pb2.Attach, stream: socket.socket) -> None:
        answer(control, attach)
        stream.sendall(b"SSH-2.0-test\r\n")

    reader, writer = os.pipe()
    try:
        with AttachEnd(tmp_path, script):
            command = [sys.executable, "-m", "causeway", "nc", "edge-b", "127.0.0.1:22", "--run-dir", str(tmp_path)]
            done = subprocess.run(command, stdin=reader, capture_output=True, timeout=120)
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"SSH-2.0-test\r\n", b"")


@pytest.mark.parametrize("late", [False, True], ids=["result first", "end of stream first"])
def test_a_refusal_is_one_line_and_exit_code_1(tmp_path: Path, late: bool) -> None:
    refusal = tunnel_pb2.Refusal(reason=tunnel_pb2.REFUSAL_REASON_DENIED, message="edge-b does not allow 127.0.0.1:22")

    def script(control: socket.socket, attach: tunnel_pb2.Attach, stream: socket.socket) -> None:
        if late:
            stream.shutdown(socket.SHUT_RDWR)
        answer(control, attach, refusal)

    with AttachEnd(tmp_path, script):
        done = nc(tmp_path)
    assert done.stderr == b"causeway: refused (denied): edge-b does not allow 127.0.0.1:22\n"
    assert (done.returncode, done.stdout) == (1, b"")


def test_what_another_node_says_cannot_touch_the_terminal(tmp_path: Path) -> None:
    refusal = tunnel_pb2.Refusal(reason=tunnel_pb2.REFUSAL_REASON_DENIED, message="no\n\x1b[2Jfine – ok")
    with AttachEnd(tmp_path, lambda control, attach, stream: answer(control, attach, refusal)):
        assert nc(tmp_path).stderr.decode() == "causeway: refused (denied): no\\n\\x1b[2Jfine – ok\n"


def test_a_tunnel_that_dies_before_its_result_is_an_error(tmp_path: Path) -> None:
    with AttachEnd(tmp_path, lambda control, attach, stream: None):
        done = nc(tmp_path)
    assert done.stderr == b"causeway: the tunnel went away before the stream was accepted: see its log\n"
    assert done.returncode == 1


def test_a_reader_that_went_away_ends_it_quietly(tmp_path: Path) -> None:
    def script(control: socket.socket, attach: tunnel_pb2.Attach, stream: socket.socket) -> None:
        answer(control, attach)
        try:
            while True:
                stream.sendall(bytes(65536))
        except OSError:
            pass  # what is tested: the stream is closed, not read for ever

    with AttachEnd(tmp_path, script):
        shell = (
            f"{sys.executable} -m causeway nc edge-b 127.0.0.1:80 --run-dir {tmp_path} </dev/null | head -c 10 | wc -c"
        )
        done = subprocess.run(shell, shell=True, capture_output=True, timeout=120)
    assert done.stdout.split() == [b"10"]
    assert done.stderr == b""
