"""Whom the DHT calls because others say so, and how soon it looks again: the driver, with a client that is told what to say."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from services.discovery import wire
from services.discovery.core.contacts import Contact, Endpoint
from services.discovery.core.errors import NobodyAnswered, UnknownNode
from services.discovery.core.memory import Remembered
from services.discovery.core.model import Record, Signed
from services.discovery.core.routing import Node
from services.discovery.core.search import Search
from services.discovery.core.waiting import MAX_WAITING
from services.discovery.interfaces import Interface
from services.discovery.peers import Found, NodeClient, Told
from services.discovery.probe import Unreachable
from services.discovery.resolver import Resolver
from services.discovery.sources import dht as source
from services.discovery.sources.dht import Dht
from services.discovery.sources.lookup import Lookup
from services.runtime import config as configuration
from services.runtime.identity import Identity

from ..conftest import WriteConfig
from ..patience import until
from .nodes import Part, part

HOME = Interface("eth0", 2, ("192.168.7.2",), (ipaddress.ip_network("192.168.7.0/24"),))
NOW = 1_800_000_000.0
STRANGER = "198.51.100.9"
NEIGHBOUR = "192.168.7.9"


class Others(NodeClient):
    """Nodes by name: the address at which each answers. `called`: the calls made, in order."""

    def __init__(self, home: Part, node_config: WriteConfig) -> None:
        super().__init__(home.identity, Resolver())
        self._config = node_config
        self._identities: dict[str, Identity] = {}
        self.where: dict[str, str] = {}
        self.called: list[Contact] = []

    def _record(self, name: str) -> Signed:
        identity = self._identities.get(name)
        if identity is None:
            identity = self._identities[name] = Identity.load(configuration.load(self._config(name)))
        record = Record(name, identity.cluster, 1, NOW, NOW + 600, discovery_port=20008)
        return wire.seal(identity, record)

    def _answers(self, contact: Contact) -> Endpoint:
        self.called.append(contact)
        for endpoint in contact.endpoints:
            if endpoint.host == self.where.get(contact.node_name):
                return endpoint
        raise Unreachable(f"{contact.node_name} does not answer")

    async def tell(self, contact: Contact, relays: Iterable[Signed], *, timeout: float) -> Told:
        return Told(self._record(contact.node_name), self._answers(contact), ())

    async def find(
        self, contact: Contact, key: int, name: str, callback: Iterable[Endpoint], *, timeout: float
    ) -> Found:
        return Found(self._answers(contact), (), None)

    async def get(self, contact: Contact, node_name: str, *, timeout: float) -> Signed | None:
        self._answers(contact)
        return None


@pytest.fixture
def home(node_config: WriteConfig) -> Part:
    made = part(node_config("home"), wall=lambda: NOW)
    made.directory.interfaces = (HOME,)
    return made


@pytest.fixture
def others(home: Part, node_config: WriteConfig) -> Others:
    return Others(home, node_config)


@asynccontextmanager
async def running(made: Dht) -> AsyncIterator[None]:
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def contact(name: str, *where: str) -> Contact:
    return Contact(name, tuple(Endpoint(it.rpartition(":")[0], int(it.rpartition(":")[2])) for it in where))


def remembered(*, age: float = 60.0, **ips: str) -> tuple[Remembered, ...]:
    return tuple(Remembered(name, f"{ip}:20008", NOW - age) for name, ip in ips.items())


@pytest.mark.parametrize(
    ("seen", "called"),
    [
        (STRANGER, ["203.0.113.7:20008", "198.51.100.9:20009"]),
        (NEIGHBOUR, ["203.0.113.7:20008", "198.51.100.9:20009", "192.168.7.9:20008", "10.0.0.1:20008"]),
        ("10.0.0.1", ["203.0.113.7:20008", "198.51.100.9:20009", "10.0.0.1:20008"]),
        ("", ["203.0.113.7:20008", "198.51.100.9:20009"]),
    ],
)
async def test_nobody_is_sent_to_services_of_this_host_or_its_lan(
    home: Part, others: Others, seen: str, called: list[str]
) -> None:
    named = ["127.0.0.1:20008", "169.254.169.254:20008", "203.0.113.7:22", "203.0.113.7:20008", "198.51.100.9:20009"]
    made = Dht(home.directory, others, random.Random(1))
    made.invite(contact("x", *named, "192.168.7.9:20008", "10.0.0.1:20008"), seen)
    async with running(made):
        await until(lambda: others.called, "it is called back")
    assert [str(it) for it in others.called[0].endpoints] == called
    made.invite(contact("y", "127.0.0.1:22", "169.254.169.254:80", "192.168.1.1:80"), seen)
    assert not made._waiting, "nothing is left to call"


async def test_proven_ones_are_called_first_however_many_strangers_wait(home: Part, others: Others) -> None:
    made = Dht(home.directory, others, random.Random(1))
    for number in range(MAX_WAITING + 10):
        made.invite(contact(f"n{number}", "203.0.113.7:20008"), STRANGER)
    made.invite(contact("relay", "203.0.113.9:20008"), STRANGER, proven=True)
    assert len(made._waiting) == MAX_WAITING + 1
    async with running(made):
        await until(lambda: others.called, "they are called")
    assert others.called[0].node_name == "relay"


async def test_the_first_answer_from_beyond_the_lan_finds_holders_there_at_once(
    home: Part, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An uplink that returns changes nothing here, and while a neighbour answers, looks at who is nearest get rare."""
    monkeypatch.setattr(source, "FIRST_REFRESH", 1e9)
    monkeypatch.setattr(source, "MIN_REFRESH", 0.02)
    monkeypatch.setattr("services.discovery.core.overlay.MIN_PACE", 0.02)
    made = Dht(home.directory, others, random.Random(1))
    home.directory.servers = remembered(far="203.0.113.7", near=NEIGHBOUR)
    others.where["near"] = NEIGHBOUR

    def holders() -> set[str]:
        return {it.node_name for it in made.holders}

    async with running(made):
        await until(lambda: holders() == {"near"}, "the neighbour keeps the record")
        others.where["far"] = "203.0.113.7"
        made._table.forgive()
        await until(lambda: holders() == {"near", "far"}, "who is beyond the uplink keeps it, too")


