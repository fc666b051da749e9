"""Fixtures for all tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from lab.folder import short_folder
from tests import loopback

# A PSK for tests; real ones are random.
PSK = "test-only-psk-0123456789-abcdefghijklmnop"

# No test asserts a time: the machine may be busy with something else.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

WriteConfig = Callable[..., Path]


@pytest.fixture
def loopback_ip() -> Callable[[], str]:
    """Makes loopback addresses that no other test uses."""
    return loopback.address


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets (tmp_path often is not)."""
    with short_folder() as path:
        yield path


@pytest.fixture
def node_config(short_path: Path) -> WriteConfig:
    """`node_config("edge-a", cluster=…, psk=…, modules={…}, **other keys)` writes a folder with a configuration
    and a PSK, and returns the path of the configuration. mDNS and interception are off unless asked for."""

    def write(name: str, *, psk: str | None = PSK, **keys: Any) -> Path:
        folder = short_path / name
        folder.mkdir()
        if psk is not None:
            (folder / "psk").write_text(psk + "\n")
        keys.setdefault("modules", {}).setdefault("edgeDiscovery", {}).setdefault("mdns", {"enable": False})
        keys["modules"].setdefault("edgeProxy", {}).setdefault("interception", {"enable": "off"})
        path = folder / "causeway.yaml"
        path.write_text(yaml.safe_dump({"nodeName": name, **keys}))
        return path

    return write
