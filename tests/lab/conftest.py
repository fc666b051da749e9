"""A fresh simulated network for each test."""

import os
from collections.abc import Iterator

import pytest

from lab.network import Network
from lab.rootless import available, probe


@pytest.fixture(scope="session")
def simulation() -> None:
    """Skips where networks cannot be simulated; fails instead with NATLAB_REQUIRED=1."""
    why = probe()
    if why is not None:
        refuse = pytest.fail if os.environ.get("NATLAB_REQUIRED") == "1" else pytest.skip
        refuse(f"{available() or 'run the tests under `python -m lab.rootless`'}: {why}")


@pytest.fixture
def network(simulation: None) -> Iterator[Network]:
    with Network() as made:
        yield made