async def test_word_of_a_changed_network_brings_a_new_look(
    home: Part, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "FIRST_REFRESH", 1e9)
    monkeypatch.setattr(source, "MIN_REFRESH", 0.02)
    made = Dht(home.directory, others, random.Random(1))
    home.directory.servers = remembered(x="203.0.113.7")
    async with running(made):
        await until(lambda: len(others.called) > 2, "it looks in vain")
        others.where["x"] = "203.0.113.7"
        home.directory.wake()
        await until(lambda: made.holders, "it looks again")


async def test_servers_of_the_last_run_are_remembered_for_a_week(home: Part, others: Others) -> None:
    home.directory.servers = remembered(old="203.0.113.1", age=7 * 86_400.0) + remembered(young="203.0.113.2")
    made = Dht(home.directory, others, random.Random(1))
    assert [it.node_name for it in made._contacts()] == ["young"]
    made._remember()
    assert home.directory.servers == remembered(young="203.0.113.2"), "nobody has seen it since"
    made._heard(Node(made.key("young"), "young", ""), Endpoint("203.0.113.3", 20008))
    made._remember()
    assert home.directory.servers == remembered(young="203.0.113.3"), "the file is not written for less than an hour"
    home.directory.servers = remembered(young="203.0.113.3", age=4000.0)
    made._remember()
    assert home.directory.servers == remembered(young="203.0.113.3", age=0.0)


# Lookups


async def test_whether_nobody_knows_a_name_depends_on_who_answered(home: Part, others: Others) -> None:
    """Who waits for a node is refused where others denied it, and not where they were silent."""
    made = Dht(home.directory, others, random.Random(1))
    lookup = Lookup(home.directory, others, made)
    with pytest.raises(UnknownNode, match="there is no relay and no first contact to ask"):
        await lookup.resolve("nobody", fresh=False)
    home.directory.servers = remembered(x="203.0.113.7")
    with pytest.raises(NobodyAnswered, match="servers of the DHT asked: 1"):
        await lookup.resolve("nobody", fresh=False)
    made._table.forgive()
    others.where["x"] = "203.0.113.7"
    with pytest.raises(UnknownNode, match="servers of the DHT asked: 1"):
        await lookup.resolve("nobody", fresh=False)
    # A first contact that is silent does not make the DHT's answer unheard.
    home.directory.settings = replace(home.directory.settings, bootstrap=(Endpoint("203.0.113.9", 20008),))
    with pytest.raises(UnknownNode, match="1 asked, 0 answered; servers of the DHT asked: 1"):
        await lookup.resolve("nobody", fresh=False)


async def test_in_a_large_mesh_a_record_that_is_kept_for_others_is_found_when_it_is_asked_for(
    home: Part, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.discovery.core.overlay.LARGE", -1)
    made = Dht(home.directory, others, random.Random(1))
    signed = others._record("b")
    made.keep(home.directory.check(signed), signed)
    assert not len(home.directory.peers), "whoever watches the registry is spared it"
    found = await Lookup(home.directory, others, made).resolve("b", fresh=False)
    assert found.verified and not others.called


async def test_a_search_that_has_enough_waits_for_nobody_else(home: Part, others: Others) -> None:
    made = Dht(home.directory, others, random.Random(1))
    silent = asyncio.Event()

    async def find(contact: Contact, key: int, name: str, callback: Iterable[Endpoint], *, timeout: float) -> Found:
        if contact.node_name == "slow":
            await silent.wait()
        return Found(contact.endpoints[0], (), others._record(name))

    others.find = find  # type: ignore[method-assign]
    home.directory.servers = remembered(x="203.0.113.1", y="203.0.113.2", slow="203.0.113.3")
    search = Search[Signed](made.key("b"), 1, made._first(), quorum=2)
    async with asyncio.timeout(30):
        await made._run(search, 1e9, "b")
    assert search.best is not None
