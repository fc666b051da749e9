"""Which configuration file a command reads, and in which run directory the sockets of its node are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from causeway.errors import USAGE, CommandError

if TYPE_CHECKING:
    from services.runtime.config import Config

ENVIRONMENT = "CAUSEWAY_CONFIG"
DEFAULTS = (
    Path("causeway.yaml"),
    Path("/etc/causeway/causeway.yaml"),
    Path("/etc/edgemesh/config/edgemesh-agent.yaml"),  # where EdgeMesh's own chart mounts it
)


def find(given: Path | None) -> Path | None:
    """The configuration file to use, None for the built-in values. A file that was named must exist (CommandError)."""
    if given is not None:
        return _existing(given, "--config")
    named = os.environ.get(ENVIRONMENT, "")
    if named:
        return _existing(Path(named), f"${ENVIRONMENT}")
    return next((path for path in DEFAULTS if path.is_file()), None)


def load(given: Path | None) -> Config:
    """The configuration as `find` names it. All its problems are reported at once, one line each (CommandError)."""
    from services.runtime import config

    path = find(given)
    try:
        return config.load(path)
    except config.ConfigError as error:
        raise CommandError(*map(str, error.problems), code=USAGE) from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}: name a readable file with --config", code=USAGE) from None


def run_directory(config: Path | None, run_dir: Path | None) -> Path:
    """The directory of the node's sockets: the one given, else the configuration's `runDir`."""
    if run_dir is not None:
        if config is not None:
            raise CommandError("--config and --run-dir say the same thing: give one of them", code=USAGE)
        return run_dir.absolute()
    return load(config).run_dir


def not_running(name: str, path: Path) -> str:
    """The line for a service whose socket is not there or does not answer."""
    what = "no socket" if not path.exists() else "nobody answers"
    return f"{name} is not running ({what} at {path}): start it with causeway up"


def _existing(path: Path, origin: str) -> Path:
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise CommandError(f"{origin}: {path} {what}; expected a YAML file", code=USAGE)
    return path
