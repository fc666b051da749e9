"""Nodes as a person runs them: files in a folder, and `causeway` started there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.causeway.process import Process


class Node:
    """One node on a loopback address of its own, configured in `folder`/causeway.yaml."""

    def __init__(self, folder: Path, name: str, address: str, **modules: dict[str, Any]) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "psk").write_text("a secret of tests only, 32 bytes or more\n")
        (folder / "psk").chmod(0o600)
        discovery = {"mdns": {"enable": False}} | modules.pop("edgeDiscovery", {})
        config = {
            "nodeName": name,
            "cluster": "tests",
            "listenAddress": address,
            "modules": {"edgeDiscovery": discovery, **modules},
        }
        (folder / "causeway.yaml").write_text(yaml.safe_dump(config))

    def start(self, *arguments: str) -> Process:
        """`causeway ARGUMENTS…` in the folder, as a process to be watched; `up` by default."""
        return Process(
            [sys.executable, "-m", "causeway", *(arguments or ("up",))],
            env={"CAUSEWAY_CONFIG": ""},
            cwd=str(self.folder),
        )

    def run(self, *arguments: str, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """`causeway ARGUMENTS…` in the folder, to its end."""
        command = [sys.executable, "-m", "causeway", *arguments]
        env = {**os.environ, "CAUSEWAY_CONFIG": ""}
        return subprocess.run(command, cwd=self.folder, env=env, input=data, capture_output=True, timeout=120)

    def status(self) -> dict[str, Any]:
        done = self.run("status", "-o", "json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def stop(process: Process) -> int:
    process.signal(signal.SIGTERM)
    return process.end()
