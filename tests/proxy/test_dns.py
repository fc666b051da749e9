"""The DNS on real sockets: cluster names, other name servers good and bad, floods, garbage, slow clients."""

import asyncio
import logging
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import yaml

from services.proxy import dnsport, forwarder, resolver
from services.proxy.config import DnsSettings
from services.proxy.core.catalog import Catalog, Endpoint, Port, Service
from services.proxy.core.upstreams import Upstream
from services.proxy.counters import Counters
from services.proxy.dns import Dns
from tests.proxy.conftest import Node, until
from tests.proxy.nameserver import NameServer, addresses, answering, missing, saying, silent
from tests.proxy.neighbours import service

LoopbackIp = Callable[[], str]
HTTP, PG = Port("http", "tcp", 80), Port("pg", "tcp", 5432)
WEB = Service("default/web", ("127.1.0.1",), (HTTP,), ())
BIG = Service(
    "default/big",
    (),
    (PG,),
    tuple(Endpoint((f"10.0.0.{i + 1}",), (PG,), "b", True, f"big-{i}") for i in range(100)),
)


def catalog(*services: Service) -> Catalog:
    made = Catalog()
    made.begin()
    for one in services:
        made.put(one)
    made.complete()
    return made


class Running:
    """A DNS that serves."""

    def __init__(self, own: Dns, ip: str, counts: "Counter[tuple[str, str]]", known: Catalog) -> None:
        self.dns, self.ip, self.counts, self.catalog = own, ip, counts, known

    async def ask(
        self, name: str, kind: str = "A", *, tcp: bool = False, ip: str = "", **more: Any
    ) -> dns.message.Message:
        return await exchange(ip or self.ip, dns.message.make_query(name, kind, **more), tcp=tcp)

    async def ips(self, name: str, **more: Any) -> list[str]:
        answer = await self.ask(name, **more)
        return sorted(str(record) for rrset in answer.answer for record in rrset)


