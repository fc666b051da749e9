"""Services forked from a warm interpreter are processes like any other."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lab.child import Child
from lab.namespace import Namespace
from lab.network import Network
from tests.conftest import WriteConfig

pytestmark = pytest.mark.slow  # the first fork waits for all imports

PATIENCE = 60.0
# Starts a service, says its process id, and never ends by itself.
STARTER = """
import sys, time
from pathlib import Path
from lab.child import Child
print(Child.service("proxy", Path(sys.argv[1]), output=Path(sys.argv[2])).pid, flush=True)
time.sleep(600)
"""


async def started(
    config: Path, log: Path, *, namespace: Namespace | None = None, environment: Mapping[str, str] | None = None
) -> Child:
    """A proxy that serves."""
    child = Child.service("proxy", config, output=log, namespace=namespace, environment=environment)
    socket = config.parent / "run" / "proxy.sock"
    async with asyncio.timeout(PATIENCE):
        while not socket.exists():
            assert child.code is None, child.code
            await asyncio.sleep(0.05)
    return child


async def test_ends_by_signals_and_tells_its_code(node_config: WriteConfig, tmp_path: Path) -> None:
    config = node_config("a")
    polite = await started(config, tmp_path / "log", environment={"CAUSEWAY_LOG_LEVEL": "debug"})
    assert " debug proxy a: " in (tmp_path / "log").read_text()
    assert (polite.code, await polite.stop(PATIENCE), polite.code) == (None, 0, 0)
    killed = await started(config, tmp_path / "log")
    waiting = asyncio.create_task(killed.wait(PATIENCE))
    await asyncio.sleep(0)
    assert killed.kill() == -signal.SIGKILL == await waiting


async def test_what_cannot_start_ends_with_its_message(tmp_path: Path) -> None:
    child = Child.service("relay", tmp_path / "none.yaml", output=tmp_path / "log")
    assert await child.wait(PATIENCE) == 2
    assert "none.yaml" in (tmp_path / "log").read_text()


def test_it_does_not_outlive_who_started_it(node_config: WriteConfig, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", STARTER, str(node_config("a")), str(tmp_path / "log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        service = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
    ended, _, _ = select.select([service], [], [], PATIENCE)
    os.close(service)
    assert ended


@pytest.mark.lab
async def test_it_runs_in_the_namespace_that_was_asked_for(
    network: Network, node_config: WriteConfig, tmp_path: Path
) -> None:
    host = network.public("a")
    child = await started(node_config("a"), tmp_path / "log", namespace=host.namespace)
    try:
        assert os.stat(f"/proc/{child.pid}/ns/net").st_ino == os.fstat(host.namespace.fd).st_ino
    finally:
        child.kill()
