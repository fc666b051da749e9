"""The README's ten minutes, with the files as they are printed there."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from causeway.__main__ import COMMANDS
from services.proxy.core.catalog import Service
from services.proxy.core.traffic import PREFIX, ROUND_ROBIN, Ring, Traffic, parse
from services.runtime.config import load
from tests import loopback
from tests.causeway.process import PATIENCE, Process

README = (Path(__file__).parents[2] / "README.md").read_text()
NODE, SERVICES, ALLOWED, SPREAD, NETWORK = re.findall(r"^```yaml\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_every_command_of_the_readme_exists() -> None:
    code = re.findall(r"`([^`\n]+)`", README) + re.findall(r"^    (.+)$", README, flags=re.MULTILINE)
    named = {match for line in code for match in re.findall(r"\bcauseway ([a-z]+)\b", line)}
    assert {"up", "status", "ping", "nc", "ca"} <= named <= set(COMMANDS)


def test_every_block_is_a_valid_configuration(tmp_path: Path) -> None:
    for name, text in (("node", NODE), ("ssh", ALLOWED)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        assert load(file).warnings == ()


def test_the_annotations_are_understood() -> None:
    written = yaml.safe_load(SPREAD)["metadata"]["annotations"]
    ours = {name.removeprefix(PREFIX): value for name, value in written.items()}
    traffic = parse(Service("default/web", (), (), (), annotations=ours), ROUND_ROBIN)
    assert traffic == Traffic("header", name="x-user", ring=Ring(1000, 100, 1.1))


def test_the_network_to_rehearse_is_a_valid_topology(tmp_path: Path) -> None:
    file = tmp_path / "net.yaml"
    file.write_text(NETWORK)
    check = [sys.executable, "-m", "causeway", "lab", str(file), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_ten_minutes(tmp_path: Path) -> None:
    # The service's address and the web server's port are the README's: no other test has them.
    block = loopback.block()
    started = []
    for number, name in enumerate(("hub", "edge-b"), start=1):
        folder = tmp_path / name
        folder.mkdir()
        # One machine in place of two: an address for each. Other tests' nodes are not to be met by mDNS.
        settings = yaml.safe_load(NODE.replace("203.0.113.1", f"{block}.1"))
        settings |= {
            "nodeName": name,
            "listenAddress": f"{block}.{number}",
            "cluster": f"readme-{block.replace('.', '-')}",
        }
        (folder / "causeway.yaml").write_text(yaml.safe_dump(settings))
        (folder / "services.yaml").write_text(SERVICES)
    env = {**os.environ, "CAUSEWAY_CONFIG": ""}
    psk = subprocess.run([sys.executable, "-m", "causeway", "ca", "psk"], capture_output=True, check=True).stdout
    try:
        for name in ("hub", "edge-b"):  # one after the other: the first takes the clusterIP
            (tmp_path / name / "psk").write_bytes(psk)
            (tmp_path / name / "psk").chmod(0o600)
            process = Process(
                [sys.executable, "-m", "causeway", "up"], env={"CAUSEWAY_CONFIG": ""}, cwd=str(tmp_path / name)
            )
            started.append(process)
            process.wait_for("^causeway: ready in ")
        web = [
            sys.executable,
            "-m",
            "http.server",
            "8080",
            "--bind",
            "127.0.0.1",
            "--directory",
            str(tmp_path / "edge-b"),
        ]
        server = Process(web)
        started.append(server)
        curl = "import urllib.request as r; print(r.urlopen('http://127.0.9.1:8000/', timeout=30).read().decode())"
        deadline = time.monotonic() + PATIENCE
        while (done := subprocess.run([sys.executable, "-c", curl], capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, done.stderr
        assert "services.yaml" in done.stdout
        ping = [sys.executable, "-m", "causeway", "ping", "edge-b", "-c", "1"]
        done = subprocess.run(ping, cwd=tmp_path / "hub", env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "from edge-b: seq=1" in done.stdout, done.stderr
        status = [sys.executable, "-m", "causeway", "status"]
        done = subprocess.run(status, cwd=tmp_path / "hub", env=env, capture_output=True, text=True, timeout=120)
        assert "edge-b" in done.stdout and "active: " in done.stdout, done.stdout
    finally:
        for process in started:
            process.signal(signal.SIGTERM)
        for process in started:
            process.end()
            process.__exit__(None, None, None)
            print("\n".join(process.lines))
