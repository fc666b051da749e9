"""The demo itself: whole, interrupted, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lab.rootless import available, inside, probe

pytestmark = pytest.mark.slow

MODES = ["loopback", pytest.param("simulated", marks=pytest.mark.lab)]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    if request.param == "simulated" and (why := probe() if inside() else available()) is not None:
        refuse = pytest.fail if os.environ.get("NATLAB_REQUIRED") == "1" else pytest.skip
        refuse(why)
    return str(request.param)


@pytest.fixture
def demo(mode: str, short_path: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A running demo whose temporary files are below `short_path`, where nothing may be left."""
    options = ["--loopback"] if mode == "loopback" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "causeway", "demo", "--size", "64", "--out", str(tmp_path / "out"),
         "-o", "json", *options],
        env={**os.environ, "TMPDIR": str(short_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert list(short_path.iterdir()) == []
    assert processes_below(short_path) == []


def processes_below(path: Path) -> list[str]:
    """Command lines of processes that work with files below a path."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(path) in line and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def test_nothing_is_lost(demo: subprocess.Popen[str], mode: str, tmp_path: Path) -> None:
    out, err = demo.communicate(timeout=180)
    assert demo.returncode == 0, err
    told = json.loads(out)
    assert told["ok"] is True
    assert told["network"] == mode
    assert told["received"] == told["size"] == 64 << 20
    assert told["sha256_received"] == told["sha256_expected"]
    killed, returned, silent = told["events"]
    assert "kill -9" in killed["title"]
    assert killed["path_before"] != killed["path_after"]
    assert "returns" in returned["title"]
    assert "blackhole" in silent["title"]
    assert silent["path_before"] != silent["path_after"]
    assert json.loads((tmp_path / "out/demo.json").read_text()) == told
    assert (tmp_path / "out/demo.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["starting four nodes", "at a: "])
def test_it_can_be_interrupted(demo: subprocess.Popen[str], number: int, moment: str) -> None:
    assert demo.stderr is not None
    for line in demo.stderr:
        if moment in line:
            break
    else:
        raise AssertionError(f"the demo ended before {moment!r}")
    if number == signal.SIGINT:
        os.killpg(demo.pid, number)  # as a terminal does
    else:
        demo.send_signal(number)
    err = demo.communicate(timeout=60)[1]
    assert demo.returncode == 128 + number, err
    assert "Traceback" not in err
