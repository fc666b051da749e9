"""The DHT with a thousand nodes: the targets of the project, and that the simulation could miss them."""

import json

import pytest

from lab.simulate.report import Report
from lab.simulate.world import Plan, World

pytestmark = pytest.mark.slow


def simulate(**changes: float) -> Report:
    world = World(Plan(**{"nodes": 1000, "hours": 0.06, **changes}))  # type: ignore[arg-type]
    world.run()
    return Report(world)


@pytest.mark.parametrize("malicious", [0.0, 0.2])
def test_a_thousand_nodes_meet_the_targets(malicious: float) -> None:
    report = simulate(malicious=malicious)
    assert report.lookups > 200
    assert report.ok, report.text()
    known = sum(count >= min(3, report.alive) for count in report.relays)
    assert known >= 0.99 * len(report.relays), "everybody has heard of relays"


def test_the_seed_decides_everything() -> None:
    first, again, other = (json.dumps(simulate(nodes=100, seed=seed).as_json()) for seed in (1, 1, 2))
    assert first == again != other


def test_a_mesh_of_liars_is_seen() -> None:
    """If that met the targets, nothing would be measured."""
    report = simulate(nodes=200, malicious=0.95)
    assert not report.ok and report.success < report.targets.success
