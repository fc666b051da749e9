"""What is printed follows from what was measured: medians, ratios, targets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rich.console import Console

from bench import gauge, stall
from bench.report import TARGETS, Column, Report, show


def report() -> Report:
    found = Report(host={}, sizes={"rounds": 3})
    for rig, speeds in (("haproxy", [1.0, 1.2, 9.0]), ("causeway", [0.9, 0.3, 1.0])):
        found.columns[rig] = Column(rig)
        for speed in speeds:
            found.columns[rig].add({"bulk_gb_per_s": speed})
    return found


def test_a_ratio_is_of_the_medians_of_one_run() -> None:
    target = next(target for target in TARGETS if target.name.startswith("bulk A→B"))
    found = report()
    assert target.value(found) == 0.9 / 1.2
    assert target.met(found) is False
    found.columns["causeway"].values["bulk_gb_per_s"] = [1.1]
    assert target.met(found) is True


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    empty = Report(host={}, sizes={"rounds": 1})
    assert [target.met(empty) for target in TARGETS] == [None] * len(TARGETS)


def test_a_missed_target_is_marked_plainly() -> None:
    found = report()
    found.columns["nebula"] = Column("nebula", not_run="no tun device")
    found.columns["causeway"].errors = ["bulk: broke"]
    console = Console(width=130, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show(found, console)
    text = console.export_text()
    line = next(line for line in text.splitlines() if "bulk A→B" in line)
    assert "0.75 ×" in line
    assert "≥ 0.80 ×" in line
    assert "MISSED" in line
    assert "nebula: not run: no tun device" in text
    assert "causeway: failed: bulk: broke" in text
    console.file.close()


def test_json_has_the_values_their_medians_and_the_targets() -> None:
    plain = report().as_json()
    assert plain["columns"]["haproxy"]["medians"] == {"bulk_gb_per_s": 1.2}
    assert plain["columns"]["haproxy"]["values"] == {"bulk_gb_per_s": [1.0, 1.2, 9.0]}
    assert {target["name"]: target["met"] for target in plain["targets"]}["bulk A→B / one haproxy hop"] is False


def test_the_99th_percentile_of_few_is_the_longest() -> None:
    assert stall.summary([5.0, 1.0, 3.0]) == {"median_ms": 3.0, "p99_ms": 5.0, "events": 3}
    assert stall.summary([float(number) for number in range(1, 201)])["p99_ms"] == 198.0


BUSY = """
import os, subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
def burn():
    while sum(os.times()[:2]) < 0.5: pass
thread = threading.Thread(target=burn); thread.start(); thread.join()
ballast = bytearray(os.urandom(1 << 20)) * 32
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
print(sum(os.times()[:2]), child.pid, flush=True)
sys.stdin.read()
child.stdin.close(); child.wait()
"""


@pytest.mark.slow
def test_gauges_read_what_a_process_did() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        used, child = process.stdout.readline().split()
        assert gauge.family([process.pid]) == sorted([process.pid, int(child)])
        assert gauge.cpu_seconds([process.pid]) >= float(used) - 0.02 >= 0.48
        assert gauge.pss_bytes([process.pid]) >= gauge.private_bytes([process.pid]) >= 32 << 20
        assert gauge.descriptors([process.pid]) >= 100
