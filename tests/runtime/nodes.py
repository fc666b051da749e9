"""Identities for tests, with a clock that tests set."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services.runtime import config
from services.runtime.identity import Identity

PSK = "test-only-psk-0123456789-abcdefghijklmnop"
OTHER_PSK = "another-psk-9876543210-zyxwvutsrqponmlkji"


@dataclass
class Clock:
    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


def load(folder: Path, name: str, *, psk: str = PSK, cluster: str = "default", tunnel: Any = None) -> config.Config:
    """A configuration in a folder of its own under `folder`."""
    home = folder / f"{cluster}.{name}"
    home.mkdir(exist_ok=True)
    (home / "psk").write_text(psk + "\n")
    path = home / "causeway.yaml"
    keys = {"nodeName": name, "cluster": cluster, "modules": {"edgeTunnel": tunnel or {}}}
    path.write_text(yaml.safe_dump(keys))
    return config.load(path)


Make = Callable[..., Identity]


def identity(folder: Path, name: str, clock: Callable[[], float] = time.time, **keys: Any) -> Identity:
    """A node's identity in psk mode."""
    return Identity.load(load(folder, name, **keys), clock)
