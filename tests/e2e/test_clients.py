"""Real clients and servers at the two ends of a mesh: a part of the table that `make clients` prints."""

from pathlib import Path

import pytest

from lab.clients.cases import CASES
from lab.clients.results import Result, Results, absent
from lab.clients.stage import PATHS, Stage
from tests.e2e.conftest import print_logs, require_simulation

pytestmark = [pytest.mark.slow, pytest.mark.lab]


RELAYED = ("HTTP", "gRPC", "iperf3", "DNS")
"""Clients that are tried over both paths: long and short connections, datagrams. The program tries all."""


@pytest.mark.parametrize("path", PATHS)
async def test_real_clients_are_served(path: str, short_path: Path) -> None:
    """All at once, so each has the others' traffic beside its own."""
    require_simulation()
    results = Results({})
    cases = [it for it in CASES if path == "direct" or it.name in RELAYED]
    stage = Stage(short_path, path, cases, results.rows.append, brief=True)
    try:
        await stage.open()
        await stage.run(together=True)
        failed = [it for it in results.rows if it.result == "failed"]
        if failed:
            print_logs(stage.mesh)
        assert not failed
    finally:
        await stage.close()
    tried = {it.client for it in results.rows if it.result == "ok"}
    assert "gRPC" in tried, "it comes with the tests; what is not installed is skipped, or has failed"
    assert tried | {it.client for it in results.rows if it.result == "skipped"} == {it.name for it in cases}


def test_a_failure_is_told() -> None:
    fine, broken = Result("x", "a", "direct", "ok", "1/s"), Result("x", "b", "direct", "failed", "no answer")
    assert Results({}, [fine]).ok
    assert not Results({}, [fine, broken]).ok
    assert not Results({}, []).ok


@pytest.mark.parametrize(("required", "result"), [("", "skipped"), ("1", "failed")])
def test_what_is_not_installed_has_failed_where_it_is_required(
    required: str, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATLAB_REQUIRED", required)
    assert absent("Redis", "direct", ["redis-server"]) == Result(
        "Redis", "all", "direct", result, "not installed: redis-server"
    )
    fine = Result("x", "a", "direct", "ok", "1/s")
    assert Results({}, [fine, absent("Redis", "direct", ["redis-server"])]).ok is not bool(required)
