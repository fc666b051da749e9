"""The parts of the demo; tests/e2e runs the whole."""

import asyncio
import hashlib
import json
import random
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from causeway.demo import content, download, picture
from causeway.demo.download import Arrivals, Download
from causeway.demo.outcome import Event, Outcome
from lab.child import Child
from lab.place import Place

SIZE = 3 * content.BLOCK + 12_345


def test_the_file_is_the_same_each_time_and_has_its_size() -> None:
    whole = b"".join(content.blocks("seed", SIZE))
    assert len(whole) == SIZE
    assert hashlib.sha256(whole).hexdigest() == content.digest("seed", SIZE)
    assert content.digest("seed", SIZE) != content.digest("other seed", SIZE)
    assert whole[: content.BLOCK] != whole[content.BLOCK : 2 * content.BLOCK]


def test_gaps_are_found_where_they_touch_an_interval() -> None:
    arrivals = Arrivals()
    for at, total in ((0.0, 1), (0.1, 2), (1.1, 3), (1.2, 4), (1.5, 5)):
        arrivals.add(at, total)
    assert arrivals.longest_gap(0.5, 0.6) == pytest.approx(1.0)  # it began before the interval
    assert arrivals.longest_gap(0.05, 0.6, 0.6) == pytest.approx(0.5)  # what follows belongs to another interval
    assert arrivals.longest_gap(1.15, 1.3) == pytest.approx(0.3)
    assert arrivals.longest_inner_gap(1.0, 1.3) == pytest.approx(0.1)
    assert arrivals.longest_gap(2, 3) == 0.0
    assert arrivals.since(1.1) == 3
    assert arrivals.since(9.9) == 0


def test_rates_add_up() -> None:
    arrivals = Arrivals()
    dice, at, total = random.Random(3), 5.0, 0
    for _ in range(1000):
        at += dice.random() * 0.01
        total += dice.randrange(1, 100_000)
        arrivals.add(at, total)
    assert sum(arrivals.rates(0.1)) * 0.1 / 8 == pytest.approx(total)


@asynccontextmanager
async def origin(address: str, *, rate: float = 0.0) -> AsyncIterator[str]:
    child = Child(
        [sys.executable, "-m", "causeway.demo.origin", address, "8080", "seed", str(SIZE), str(rate)], output=None
    )
    try:
        assert await asyncio.to_thread(child.stdout.readline) == b"listening\n"
        yield f"http://{address}:8080/file"
    finally:
        await child.stop()


async def begun(running: Download) -> None:
    """Waits until something has come."""
    for _ in range(1000):
        if running.received:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing came in 10 s")


@pytest.mark.parametrize("curl", [True, False])
@pytest.mark.parametrize("rate", [0.0, 200e6])
async def test_download(
    loopback_ip: Callable[[], str], curl: bool, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not curl:
        monkeypatch.setattr(download.shutil, "which", lambda _: None)
    address = loopback_ip()
    async with origin(address, rate=rate) as url:
        running = Download(url, Place("a", address))
        assert await running.end() == 0
    assert running.received == SIZE
    assert running.sha256 == content.digest("seed", SIZE)
    assert running.arrivals.totals[-1] == SIZE


async def test_a_download_that_breaks_is_told_by_the_client(loopback_ip: Callable[[], str]) -> None:
    async with origin(loopback_ip(), rate=8e6) as url:
        running = Download(url, Place("a", "127.0.0.1"))
        await begun(running)
    # The origin is gone.
    assert await running.end() != 0
    assert running.received < SIZE


async def test_a_download_can_be_cancelled(loopback_ip: Callable[[], str]) -> None:
    async with origin(loopback_ip(), rate=8e6) as url:
        running = Download(url, Place("a", "127.0.0.1"))
        await begun(running)
        running.cancel()
        assert not running.running


def finished(**changes: object) -> Outcome:
    outcome = Outcome("simulated", "", 1 << 20, received=1 << 20, sha256_expected="ab", sha256_received="ab")
    outcome.client, outcome.client_exit, outcome.seconds = "curl", 0, 2.0
    outcome.rates = [1e6 * index for index in range(20)]
    outcome.paths = [(0.0, "a → r1 → b"), (1.0, "a → r2 → b")]
    outcome.events = [
        Event("r1 killed <SIGKILL>", 1.0, "a → r1 → b", "a → r2 → b", 0.0123),
        Event("r1 returns", 1.2, "a → r2 → b"),
        Event("blackhole r2", 1.5, "a → r2 → b", "a → r1 → b", 0.25),
    ]
    for name, value in changes.items():
        setattr(outcome, name, value)
    return outcome


def test_verdicts() -> None:
    assert finished().ok
    for outcome, word in (
        (finished(received=1000), "not the same"),
        (finished(client_exit=18), "curl ended with 18"),
        (finished(sha256_received="cd"), "expected ab"),
        (finished(events=[]), "proves less"),
        (finished(events=finished().events[:2]), "proves less"),  # it was over before the second relay went silent
        (finished(events=[*finished().events[:2], Event("blackhole r2", 1.5, "two", "two")]), "proves less"),
        (finished(events=[Event("killed", 1.0, "one", "one")]), "proves less"),
    ):
        assert not outcome.ok
        assert word in outcome.verdict()


def test_json_is_stable() -> None:
    told = json.loads(finished().to_json())
    assert told["ok"] is True
    assert told["lost"] == 0
    assert told["events"] == [
        {
            "title": "r1 killed <SIGKILL>",
            "at": 1.0,
            "stall_ms": 12.3,
            "path_before": "a → r1 → b",
            "path_after": "a → r2 → b",
        },
        {"title": "r1 returns", "at": 1.2, "stall_ms": 0.0, "path_before": "a → r2 → b", "path_after": "a → r2 → b"},
        {
            "title": "blackhole r2",
            "at": 1.5,
            "stall_ms": 250.0,
            "path_before": "a → r2 → b",
            "path_after": "a → r1 → b",
        },
    ]
    assert len(told["rates"]) == 20


def test_table_and_picture_show_the_events(tmp_path: Path) -> None:
    console = Console(width=160, file=(tmp_path / "out").open("w"))
    console.print(finished().table())
    console.file.close()
    assert "12.3 ms" in (tmp_path / "out").read_text()
    texts = [
        it.text or ""
        for it in ElementTree.fromstring(picture.draw(finished())).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "r1 killed <SIGKILL>: stall 12 ms" in texts
    assert "a → r1 → b" in texts


def test_the_picture_of_nothing_is_still_a_picture() -> None:
    empty = Outcome("loopback", "asked for", 1 << 20)
    ElementTree.fromstring(picture.draw(empty))
    assert not empty.ok
