"""What a client sees when the relay under its stream dies: the longest time without an answer."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Callable

from bench.mesh import CausewayRelayed
from bench.process import Child, Failed
from lab.stalls import percentile

PERIOD_MS = 2  # between messages of the client; the resolution of the result
AFTER = 3.0  # seconds watched after the event, at least
PATIENCE = 120.0  # seconds, at most: a stall is measured to its end, or the measurement fails
FRESH = 50  # messages on their way at which the stream counts as flowing (a tenth of a second's)
FROZEN = 5.0  # seconds that a frozen relay stays so


def kill(rig: CausewayRelayed, times: int, tell: Callable[[str], None]) -> list[float]:
    """SIGKILL to the relay in use: its connections are reset. Stall in ms of each; raises Failed on any loss."""

    def event() -> None:
        rig.kill_relay(signal.SIGKILL)
        time.sleep(AFTER)

    return _watch(rig, times, event, tell)


def freeze(rig: CausewayRelayed, times: int, tell: Callable[[str], None]) -> list[float]:
    """SIGSTOP to the relay in use: silence, with all connections open. Stall in ms of each."""

    def event() -> None:
        pid = rig.relay_in_use().pids()["relay"]
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(FROZEN)
        finally:
            os.kill(pid, signal.SIGCONT)

    return _watch(rig, times, event, tell)


def summary(stalls: list[float]) -> dict[str, float]:
    """Median, 99th percentile (nearest rank: of fewer than 100 the longest) and the number of events."""
    ordered = sorted(stalls)
    return {
        "median_ms": statistics.median(ordered),
        "p99_ms": percentile(ordered, 0.99),
        "events": len(ordered),
    }


def _watch(rig: CausewayRelayed, times: int, event: Callable[[], None], tell: Callable[[str], None]) -> list[float]:
    stalls = []
    client = rig.load("tick", "echo", PERIOD_MS)
    try:
        for number in range(times):
            rig.settle()  # both relays are there again, one as a standby
            _ask(client, "reset")  # forget what was before
            event()
            stalls.append(_recovered(client))
            tell(f"{number + 1}/{times}: {stalls[-1]:.0f} ms")
        client.close_input()
        client.read_line(60)  # every message came back, in order; or Failed with what did not
    finally:
        client.stop()
    return stalls


def _recovered(client: Child) -> float:
    """The longest gap in ms, once the stream has caught up: read earlier, a long stall would look short."""
    deadline = time.monotonic() + PATIENCE
    while (answer := _ask(client))["behind"] > FRESH:
        if time.monotonic() > deadline:
            raise Failed(
                f"the stream did not flow again within {PATIENCE:.0f} s; {answer['behind']:.0f} echoes missing"
            )
        time.sleep(0.1)
    return answer["gap_ms"]


def _ask(client: Child, word: str = "") -> dict[str, float]:
    if not client.alive:
        raise Failed(f"the stream did not survive: {client.tail()}")
    client.write_line(word)
    answer: dict[str, float] = json.loads(client.read_line(60))
    return answer
