"""The whole of it, small: one event, one network, ended before its time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.matrix.results import COLUMNS, Matrix

pytestmark = [pytest.mark.slow, pytest.mark.lab]

LONG = 60.0  # seconds for what should take one


@pytest.mark.usefixtures("simulation")
def test_a_killed_relay_is_measured_and_an_end_keeps_the_results(tmp_path: Path) -> None:
    argv = ["--runs", "9", "--events", "relay-reset", "--networks", "clean", "--logs", str(tmp_path / "logs")]
    argv += [
        f"--{what}={tmp_path}/matrix.{kind}" for what, kind in (("json", "json"), ("table", "md"), ("picture", "svg"))
    ]
    with subprocess.Popen([sys.executable, "-m", "lab.matrix", *argv], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                if "bulk" in line:
                    break
            os.kill(process.pid, signal.SIGTERM)
            told += process.stderr.readlines()
            assert process.wait(LONG) == 128 + signal.SIGTERM, told
        finally:
            process.kill()
    matrix = Matrix.from_json((tmp_path / "matrix.json").read_text())
    assert matrix.interrupted
    assert matrix.whole, matrix.failures or told
    cells = matrix.cells()
    assert {key[2:] for key in cells} == set(COLUMNS)
    for cell in cells.values():
        assert cell.runs >= 1
        assert cell.never == 0
        assert cell.longest is not None
        assert cell.longest < LONG
        assert cell.sent > 0
        if cell.protocol == "TCP":
            assert (cell.lost, cell.repeated, cell.swapped, cell.foreign, cell.resets) == (0, 0, 0, 0, 0)
    run = next(it for it in matrix.runs if any(found.load == "bulk" for found in it.findings))
    assert run.before.startswith("a: r")  # over a relay, …
    used = run.before.split()[1]
    assert f"{used} active" not in run.after.split(";")[0]  # … and not over that one any more
    assert any(0.03 < found.normal < 5 for found in run.findings)  # the path's 40 ms, and what a busy machine adds
    assert "relay reset" in (tmp_path / "matrix.md").read_text()
    assert (tmp_path / "matrix.svg").stat().st_size > 1000
    assert json.loads((tmp_path / "matrix.json").read_text())["events"] == {"relay-reset": "relay reset (kill -9)"}