async def exchange(ip: str, query: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
    if tcp:
        return await dns.asyncquery.tcp(query, ip, timeout=30)
    return await dns.asyncquery.udp(query, ip, timeout=30)


@asynccontextmanager
async def serving(
    ip: str, *upstreams: NameServer | str, known: Catalog | None = None, resolv_conf: Path = Path("none"), **more: Any
) -> AsyncIterator[Running]:
    """On ip:53, asking these."""
    servers = tuple(Upstream(one if isinstance(one, str) else one.ip) for one in upstreams)
    settings = replace(DnsSettings(True, (ip,), "", 53, "cluster.local", servers, False, 30), **more)
    counts: Counter[tuple[str, str]] = Counter()
    known = catalog(WEB, BIG) if known is None else known
    own = Dns(settings, known, counts, logging.getLogger("causeway.proxy"), resolv_conf)
    task = asyncio.create_task(own.run())
    try:
        await until(own.rows)
        yield Running(own, ip, counts, known)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ── other names ──


def external(name: str, target: str) -> Service:
    return Service(f"default/{name}", (), (), (), external_name=target)


EXTERNAL = catalog(
    WEB,
    external("db", "db.example.com"),
    external("site", "web.default.svc.cluster.local"),
    external("far", "db.default.svc.cluster.local"),
    external("lost", "no.default.svc.cluster.local"),
    external("loop", "loop.default.svc.cluster.local"),
)
TO_DB = "Db.default.svc.cluster.local. 5 IN CNAME db.example.com."


async def test_a_service_outside_is_answered_with_its_name_and_where_that_leads(loopback_ip: LoopbackIp) -> None:
    async with (
        NameServer(loopback_ip(), answering("192.0.2.1")) as upstream,
        serving(loopback_ip(), upstream, known=EXTERNAL) as own,
    ):
        for tcp in (False, True, False):
            answer = await own.ask("Db.default.svc.cluster.local", tcp=tcp)
            assert str(answer.answer[0]) == TO_DB
            assert str(answer.answer[1]).startswith("db.example.com. ") and "A 192.0.2.1" in str(answer.answer[1])
        assert upstream.asked == ["db.example.com."], "then it is known"
        answer = await own.ask("far.default.svc.cluster.local")
        assert [rrset.name.to_text() for rrset in answer.answer] == [
            f"{one}." for one in ("far.default.svc.cluster.local", "db.default.svc.cluster.local", "db.example.com")
        ]
        answer = await own.ask("db.default.svc.cluster.local", "CNAME")
        assert [str(rrset) for rrset in answer.answer] == [TO_DB.lower().replace(" in cname", " IN CNAME")]
        assert upstream.asked == ["db.example.com."]


async def test_a_name_outside_that_nobody_has_or_tells(loopback_ip: LoopbackIp) -> None:
    """What we know of it is true all the same."""
    async with NameServer(loopback_ip(), missing(60)) as upstream:
        for servers, rcode in (((upstream,), dns.rcode.NXDOMAIN), ((), dns.rcode.NOERROR)):
            async with serving(loopback_ip(), *servers, known=EXTERNAL) as own:
                answer = await own.ask("Db.default.svc.cluster.local")
                assert (answer.rcode(), [str(rrset) for rrset in answer.answer]) == (rcode, [TO_DB])


async def test_a_service_that_is_another_name_for_one_of_ours(loopback_ip: LoopbackIp) -> None:
    async with serving(loopback_ip(), known=EXTERNAL) as own:
        answer = await own.ask("site.default.svc.cluster.local")
        assert [str(rrset) for rrset in answer.answer] == [
            "site.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.",
            "web.default.svc.cluster.local. 5 IN A 127.1.0.1",
        ]
        answer = await own.ask("lost.default.svc.cluster.local")
        assert (answer.rcode(), len(answer.answer)) == (dns.rcode.NXDOMAIN, 1)
        answer = await own.ask("loop.default.svc.cluster.local")
        assert answer.rcode() == dns.rcode.NOERROR and len(answer.answer) == 1, "one rrset, however often it is said"


# ── cluster names ──


async def test_over_udp_and_tcp_and_both_families(loopback_ip: LoopbackIp) -> None:
    for ip in (loopback_ip(), "::1"):
        async with serving(ip) as own:
            for tcp in (False, True):
                answer = await own.ask("WEB.default.svc.Cluster.Local", tcp=tcp)
                assert answer.flags & dns.flags.AA and answer.flags & dns.flags.RA
                assert str(answer.answer[0]) == "WEB.default.svc.Cluster.Local. 5 IN A 127.1.0.1"
                assert (await own.ask("no.default.svc.cluster.local", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN
            assert [(str(row.spot), row.label, row.error) for row in own.dns.rows()] == [
                (f"[{ip}]:53" if ":" in ip else f"{ip}:53", "dns", "")
            ] * 2
            assert own.counts == {("A", "answered"): 2, ("A", "nxdomain"): 2}


async def test_before_the_services_are_known_nothing_is_said_of_them(loopback_ip: LoopbackIp) -> None:
    known = Catalog()
    async with serving(loopback_ip(), known=known) as own:
        assert (await own.ask("web.default.svc.cluster.local")).rcode() == dns.rcode.SERVFAIL
        known.begin()
        known.put(WEB)
        known.complete()
        own.dns.update()
        assert await own.ips("web.default.svc.cluster.local") == ["127.1.0.1"]


async def test_what_does_not_fit_is_truncated_and_comes_whole_over_tcp(loopback_ip: LoopbackIp) -> None:
    name = "big.default.svc.cluster.local"
    async with serving(loopback_ip()) as own:
        for edns in (False, 4096):
            answer = await own.ask(name, use_edns=edns, payload=4096)
            assert answer.flags & dns.flags.TC
            assert len(answer.to_wire()) <= (resolver.PAYLOAD if edns else resolver.PLAIN)
        whole = await own.ask(name, tcp=True)
        assert not whole.flags & dns.flags.TC
        assert {str(record) for record in whole.answer[0]} == {one.addresses[0] for one in BIG.endpoints}
        srv = await own.ask(f"_pg._tcp.{name}", "SRV", tcp=True)
        assert len(srv.answer[0]) == len(srv.additional) == 100
        firsts = {str(whole.answer[0][0])} | {str((await own.ask(name, tcp=True)).answer[0][0]) for _ in range(5)}
        assert len(firsts) > 1, "the first is not always the same"


async def test_an_answer_for_all_addresses_comes_from_the_one_that_was_asked(loopback_ip: LoopbackIp) -> None:
    port = 15_353
    async with serving("0.0.0.0", port=port) as own:
        for ip in ("127.0.0.1", loopback_ip(), loopback_ip()):
            query = dns.message.make_query("web.default", "A")
            answer = await dns.asyncquery.udp(query, ip, timeout=30, port=port)  # takes an answer from nowhere else
            assert str(answer.answer[0][0]) == "127.1.0.1"
        assert own.counts["A", "answered"] == 3


# ── everything else ──


async def test_answers_of_others_are_kept_for_their_time(loopback_ip: LoopbackIp) -> None:
    async with (
        NameServer(loopback_ip(), answering("192.0.2.1", ttl=7)) as server,
        serving(loopback_ip(), server) as own,
    ):
        for _ in range(3):
            answer = await own.ask("one.test")
            assert str(answer.answer[0][0]) == "192.0.2.1" and answer.answer[0].ttl <= 7
            assert not answer.flags & dns.flags.AA
        assert (await own.ask("ONE.test", tcp=True)).rcode() == dns.rcode.NOERROR
        assert server.asked == ["one.test."]
        assert own.counts == {("A", "forwarded"): 1, ("A", "cached"): 3}
        assert [row.endpoints for row in own.dns.rows()] == [1, 1]


async def test_the_configured_time_is_the_most_and_0_keeps_nothing(loopback_ip: LoopbackIp) -> None:
    async with NameServer(loopback_ip(), answering("192.0.2.1", ttl=86_400)) as server:
        async with serving(loopback_ip(), server, cache_ttl=30) as own:
            assert [(await own.ask("one.test")).answer[0].ttl <= 30 for _ in range(2)] == [True, True]
            assert len(server.asked) == 1
        async with serving(loopback_ip(), server, cache_ttl=0) as own:
            assert [(await own.ask("one.test")).answer[0].ttl for _ in range(2)] == [86_400] * 2
            assert len(server.asked) == 3


async def test_a_no_is_kept_as_long_as_its_zone_says(loopback_ip: LoopbackIp) -> None:
    async with NameServer(loopback_ip(), missing(60)) as server, serving(loopback_ip(), server) as own:
        for _ in range(2):
            answer = await own.ask("gone.test")
            assert answer.rcode() == dns.rcode.NXDOMAIN and answer.authority
        assert len(server.asked) == 1
        server.answers = missing(None)
        for _ in range(2):
            assert (await own.ask("other.test")).rcode() == dns.rcode.NXDOMAIN
        assert len(server.asked) == 3


@pytest.mark.slow
async def test_the_next_server_is_asked_when_one_is_down_silent_or_unwilling(loopback_ip: LoopbackIp) -> None:
    async with NameServer(loopback_ip(), silent) as mute, NameServer(loopback_ip(), answering("192.0.2.1")) as good:
        async with serving(loopback_ip(), loopback_ip(), mute, good) as own:  # nobody listens at the first
            assert await own.ips("one.test") == ["192.0.2.1"]
            assert mute.asked == ["one.test."]
            assert await own.ips("two.test") == ["192.0.2.1"]
            assert mute.asked == ["one.test."], "it is asked last for a while"
        mute.answers = saying(dns.rcode.SERVFAIL)
        async with serving(loopback_ip(), mute, good) as own:
            assert await own.ips("three.test") == ["192.0.2.1"]


@pytest.mark.slow
async def test_with_no_server_that_answers_a_client_is_told(loopback_ip: LoopbackIp) -> None:
    async with serving(loopback_ip(), loopback_ip(), loopback_ip()) as own:
        assert (await own.ask("one.test")).rcode() == dns.rcode.SERVFAIL
        assert await own.ips("web.default") == ["127.1.0.1"], "cluster names need nobody else"
    async with serving(loopback_ip()) as own:  # no server at all
        assert (await own.ask("one.test")).rcode() == dns.rcode.SERVFAIL
    async with NameServer(loopback_ip(), saying(dns.rcode.REFUSED)) as server, serving(loopback_ip(), server) as own:
        assert (await own.ask("one.test")).rcode() == dns.rcode.REFUSED
        server.answers = silent
        assert (await own.ask("two.test")).rcode() == dns.rcode.SERVFAIL
        assert own.counts["A", "failed"] == 1


async def test_forged_answers_and_garbage_are_passed_over(loopback_ip: LoopbackIp) -> None:
    def answers(query: dns.message.Message) -> list[bytes]:
        other = dns.message.make_query("evil.test", "A", id=query.id)
        forged = addresses(query, "192.0.2.66")
        forged.id ^= 1
        return [b"", b"garbage" * 9, forged.to_wire(), addresses(other, "192.0.2.66").to_wire(),
                query.to_wire(), addresses(query, "192.0.2.1").to_wire()]  # fmt: skip

    async with NameServer(loopback_ip(), answers) as server, serving(loopback_ip(), server) as own:
        assert await own.ips("one.test") == ["192.0.2.1"]
        assert len(server.asked) == 1


async def test_a_large_answer_of_another_is_fetched_over_tcp(loopback_ip: LoopbackIp) -> None:
    many = [f"192.0.2.{i}" for i in range(1, 201)]
    async with NameServer(loopback_ip(), answering(*many)) as server, serving(loopback_ip(), server) as own:
        assert (await own.ask("many.test")).flags & dns.flags.TC
        assert await own.ips("many.test", tcp=True) == sorted(many)
        assert server.asked == ["many.test.", "tcp many.test."]


async def test_signatures_are_for_those_who_want_them(loopback_ip: LoopbackIp) -> None:
    def answers(query: dns.message.Message) -> list[bytes]:
        response = addresses(query, "192.0.2.1" if query.ednsflags & dns.flags.DO else "192.0.2.2")
        response.flags |= dns.flags.AD
        return [response.to_wire()]

    async with NameServer(loopback_ip(), answers) as server, serving(loopback_ip(), server) as own:
        plain, signed = await own.ask("one.test"), await own.ask("one.test", want_dnssec=True)
        assert (str(plain.answer[0][0]), bool(plain.flags & dns.flags.AD)) == ("192.0.2.2", False)
        assert (str(signed.answer[0][0]), bool(signed.flags & dns.flags.AD)) == ("192.0.2.1", True)


async def test_the_servers_of_resolv_conf_less_ourselves(loopback_ip: LoopbackIp, tmp_path: Path) -> None:
    file, ip = tmp_path / "resolv.conf", loopback_ip()
    async with NameServer(loopback_ip(), answering("192.0.2.1")) as server:
        file.write_text(
            f"search x\nnameserver {ip}\n# nameserver 9.9.9.9\nnameserver nonsense\nnameserver {server.ip}\n"
        )
        async with serving(ip, resolv_conf=file) as own:
            assert await own.ips("one.test") == ["192.0.2.1"]
            assert [row.endpoints for row in own.dns.rows()] == [1, 1]
            assert own.counts["A", "forwarded"] == 1
        async with serving(ip, loopback_ip(), resolv_conf=file) as own:  # configured ones stand in their place
            assert (await own.ask("one.test")).rcode() == dns.rcode.SERVFAIL


async def test_the_clusters_own_name_server_is_found(loopback_ip: LoopbackIp) -> None:
    async with NameServer(loopback_ip(), answering("192.0.2.1")) as server:
        theirs = Service("kube-system/kube-dns", (server.ip,), (Port("dns", "udp", 53),), ())
        async with serving(loopback_ip(), known=catalog(theirs), cluster_dns=True) as own:
            assert await own.ips("one.test") == ["192.0.2.1"]


@pytest.mark.slow
async def test_a_server_that_asks_us_what_we_ask_it_makes_no_loop(loopback_ip: LoopbackIp) -> None:
    one, two = loopback_ip(), loopback_ip()
    async with serving(one, two) as first, serving(two, one) as second:
        assert (await first.ask("one.test")).rcode() == dns.rcode.SERVFAIL
        assert first.counts.total() + second.counts.total() < 12


# ── floods, garbage, slow clients ──


@pytest.mark.slow
async def test_one_question_of_many_clients_is_asked_once(loopback_ip: LoopbackIp) -> None:
    async with NameServer(loopback_ip(), silent) as server, serving(loopback_ip(), server) as own:
        answers = [asyncio.create_task(own.ips("one.test")) for _ in range(50)]
        await until(lambda: server.asked)
        server.answers = answering("192.0.2.1")
        assert await asyncio.gather(*answers) == [["192.0.2.1"]] * 50
        assert set(server.asked) == {"one.test."} and len(server.asked) <= 4  # the datagram was lost once


async def test_a_flood_of_questions_is_bounded_and_others_are_served(
    loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder, "ATTEMPT", 300.0)  # none of them ends while the flood lasts
    monkeypatch.setattr(forwarder, "DEADLINE", 300.0)
    flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    flood.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    async with NameServer(loopback_ip(), silent) as server, serving(loopback_ip(), server) as own:
        for number in range(1000):
            flood.sendto(dns.message.make_query(f"{number}.test", "A").to_wire(), (own.ip, 53))
            if number % 100 == 99:
                await until(lambda n=number: own.counts["A", "limit"] + resolver.MAX_CLIENT > n)  # type: ignore[misc]
        await until(lambda: own.counts["A", "limit"] == 1000 - resolver.MAX_CLIENT)
        assert len(server.asked) <= resolver.MAX_CLIENT
        assert await own.ips("web.default") == ["127.1.0.1"]
        await until(lambda: len(server.asked) == resolver.MAX_CLIENT)
        server.answers = answering("192.0.2.1")
        query = dns.message.make_query("other.test", "A")  # of another client
        answer = await dns.asyncquery.udp(query, own.ip, timeout=30, source=loopback_ip())
        assert str(answer.answer[0][0]) == "192.0.2.1"
    replies = []
    while len(replies) < 1000:  # those that waited are told at the end
        replies.append(dns.message.from_wire(flood.recv(512)).rcode())
    assert set(replies) == {dns.rcode.SERVFAIL}
    flood.close()


def header(flags: int, questions: int = 1) -> bytes:
    return b"\x12\x34" + flags.to_bytes(2, "big") + questions.to_bytes(2, "big") + bytes(6)


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (header(0x0100) + b"\x03www", dns.rcode.FORMERR),  # cut off
        (header(0x0100) + b"\xc0\x0c\x00\x01\x00\x01", dns.rcode.FORMERR),  # a name that points to itself
        (header(0x0100, 2) + b"\x01a\x00\x00\x01\x00\x01" * 2, dns.rcode.FORMERR),
        (header(0x0100, 0), dns.rcode.FORMERR),
        (header(0x2100) + b"\x01a\x00\x00\x01\x00\x01", dns.rcode.NOTIMP),  # NOTIFY
        (header(0x2900) + b"\x01a\x00\x00\x06\x00\x01", dns.rcode.NOTIMP),  # UPDATE
        (header(0x0100) + b"\x01a\x00\x00\x01\x00\x03", dns.rcode.REFUSED),  # class CHAOS
        (header(0x0100) + b"\x01a\x00\x00\xfc\x00\x01", dns.rcode.REFUSED),  # AXFR
        (header(0x0000) + b"\x01a\x00\x00\x01\x00\x01", dns.rcode.REFUSED),  # without recursion
        (header(0x0100) + b"\x01a\x00" + b"\x00" * 5000, dns.rcode.FORMERR),
    ],
)
async def test_what_is_refused_and_how(loopback_ip: LoopbackIp, wire: bytes, rcode: dns.rcode.Rcode) -> None:
    async with serving(loopback_ip()) as own:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
            client.connect((own.ip, 53))
            client.send(wire)
            async with asyncio.timeout(20):
                answer = await asyncio.get_running_loop().sock_recv(client, 4096)
        assert answer[:2] == wire[:2] and answer[2] & 0x80 and answer[3] & 0x0F == rcode


async def test_another_version_of_edns_is_refused(loopback_ip: LoopbackIp) -> None:
    async with serving(loopback_ip()) as own:
        query = dns.message.make_query("web.default", "A", use_edns=1)
        assert (await exchange(own.ip, query)).rcode() == dns.rcode.BADVERS


async def test_garbage_gets_no_answer_or_a_refusal_and_harms_nobody(loopback_ip: LoopbackIp) -> None:
    rng = random.Random(7)
    good = dns.message.make_query("web.default.svc.cluster.local", "A", use_edns=0).to_wire()
    raised: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    async with serving(loopback_ip()) as own:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(500):
                wire = bytearray(good)
                for _ in range(rng.randint(1, 6)):
                    wire[rng.randrange(len(wire))] = rng.randrange(256)
                client.sendto(bytes(wire[: rng.randint(0, len(wire))]), (own.ip, 53))
                client.sendto(rng.randbytes(rng.randint(0, 80)), (own.ip, 53))
                await asyncio.sleep(0)
            client.sendto(header(0x8180) + b"\x01a\x00\x00\x01\x00\x01", (own.ip, 53))  # an answer: to be ignored
        assert await own.ips("web.default") == ["127.1.0.1"]
        assert own.counts["other", "garbage"]
    assert not raised


@pytest.mark.slow
async def test_clients_that_are_slow_or_silent_are_cut(
    loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsport, "IDLE", 0.3)
    monkeypatch.setattr(dnsport, "SLOW", 0.3)
    loop = asyncio.get_running_loop()
    async with serving(loopback_ip()) as own:
        question = dns.message.make_query("big.default", "A").to_wire()
        framed = len(question).to_bytes(2, "big") + question
        # nothing at all, half a length, half a question, a length that is too large, and one that is too small
        for sent in (b"", b"\x00", framed[:20], b"\xff\xff", b"\x00\x03abc"):
            client = await connected(own.ip)
            await loop.sock_sendall(client, sent)
            assert await ended(client) == b""
        client = await connected(own.ip, receive_buffer=4096)  # asks, and never reads
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(100):
                while True:
                    await loop.sock_sendall(client, framed)
                    await asyncio.sleep(0)
        client.close()
        assert len(await own.ips("big.default", tcp=True)) == 100


async def test_of_too_many_connections_the_longest_silent_gives_way(
    loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsport, "MAX_CONNECTIONS", 20)
    async with serving(loopback_ip()) as own:
        silent_ones = [await connected(own.ip) for _ in range(20)]
        assert await own.ips("web.default", tcp=True) == ["127.1.0.1"]
        assert await ended(silent_ones[0]) == b""
        for client in silent_ones:
            client.close()


async def connected(ip: str, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (ip, 53))
    return client


async def ended(client: socket.socket) -> bytes:
    """What came before the connection's end; a reset counts as one."""
    try:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(client, 100)
    except ConnectionError:
        return b""
    finally:
        client.close()


async def test_several_questions_on_one_connection(loopback_ip: LoopbackIp) -> None:
    async with serving(loopback_ip()) as own:
        reader, writer = await asyncio.open_connection(own.ip, 53)
        for name in ("web.default", "nope.default", "web"):
            wire = dns.message.make_query(f"{name}.svc.cluster.local" if "." in name else name, "A").to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
        rcodes = []
        for _ in range(3):
            size = int.from_bytes(await reader.readexactly(2), "big")
            rcodes.append(dns.message.from_wire(await reader.readexactly(size)).rcode())
        assert rcodes == [dns.rcode.NOERROR, dns.rcode.NXDOMAIN, dns.rcode.NOERROR]
        writer.close()


# ── its place in the proxy ──


@pytest.mark.slow
async def test_an_address_that_cannot_be_had_is_said_and_tried_again(loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((ip, 53))
        async with serving(ip) as own:
            assert [row.error for row in own.dns.rows()] == ["cannot listen: Address already in use"] * 2
            other.close()
            await until(lambda: not any(row.error for row in own.dns.rows()))
            assert await own.ips("web") == ["127.1.0.1"]
    async with serving(ip, addresses=(), interface="nothing0") as own:
        assert "there is no such interface" in own.dns.rows()[0].error


async def test_the_addresses_of_an_interface(loopback_ip: LoopbackIp) -> None:
    async with serving(loopback_ip(), addresses=(), interface="lo", port=15_354) as own:
        await until(lambda: {row.spot.ip for row in own.dns.rows()} >= {"127.0.0.1"})
        query = dns.message.make_query("web.default", "A")
        assert (await dns.asyncquery.udp(query, "127.0.0.1", timeout=30, port=15_354)).answer


async def test_it_is_switched_on_changed_and_off_while_the_proxy_runs(node: Node, loopback_ip: LoopbackIp) -> None:
    ip, path = loopback_ip(), node.service.config.source
    assert path is not None
    document = yaml.safe_load(path.read_text())
    node.discovery.put(service("web", loopback_ip(), ("b", "10.0.0.1", 8080)))
    await node.settled()
    assert not any(row.label == "dns" for row in node.status().rows)

    def change(**section: Any) -> None:
        document["modules"]["edgeDNS"] = section
        path.write_text(yaml.safe_dump(document))
        node.service.reload.look()

    def served() -> list[str]:
        return [str(row.spot) for row in node.status().rows if row.label == "dns" and not row.error]

    change(enable=True, listenAddress=ip)
    await until(lambda: served() == [f"{ip}:53"] * 2)
    assert (await exchange(ip, dns.message.make_query("web.default", "A"))).answer
    async with NameServer(loopback_ip(), answering("192.0.2.1")) as server:
        change(enable=True, listenAddress=ip, cacheDNS={"enable": True, "upstreamServers": [server.ip], "cacheTTL": 9})
        answer = await exchange(ip, dns.message.make_query("one.test", "A"))
        assert answer.answer[0].ttl <= 9
    change(enable=True, listenAddress=ip, clusterDomain="edge.example")
    await until(lambda: served() == [f"{ip}:53"] * 2)

    async def renamed() -> bool:
        return bool((await exchange(ip, dns.message.make_query("web.default.svc.edge.example", "A"))).answer)

    async with asyncio.timeout(20):
        while not await renamed():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)
    change(enable=False)
    await until(lambda: served() == [])
    assert not node.status().warnings


def test_questions_are_counted_by_kind_and_result() -> None:
    from services.proxy.metrics import ProxyCollector

    counters = Counters()
    counters.dns["AAAA", "nodata"] += 3
    families = {family.name: family for family in ProxyCollector(counters, int, int).collect()}
    [sample] = families["causeway_proxy_dns_queries"].samples
    assert (sample.name, sample.value) == ("causeway_proxy_dns_queries_total", 3)
    assert sample.labels == {"kind": "AAAA", "result": "nodata"}
