"""The warm process that services are forked from."""

import subprocess
import sys
from pathlib import Path

import pytest


def python(script: str, path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(path)!r})\nfrom causeway import nursery\n{script}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_is_shared_starts_no_thread(tmp_path: Path) -> None:
    done = python("nursery.preload()", tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_import_that_starts_a_thread_is_found(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    done = python("nursery.preload(('noisy',))", tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "RuntimeError: 2 threads after the imports, expected 1: a fork now could deadlock"
    )


@pytest.mark.parametrize(("end", "code"), [("None", 0), ("sys.exit(7)", 7), ("sys.exit('no')", 1), ("1 / 0", 1)])
def test_a_child_ends_as_a_program_does(tmp_path: Path, end: str, code: int) -> None:
    """Its exit handlers run, in it and only in it, and its code is what it says."""
    script = f"""
import atexit, os
me = os.getpid()
def run():
    atexit.register(lambda: print("handler in", "child" if os.getpid() != me else "parent"))
    {end}
pid = nursery.fork("x", run)
print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = python(script, tmp_path)
    assert done.stdout.splitlines() == ["handler in child", f"code {code}"], done.stderr


def test_a_child_is_named_for_top_and_leads_its_own_group(tmp_path: Path) -> None:
    script = """
import os
def run():
    print(open("/proc/self/comm").read().strip(), os.getpgid(0) == os.getpid(), os.getppid() != 1)
os.waitpid(nursery.fork("discovery", run), 0)
"""
    assert python(script, tmp_path).stdout == "cw-discovery True True\n"
