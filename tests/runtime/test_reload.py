"""A configuration file that changes under a running service."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.runtime import config as configuration
from services.runtime.config import Config
from services.runtime.reload import Reload

RELAYS = "modules.edgeTunnel.relayNodes"
log = logging.getLogger("causeway.test")


class File:
    """A configuration file, written as a ConfigMap volume does it: by swapping a symlink."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "causeway.yaml"
        self._folder = folder
        self._version = 0

    def write(self, **modules: Any) -> None:
        self.write_text(yaml.safe_dump({"nodeName": "a", "modules": modules}))

    def write_text(self, text: str) -> None:
        self._version += 1
        version = self._folder / f"v{self._version}"
        version.write_text(text)
        link = self._folder / "link"
        link.symlink_to(version)
        os.replace(link, self.path)


@pytest.fixture
def file(tmp_path: Path) -> File:
    it = File(tmp_path)
    it.write()
    return it


def follow(name: str, file: File) -> tuple[Reload, list[Config]]:
    reload = Reload(name, configuration.load(file.path), log)
    applied: list[Config] = []
    reload.on(RELAYS, applied.append)
    return reload, applied


def test_what_can_be_applied_is_and_once(file: File) -> None:
    reload, applied = follow("discovery", file)
    reload.look()
    assert not applied
    file.write(edgeTunnel={"relayNodes": [{"nodeName": "r1", "advertiseAddress": ["192.0.2.1"]}]})
    reload.look()
    reload.look()
    assert [node.node_name for it in applied for node in it.modules.edge_tunnel.relay_nodes] == ["r1"]
    assert not reload.warnings


def test_a_file_with_an_error_changes_nothing_and_says_so_until_it_is_mended(file: File) -> None:
    reload, applied = follow("discovery", file)
    file.write(edgeTunnel={"relayNodes": [{"nodeName": "r1"}], "relayNode": []})
    reload.look()
    assert not applied
    assert len(reload.warnings) == 1
    assert "stays in force" in reload.warnings[0] and "relayNode" in reload.warnings[0]
    file.write_text("{")
    reload.look()
    assert not applied and len(reload.warnings) == 1
    file.path.unlink()
    reload.look()
    assert not applied and len(reload.warnings) == 1
    file.write(edgeTunnel={"relayNodes": [{"nodeName": "r1"}]})
    reload.look()
    assert len(applied) == 1 and not reload.warnings


@pytest.mark.parametrize(
    ("modules", "who"),
    [
        ({"edgeTunnel": {"maxStreams": 7}}, {"tunnel"}),
        ({"edgeTunnel": {"listenPort": 7}}, {"tunnel", "discovery"}),
        ({"edgeProxy": {"enable": False}}, {"proxy"}),
        ({"edgeTunnel": {"psk": {"enable": False}, "ca": {"enable": True}}}, {"discovery", "tunnel", "relay", "proxy"}),
    ],
)
def test_the_rest_needs_a_restart_of_who_reads_it(file: File, modules: dict[str, Any], who: set[str]) -> None:
    follows = {name: follow(name, file)[0] for name in ("discovery", "tunnel", "relay", "proxy")}
    file.write(**modules)
    for reload in follows.values():
        reload.look()
    assert {name for name, reload in follows.items() if reload.warnings} == who
    assert all(f"needs a restart of the {name} service" in follows[name].warnings[0] for name in who)
    file.write()  # as it was
    for reload in follows.values():
        reload.look()
        assert not reload.warnings


def test_what_cannot_be_applied_is_said_once_and_tried_again(file: File, caplog: pytest.LogCaptureFixture) -> None:
    reload, _ = follow("discovery", file)
    room = False
    tries = []

    def apply(config: Config) -> None:
        tries.append(config)
        if not room:
            raise OSError("no room")

    reload.on("modules.edgeDiscovery.bootstrap", apply)
    file.write(edgeDiscovery={"bootstrap": ["192.0.2.1"]})
    for _ in range(3):
        reload.look()
        assert reload.warnings == ["modules.edgeDiscovery.bootstrap not applied: no room"]
    assert len(tries) == 3
    assert [it.message for it in caplog.records].count("configuration not applied") == 1
    file.write(edgeDiscovery={"bootstrap": ["192.0.2.1"]}, edgeTunnel={"relayNodes": [{"nodeName": "r1"}]})
    reload.look()
    assert len(tries) == 4
    room = True
    reload.look()
    reload.look()
    assert len(tries) == 5 and not reload.warnings


def test_a_file_of_brackets_does_not_end_the_service(file: File) -> None:
    reload, applied = follow("discovery", file)
    file.write_text("[" * 60_000)
    reload.look()
    (warning,) = reload.warnings
    assert "stays in force" in warning and "nested more than 200 deep" in warning
    file.write(edgeTunnel={"relayNodes": [{"nodeName": "r1"}]})
    reload.look()
    assert len(applied) == 1 and not reload.warnings
