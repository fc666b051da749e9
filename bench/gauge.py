"""What the kernel knows of a process: CPU time, memory, descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def family(pids: Iterable[int]) -> list[int]:
    """The processes and all their descendants that are alive."""
    found: list[int] = []
    queue = list(pids)
    while queue:
        pid = queue.pop()
        if pid in found:
            continue
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                queue += map(int, (task / "children").read_text().split())
        except OSError:
            continue
        found.append(pid)
    return sorted(found)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of all threads so far (/proc/PID/stat, fields 14 and 15)."""
    total = 0
    for pid in pids:
        # The name in field 2 may hold spaces and parentheses: count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size: shared pages count by share (/proc/PID/smaps_rollup)."""
    return _rollup(pids, "Pss:")


def private_bytes(pids: Iterable[int]) -> int:
    """Pages that would be given back if the processes ended."""
    return _rollup(pids, "Private_Clean:") + _rollup(pids, "Private_Dirty:")


def descriptors(pids: Iterable[int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def _rollup(pids: Iterable[int], key: str) -> int:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(key):
                total += int(line.split()[1]) * 1024
    return total
