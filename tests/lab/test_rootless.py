"""Running a command inside, and ending it from outside."""

import signal
import subprocess
import sys

import psutil
import pytest

from lab.rootless import kill, wrapped

pytestmark = [pytest.mark.slow, pytest.mark.lab, pytest.mark.usefixtures("simulation")]

OUTER = "import sys; from lab.rootless import supervise; sys.exit(supervise([sys.executable, '-c', {inner!r}], patience={patience}))"
OBEYS = "import signal, sys, time; [signal.signal(it, lambda *_: sys.exit(7)) for it in (signal.SIGTERM, signal.SIGINT)]; print('up', flush=True); time.sleep(60)"
MANY = "import os, time; [os.fork() for _ in range(3)]; held = b'x' * (32 << 20); os.write(1, b'up\\n'); time.sleep(60)"
IGNORES = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print('up', flush=True); time.sleep(60); time.sleep(60)"


def started(inner: str, patience: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OUTER.format(inner=inner, patience=patience)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_exit_code_comes_back(number: signal.Signals) -> None:
    with started(OBEYS, 30) as process:
        process.send_signal(number)
        assert process.wait(60) == 7


def test_a_signal_reaches_who_is_not_ready_for_it_yet() -> None:
    with started(f"print('up', flush=True); import time; time.sleep(1); {OBEYS}", 30) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 7


def test_who_does_not_end_is_killed() -> None:
    with started(IGNORES, 0.5) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert process.stdout is not None
        assert process.stdout.read() == ""  # nobody inside holds the pipe any more


def test_what_was_killed_is_gone_at_once() -> None:
    with subprocess.Popen(wrapped([sys.executable, "-c", MANY]), stdout=subprocess.PIPE, text=True) as wrapper:
        assert wrapper.stdout is not None
        assert [wrapper.stdout.readline() for _ in range(8)] == ["up\n"] * 8
        those_inside = psutil.Process(wrapper.pid).children(recursive=True)
        kill(wrapper)
        left = [it for it in those_inside if it.is_running() and it.status() != psutil.STATUS_ZOMBIE]
    assert len(those_inside) == 8
    assert left == []
