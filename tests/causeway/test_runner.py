"""tests/run.sh: every kind of test is run, a failure is never lost, and the sum is right."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each run starts pytest up to four times

RUNNER = Path(__file__).parents[1] / "run.sh"

SETTINGS = '[tool.pytest.ini_options]\nmarkers = ["slow: s", "lab: l", "serial: e"]\n'
KINDS = """
import pytest
def test_plain(): pass
def test_other(): pass
@pytest.mark.skip(reason="x")
def test_skipped(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.serial
def test_serial(): pass
@pytest.mark.lab
def test_lab():
    import os
    assert os.environ.get("CAUSEWAY_LAB_WRAPPED") == "1" or os.environ.get("NATLAB_REQUIRED") != "1"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with this runner and nothing else."""
    (tmp_path / "tests").mkdir()
    shutil.copy(RUNNER, tmp_path / "tests" / "run.sh")
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    # Not sys.executable's target: a virtual environment is found by the path of its interpreter.
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    return tmp_path


def start(tree: Path, *arguments: str) -> "subprocess.Popen[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # this many starts of pytest: only the plugin that the runner uses
    # Who started the tests in the background of a script has SIGINT ignored, and so would we: a shell cannot undo that.
    command = ["env", "--default-signal=INT", "sh", str(tree / "tests" / "run.sh"), *arguments, "-p", "xdist.plugin"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env | {"JOBS": "1"}
    )


def run(tree: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    with start(tree, *arguments) as process:
        output, errors = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def last(done: "subprocess.CompletedProcess[str]") -> str:
    return done.stdout.strip().splitlines()[-1].rpartition(" in ")[0]


def test_all_runs_each_kind_once_and_sums_them_up(tree: Path) -> None:
    (tree / "tests" / "test_kinds.py").write_text(KINDS)
    done = run(tree, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert last(done) == "===== 5 passed, 1 skipped"


def test_quick_leaves_out_what_takes_time(tree: Path) -> None:
    (tree / "tests" / "test_kinds.py").write_text(KINDS)
    done = run(tree, "quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert last(done) == "===== 2 passed, 1 skipped"


def test_a_failure_in_any_pass_fails_the_run(tree: Path) -> None:
    (tree / "tests" / "test_kinds.py").write_text(
        "import pytest\ndef test_fine(): pass\n"
        + "".join(
            f"{mark}\ndef test_bad_{number}(): assert 0\n"
            for number, mark in enumerate(("", "@pytest.mark.serial", "@pytest.mark.lab"))
        )
    )
    done = run(tree, "all")
    assert done.returncode == 1
    *_, summary, verdict = done.stdout.strip().splitlines()
    assert summary.startswith("===== 3 failed, 1 passed in ")
    assert verdict == "failed: " + ", ".join(
        f"tests {name} (exit 1)" for name in ("beside each other", "one by one", "in simulated networks")
    )


def test_an_error_in_collection_fails_the_run(tree: Path) -> None:
    (tree / "tests" / "test_kinds.py").write_text("import nothing_of_this_name\n")
    assert run(tree, "quick").returncode == 1


def test_no_test_at_all_is_a_failure(tree: Path) -> None:
    (tree / "tests" / "test_kinds.py").write_text("")
    done = run(tree, "quick")
    assert done.returncode == 1
    assert done.stdout.strip().endswith("failed: no test was selected")


def test_ctrl_c_lets_what_runs_aside_clean_up(tree: Path) -> None:
    (tree / "tests" / "test_kinds.py").write_text(
        """
import pathlib, pytest, time
@pytest.fixture
def pod():
    pathlib.Path("pod").touch()
    yield
    time.sleep(1)
    pathlib.Path("pod").unlink()
@pytest.mark.serial
def test_serial(pod): time.sleep(300)
def test_beside(): time.sleep(300)
"""
    )
    with start(tree, "all") as process:
        limit = time.monotonic() + 120
        while not (tree / "pod").exists():
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130
    assert not (tree / "pod").exists()


def test_an_unknown_selection_is_refused(tree: Path) -> None:
    done = run(tree, "some")
    assert done.returncode == 2
    assert done.stderr == "tests/run.sh: 'some' is not a selection; expected all or quick\n"
