"""The machine under the lab: what numbers that were measured on it depend on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

BUSY = 0.1  # share of all cores; what a quiet machine does by itself stays below


def describe() -> dict[str, str]:
    """Kernel, processor, Python, as far as the host tells."""
    found = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "load_before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            found["cpu"] = line.partition(":")[2].strip()
            break
    return found


def foreign_load(seconds: float = 1.0) -> str:
    """What others used of this machine in the last moment, when it is more than a tenth of it; else empty. Blocks for
    so many seconds."""

    def read() -> tuple[int, int]:
        # /proc/stat, "cpu": user nice system idle iowait …, in ticks of all cores together.
        times = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
        return sum(times), times[3] + times[4]

    total, idle_time = read()
    time.sleep(seconds)
    total_after, idle_after = read()
    share = 1 - (idle_after - idle_time) / max(1, total_after - total)
    return f"others used {share:.0%} of its cores before the start" if share > BUSY else ""
