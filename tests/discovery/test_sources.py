"""Sources and the driver's own tasks, in the test's process, with clocks and name servers of our own."""

import asyncio
import logging
import random
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from protos import discovery_pb2 as pb
from services.discovery import driver, wire
from services.discovery.bell import Bell
from services.discovery.core.backoff import Backoff
from services.discovery.core.model import Address, AddressSource, Peer, Record, Reservation, Signed, Source
from services.discovery.core.own import RelayReport, TunnelReport
from services.discovery.core.snapshot import Snapshot
from services.discovery.driver import Driver
from services.discovery.resolver import Resolver
from services.discovery.sources.cache import Cache
from services.discovery.sources.static import StaticSource
from services.runtime import config as configuration
from services.runtime.identity import Identity
from services.runtime.process import Service

from ..conftest import WriteConfig
from .nodes import PATIENCE, Part, part, running, until


@asynccontextmanager
async def task(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    made = asyncio.create_task(work)
    try:
        yield made
    finally:
        made.cancel()
        await asyncio.gather(made, return_exceptions=True)


def ips(peer: Peer | None) -> list[str]:
    return [address.ip for address in peer.record.addresses] if peer is not None else []


class Names(Resolver):
    """A name server that knows what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, tuple[str, ...]] = {}
        self.asked = 0

    async def resolve(self, host: str) -> tuple[str, ...]:
        self.asked += 1
        if host not in self.known:
            raise OSError("no such name")
        return self.known[host]


# relayNodes


async def test_names_are_looked_up_in_the_background_and_kept(
    node_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    relays = [
        {"nodeName": "r1", "advertiseAddress": ["r1.example", "203.0.113.9:30007"]},
        {"nodeName": "a", "advertiseAddress": ["a.example"]},
    ]
    config = node_config(
        "a", modules={"edgeTunnel": {"relayNodes": relays, "advertiseAddress": ["198.51.100.1:20006"]}}
    )
    directory = part(config).directory
    names = Names()
    monkeypatch.setattr("services.discovery.sources.static.REFRESH", 0.05)
    source = StaticSource(directory, names, random.Random(1))
    source._backoff = Backoff(0.01, 0.02, random.Random(1))
    # At once, before any name server has answered:
    assert ips(directory.peers.get("r1")) == ["203.0.113.9"]
    r1 = directory.peers.get("r1")
    assert r1 is not None and (r1.relay_rank, r1.record.relay_port) == (1, 30007)
    assert [a.ip for a in directory.record().addresses] == ["198.51.100.1"]
    async with task(source.run()):

        async def warned() -> bool:
            return len(directory.board.warnings) == 2

        await until(warned, "names that do not resolve are named")
        assert "r1.example in advertiseAddress does not resolve (no such name)" in " ".join(directory.board.warnings)
        names.known = {"r1.example": ("203.0.113.1", "2001:db8::1"), "a.example": ("198.51.100.2",)}

        async def resolved() -> bool:
            return len(ips(directory.peers.get("r1"))) == 3 and not directory.board.warnings

        await until(resolved, "the names are resolved")
        assert ips(directory.peers.get("r1")) == ["203.0.113.1", "2001:db8::1", "203.0.113.9"]
        assert [(a.ip, a.source) for a in directory.record().addresses] == [
            ("198.51.100.1", AddressSource.ADVERTISED),
            ("198.51.100.2", AddressSource.ADVERTISED),
        ]
        names.known, asked = {}, names.asked

        async def asked_again() -> bool:
            return names.asked > asked + 4

        await until(asked_again, "names are looked up again")
        assert len(ips(directory.peers.get("r1"))) == 3  # the last answer stays
        names.known = {"r1.example": ("203.0.113.5",), "a.example": ("198.51.100.2",)}

        async def moved() -> bool:
            return ips(directory.peers.get("r1")) == ["203.0.113.5", "203.0.113.9"]

        await until(moved, "a new answer replaces the old one")


async def test_names_that_are_edited_away_are_forgotten_and_new_ones_asked_at_once(node_config: WriteConfig) -> None:
    answered = asyncio.Event()

    class Slow(Names):
        async def resolve(self, host: str) -> tuple[str, ...]:
            if host == "slow.example":
                await answered.wait()
            return await super().resolve(host)

    directory = part(node_config("a", modules={"edgeTunnel": {"advertiseAddress": ["bad.example"]}})).directory
    names = Slow()
    source = StaticSource(directory, names, random.Random(1))

    def edit(*advertise: str) -> None:
        directory.settings = replace(directory.settings, advertise=advertise)
        source.apply()
        directory.wake()

    async def warned() -> bool:
        return bool(directory.board.warnings)

    async def resolved() -> bool:
        return [it.ip for it in directory.record().addresses] == ["198.51.100.2"]

    async with task(source.run()):
        await until(warned, "the name does not resolve")
        edit("slow.example")
        assert not directory.board.warnings, "nobody asks for the name any more"
        await asyncio.sleep(0.05)  # the lookup is under way
        edit("new.example")
        names.known = {"new.example": ("198.51.100.2",), "slow.example": ("198.51.100.1",)}
        answered.set()
        await until(resolved, "the new name is looked up")
        assert source._resolved.keys() == {"new.example"}


# The cache


def neighbour(home: Part, config: Path) -> Signed:
    """A record that a node with this configuration has signed now."""
    identity = Identity.load(configuration.load(config))
    now = home.directory.wall()
    record = Record(identity.node_name, identity.cluster, int(now * 1000), now, now + 600, "i", (Address("10.0.0.1"),))
    return wire.seal(identity, record)


async def test_a_disk_that_cannot_be_written_is_a_warning(node_config: WriteConfig) -> None:
    home = part(node_config("a"))
    cache = Cache(home.directory)
    assert cache.load() == Snapshot()
    home.directory.take(neighbour(home, node_config("b")), Source.LOOKUP)
    blocked = home.settings.state_dir / "registry.json"
    blocked.mkdir()
    await cache.close()
    (warning,) = home.directory.board.warnings
    assert "registry.json cannot be written" in warning and "will not remember peers" in warning
    assert not list(home.settings.state_dir.glob(".registry*"))  # nothing half-written is left
    blocked.rmdir()
    await cache.close()
    assert home.directory.board.warnings == [] and blocked.is_file()


async def test_what_is_written_comes_back_verified(node_config: WriteConfig) -> None:
    config = node_config("a")
    home = part(config)
    cache = Cache(home.directory)
    home.directory.own.tunnel = TunnelReport(7, (Reservation("r", 0.01),))
    for name in ("b", "c"):
        home.directory.take(neighbour(home, node_config(name)), Source.LOOKUP)
    revision = home.directory.record().revision
    await cache.close()
    stamp = (home.settings.state_dir / "registry.json").stat().st_mtime_ns
    await cache.close()  # nothing changed, nothing is written
    assert (home.settings.state_dir / "registry.json").stat().st_mtime_ns == stamp

    again = part(config)
    second = Cache(again.directory)
    snapshot = second.load()
    assert snapshot.revision == revision and snapshot.tunnel == TunnelReport(7, (Reservation("r", 0.01),))
    async with task(second.run()):

        async def remembered() -> bool:
            return set(again.directory.peers) == {"b", "c"}

        await until(remembered, "peers are remembered")
    assert all(p.sources == (Source.CACHE,) and p.verified for p in again.directory.peers.values())
    assert "2 peers remembered" in again.directory.board.sources["cache"]


async def test_a_cache_from_before_the_psk_changed_is_worthless_but_harmless(node_config: WriteConfig) -> None:
    config = node_config("a")
    home = part(config)
    cache = Cache(home.directory)
    home.directory.take(neighbour(home, node_config("b")), Source.LOOKUP)
    await cache.close()
    (config.parent / "psk").write_text("another-secret-0123456789-0123456789\n")
    again = part(config)
    second = Cache(again.directory)
    second.load()
    async with task(second.run()):

        async def looked() -> bool:
            return "0 peers remembered" in again.directory.board.sources.get("cache", "")

        await until(looked, "nothing is remembered")
    assert len(again.directory.peers) == 0


# The driver's own tasks


def make_driver(config: Path) -> Driver:
    loaded = configuration.load(config)
    log = logging.getLogger("causeway.discovery.test")
    return Driver(Service("discovery", loaded, Identity.load(loaded), log, asyncio.Event()))


async def test_a_clock_that_jumps_wakes_everybody(node_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SWEEP_MIN", 0.01)
    monkeypatch.setattr(driver, "SWEEP_MAX", 0.01)
    made = make_driver(node_config("a"))
    directory = made._directory
    offset = 0.0
    wall = directory.wall
    directory.wall = lambda: wall() + offset
    async with task(made._sweep()):
        await asyncio.sleep(0.1)
        assert directory.wake_bell.count == 0
        for jump in (600.0, -600.0):
            woken = directory.wake_bell.count
            offset += jump

            async def rung(before: int = woken) -> bool:
                return directory.wake_bell.count == before + 1

            await until(rung, "the jump is noticed")
            await asyncio.sleep(0.1)
            assert await rung()  # once


async def test_a_record_goes_out_of_date_while_nobody_renews_it(
    node_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SWEEP_MIN", 0.01)
    monkeypatch.setattr(driver, "SWEEP_MAX", 0.01)
    made = make_driver(node_config("a"))
    directory = made._directory
    home = Part(directory, made._service.identity, directory.settings)
    directory.take(neighbour(home, node_config("b")), Source.LOOKUP)
    wall = directory.wall
    async with task(made._sweep()):
        await asyncio.sleep(0.05)
        peer = directory.peers.get("b")
        assert peer is not None and peer.sources == (Source.LOOKUP,)
        directory.wall = lambda: wall() + 601

        async def stale() -> bool:
            peer = directory.peers.get("b")
            return peer is not None and peer.sources == (Source.CACHE,)

        await until(stale, "it is only remembered")
        directory.wall = lambda: wall() + 601 + 86_400

        async def gone() -> bool:
            return directory.peers.get("b") is None

        await until(gone, "it is forgotten")


@pytest.mark.parametrize("confirmed", [False, True])
async def test_reports_of_a_former_run_stand_in_for_a_while(
    node_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, confirmed: bool
) -> None:
    monkeypatch.setattr(driver, "REPORT_GRACE", 0.05)
    made = make_driver(node_config("a"))
    report = TunnelReport(7, (Reservation("r"),))
    made._adopt(Snapshot(revision=1 << 50, tunnel=report, relay=RelayReport(20007, None)))
    directory = made._directory
    assert directory.record().revision > 1 << 50
    assert directory.record().reservations == (Reservation("r"),)
    if confirmed:
        # The same words again, but said by the component of this run.
        directory.report(TunnelReport(7, (Reservation("r"),)))
    await asyncio.wait_for(made._drop_unconfirmed(), PATIENCE)
    assert directory.record().reservations == ((Reservation("r"),) if confirmed else ())


async def test_the_warning_of_a_task_that_failed_ends_when_it_has_run_on(
    node_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_driver(node_config("a"))
    warnings, failed = made._directory.board, 0

    async def work() -> None:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise RuntimeError("once")
        await asyncio.sleep(PATIENCE)

    async def warned() -> bool:
        return bool(warnings.warnings)

    async def cleared() -> bool:
        return failed == 2 and not warnings.warnings

    monkeypatch.setattr(driver, "RECOVERED", 0.2)
    async with task(made._guard("work", work)):
        await until(warned, "it is said")
        assert "work was stopped by an error and starts again" in warnings.warnings[0]
        await until(cleared, "it runs again")


async def test_when_no_contact_is_configured_any_more_nobody_publishes_there(
    node_config: WriteConfig, loopback_ip: Callable[[], str]
) -> None:
    path = node_config(
        "a", listenAddress=loopback_ip(), modules={"edgeDiscovery": {"bootstrap": [loopback_ip(), loopback_ip()]}}
    )
    made = make_driver(path)
    board = made._directory.board

    def says(text: str) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return text in board.sources.get("lookup", "")

        return look

    async with task(made._publisher.run()), task(made._offerer.run()):
        await until(says("published at 0 of 2"), "it tries")
        other = yaml.safe_load(path.read_text())
        other["modules"]["edgeDiscovery"]["bootstrap"] = []
        path.write_text(yaml.safe_dump(other))
        made._reconfigure(configuration.load(path))
        await until(says("no contacts"), "it has stopped")

        async def stopped() -> bool:
            return not made._offerer._keepers.contacts

        await until(stopped, "nobody is offered dials there, either")


async def test_a_bell_is_never_missed() -> None:
    bell = Bell()
    seen = bell.count
    bell.ring()
    assert await asyncio.wait_for(bell.wait(seen), PATIENCE) == 1  # rung before the wait
    waits = [asyncio.create_task(bell.wait(1)) for _ in range(3)]
    await asyncio.sleep(0)
    bell.ring()
    bell.ring()
    assert set(await asyncio.wait_for(asyncio.gather(*waits), PATIENCE)) == {3}
    assert await bell.wait(3, timeout=0.01) == 3
    assert not bell._waiters


# Metrics


async def test_metrics_tell_what_is_known_and_done(node_config: WriteConfig, loopback_ip: Callable[[], str]) -> None:
    r_ip, a_ip = loopback_ip(), loopback_ip()
    named = {"edgeTunnel": {"relayNodes": [{"nodeName": "r", "advertiseAddress": [r_ip]}]}}
    r = node_config("r", listenAddress=r_ip)
    a = node_config("a", listenAddress=a_ip, modules=named, metrics={"listenAddress": a_ip, "basePort": 9100})
    async with running(r, a) as (_, node):
        await node.published()
        watch = node.stub.WatchPeers(pb.WatchPeersRequest())
        await watch.read()
        with pytest.raises(Exception, match="nobody knows"):
            await node.resolve("nobody")
        await node.resolve("r")
        raw = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{a_ip}:9100/metrics").read().decode())
        lines = raw.splitlines()
        for line in (
            'causeway_discovery_peers{source="config"} 1.0',
            'causeway_discovery_peers{source="lookup"} 1.0',
            'causeway_discovery_peers{source="mdns"} 0.0',
            "causeway_discovery_watchers 1.0",
            'causeway_discovery_lookups_total{result="unknown"} 1.0',
            'causeway_discovery_lookups_total{result="local"} 1.0',
            'causeway_discovery_publishes_total{result="ok"} 1.0',
            "causeway_discovery_dht_servers 1.0",
            "# TYPE causeway_discovery_dials_total counter",
        ):
            assert line in lines, raw
        watch.cancel()

        async def unwatched() -> bool:
            raw = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{a_ip}:9100/metrics").read().decode())
            return "causeway_discovery_watchers 0.0" in raw.splitlines()

        await until(unwatched, "the watcher that left is not counted")
