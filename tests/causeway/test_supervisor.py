"""The supervisor over real processes (small_node.py), with real signals."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from causeway.supervisor import AGAIN
from tests.causeway.process import PATIENCE, Process, alive

# The shape of a node: who calls whom.
NODE = ("discovery:serve", "tunnel:serve:discovery", "relay:serve:discovery", "proxy:serve:discovery,tunnel")
NAMES = ("discovery", "tunnel", "relay", "proxy")


def supervise(folder: Path, *spec: str) -> Process:
    return Process([sys.executable, "-m", "tests.causeway.small_node", str(folder), *spec])


def pids(process: Process) -> dict[str, int]:
    """Waits until all four are up; their pids."""
    return {name: int(process.wait_for(rf"^{name} is up, pid (\d+)").group(1)) for name in NAMES}


def test_all_start_at_once_with_an_empty_stdin(tmp_path: Path) -> None:
    with supervise(tmp_path, *NODE) as node:
        assert all(alive(pid) for pid in pids(node).values())
        assert len([line for line in node.lines if line.endswith("stdin b''")]) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_clean_stop_ends_callers_before_what_they_call(tmp_path: Path, number: signal.Signals) -> None:
    with supervise(tmp_path, *NODE) as node:
        running = pids(node)
        node.signal(number)
        assert node.end() == 0
        down = [line.split()[0] for line in node.lines if line.endswith(" is down")]
        assert sorted(down) == sorted(NAMES)
        assert down.index("proxy") < down.index("tunnel") < down.index("discovery") == 3
        assert not any(alive(pid) for pid in running.values())


def test_ctrl_c_in_a_terminal_is_still_an_orderly_stop(tmp_path: Path) -> None:
    with supervise(tmp_path, *NODE) as node:
        pids(node)
        os.killpg(node.pid, signal.SIGINT)  # the terminal sends it to the whole foreground group
        assert node.end() == 0
        assert [line for line in node.lines if line.endswith(" is down")][-1] == "discovery is down"


@pytest.mark.parametrize("victim", NAMES)
def test_a_killed_service_is_started_again_and_the_others_are_left_alone(tmp_path: Path, victim: str) -> None:
    with supervise(tmp_path, *NODE) as node:
        before = pids(node)
        said = len(node.lines)
        os.kill(before[victim], signal.SIGKILL)
        node.wait_for(rf"^{victim} was ended by SIGKILL after \d+\.\d s; restarting in 0\.\d s", after=said)
        after = int(node.wait_for(rf"^{victim} is up, pid (\d+)", after=said).group(1))
        assert after != before[victim]
        assert all(alive(pid) for name, pid in before.items() if name != victim)
        node.signal(signal.SIGTERM)
        assert node.end() == 0


def test_a_service_that_cannot_start_is_tried_ever_more_rarely(tmp_path: Path) -> None:
    with supervise(tmp_path, "crash:crash", "serve:serve") as node:
        node.wait_for(r"^serve is up")
        delays = []
        said = 0
        for _ in range(3):
            match = node.wait_for(r"^crash exited with code 3 after .* s; restarting in ([\d.]+) s", after=said)
            said = node.lines.index(match.string) + 1
            delays.append(float(match.group(1)))
        assert delays == sorted(delays) and len(set(delays)) == 3
        node.signal(signal.SIGTERM)
        assert node.end() == 0  # also while one waits for its restart


def test_a_deaf_service_is_killed_and_the_exit_code_says_so(tmp_path: Path) -> None:
    with supervise(tmp_path, "deaf:deaf", "serve:serve", "--kill", "0.5") as node:
        pid = int(node.wait_for(r"^deaf is up, pid (\d+)").group(1))
        node.wait_for("^serve is up")
        node.signal(signal.SIGTERM)
        assert node.end() == 1
        assert any(re.match(r"deaf: did not end within .* SIGKILL", line) for line in node.lines)
        assert "serve is down" in node.lines
        assert not alive(pid)


def test_a_deaf_caller_does_not_keep_others_from_being_asked(tmp_path: Path) -> None:
    with supervise(tmp_path, "below:serve", "above:deaf:below", "--ask-all", "0.3") as node:
        node.wait_for("^below is up")
        node.wait_for("^above is up")
        node.signal(signal.SIGTERM)
        node.wait_for("^below is down")  # --kill is a minute away
        time.sleep(AGAIN + 0.1)
        node.signal(signal.SIGTERM)
        assert node.end() == 1


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with supervise(tmp_path, *NODE, "deaf:deaf") as node:
        running = [*pids(node).values(), int(node.wait_for(r"^deaf is up, pid (\d+)").group(1))]
        node.signal(signal.SIGTERM)
        node.wait_for("^deaf was asked")
        time.sleep(AGAIN + 0.1)
        node.signal(signal.SIGINT)
        assert node.end() == 1
        assert "deaf: killed by the second signal, SIGKILL" in node.lines
        assert not any(alive(pid) for pid in running)


def test_two_signals_in_one_moment_are_one_request(tmp_path: Path) -> None:
    with supervise(tmp_path, *NODE) as node:
        pids(node)
        node.signal(signal.SIGTERM)
        node.signal(signal.SIGINT)  # another one, for two of one kind that wait are one to the kernel
        assert node.end() == 0


@pytest.mark.parametrize("which", [1, 2, 6])
def test_a_fork_that_fails_is_tried_again(tmp_path: Path, which: int) -> None:
    # The first is the probe, the second a service, the sixth a service's second start.
    with supervise(tmp_path, *NODE, "--no-room", str(which)) as node:
        running = pids(node)
        os.kill(running["relay"], signal.SIGKILL)
        node.wait_for(r"^\w+ cannot be started: Resource temporarily unavailable")
        node.wait_for("^relay is up", after=node.lines.index(f"relay is up, pid {running['relay']}, stdin b''") + 1)
        node.signal(signal.SIGTERM)
        assert node.end() == 0


def test_services_die_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with supervise(tmp_path, *NODE, "deaf:deaf") as node:
        running = [*pids(node).values(), int(node.wait_for(r"^deaf is up, pid (\d+)").group(1))]
        node.signal(signal.SIGKILL)
        assert node.end() == -signal.SIGKILL
        deadline = time.monotonic() + PATIENCE
        while any(alive(pid) for pid in running):
            assert time.monotonic() < deadline, "a service outlived its supervisor"
            time.sleep(0.01)


def test_ready_is_said_once_when_the_probe_succeeds(tmp_path: Path) -> None:
    with supervise(tmp_path, *NODE) as node:
        running = pids(node)
        assert "ready" not in node.lines
        (tmp_path / "ready").touch()
        node.wait_for("^ready$")
        os.kill(running["relay"], signal.SIGKILL)
        node.wait_for("^relay is up", after=len(node.lines))
        node.signal(signal.SIGTERM)
        assert node.end() == 0
        assert node.lines.count("ready") == 1


def test_a_stop_before_ready_is_clean(tmp_path: Path) -> None:
    with supervise(tmp_path, *NODE) as node:
        pids(node)
        node.signal(signal.SIGTERM)
        assert node.end() == 0
        assert "ready" not in node.lines
