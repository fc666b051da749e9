"""What is measured of a rig under load, once per round. Sizes are pinned so that runs can be compared."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.gauge import cpu_seconds, descriptors, family, pss_bytes
from bench.process import Failed
from bench.rig import Rig, Roles

GB = 1e9
TIMEOUT = 180.0  # seconds for one load generator
CONNECTIONS = 32  # of `rr`, and at a time of `connect`

Values = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How much of each; `rounds` times."""

    rounds: int
    bulk: int  # bytes
    warm_up: int  # bytes, before the first bulk of each rig
    round_trips: int
    connections: int
    pings: int
    streams: int
    kills: int
    idle_seconds: int


FULL = Sizes(5, 1 << 30, 128 << 20, 60_000, 6_000, 5_000, 10_000, 20, 20)
QUICK = Sizes(2, 128 << 20, 32 << 20, 10_000, 1_000, 1_000, 1_000, 3, 5)


def bulk(rig: Rig, sizes: Sizes) -> Values:
    """One stream near → far: GB/s until the sink has confirmed the count, CPU seconds per GB by place."""
    size = int(sizes.bulk * rig.bulk_share)
    roles = rig.roles()
    before = _cpu(roles)
    result = rig.measure("push", "sink", size, timeout=TIMEOUT)
    after = _cpu(roles)
    values = {"bulk_gb_per_s": size / GB / result["seconds"]}
    for place, seconds in after.items():
        values[f"bulk_cpu_{place}"] = (seconds - before[place]) / (size / GB)
    return values


def round_trips(rig: Rig, sizes: Sizes) -> Values:
    """64-byte round trips a second on 32 connections."""
    result = rig.measure("rr", "echo", CONNECTIONS, sizes.round_trips, timeout=TIMEOUT)
    return {"rr_per_s": result["count"] / result["seconds"]}


def connections(rig: Rig, sizes: Sizes) -> Values:
    """Short connections a second: connect, 64 bytes there and back, close; 32 at a time."""
    result = rig.measure("connect", "echo", CONNECTIONS, sizes.connections, timeout=TIMEOUT)
    return {"connections_per_s": result["count"] / result["seconds"]}


def latency(rig: Rig, sizes: Sizes) -> Values:
    """One 64-byte round trip after the other on one connection, in µs."""
    result = rig.measure("ping", "echo", sizes.pings, timeout=TIMEOUT)
    return {"p50_us": result["p50_us"], "p99_us": result["p99_us"]}


EACH_ROUND: dict[str, Callable[[Rig, Sizes], Values]] = {
    "bulk": bulk,
    "rr": round_trips,
    "connect": connections,
    "latency": latency,
}


def warm_up(rig: Rig, sizes: Sizes) -> Values:
    """Bulk that does not count."""
    rig.measure("push", "sink", int(sizes.warm_up * rig.bulk_share), timeout=TIMEOUT)
    return {}


def idle_streams(rig: Rig, sizes: Sizes) -> Values:
    """Memory (growth of PSS) and descriptors that an open, idle stream costs at each end, in bytes and pieces.

    In each role only the processes that carry streams are counted, all of them together.
    """
    streams = min(sizes.streams, rig.max_streams)
    roles = rig.roles()
    before = _memory(roles)
    load = rig.load("hold", "echo", streams)
    try:
        opened = json.loads(load.read_line(TIMEOUT))["count"]
        if opened != streams:
            raise Failed(f"{rig.name}: {opened} of {streams} streams opened")
        time.sleep(2)  # what opening them needed for a moment only is given back
        after = _memory(roles)
        load.close_input()
    finally:
        load.stop()
    values: Values = {"idle_streams": streams}
    for key, amount in after.items():
        values[f"idle_stream_{key}"] = (amount - before[key]) / streams
    return values


def _cpu(roles: Roles) -> dict[str, float]:
    return {place: cpu_seconds(family(pids)) for place, pids in vars(roles).items() if pids}


def _memory(roles: Roles) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, pids in vars(roles).items():
        if pids:
            found[f"bytes_{place}"] = pss_bytes(family(pids))
            found[f"descriptors_{place}"] = descriptors(family(pids))
    return found
