"""What the DNS answers: cluster names from the catalog, everything else from other name servers, with a cache.

A question comes in as bytes and its answer goes out through a callback: at once where we know it, else when somebody
has answered us. The same question asked twice meanwhile waits for the one that is on its way; so a name server that
asks us what we ask it gets no loop out of it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from logging import Logger
from typing import NamedTuple

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from services.proxy.core.names import TTL, Answer, Names, Record
from services.proxy.core.ttlcache import TtlCache
from services.proxy.forwarder import Forwarder

PAYLOAD = 1232  # bytes of a datagram that is never fragmented (DNS Flag Day 2020)
PLAIN = 512  # bytes of a datagram for who says nothing of EDNS (RFC 1035, 4.2.1)
STREAM = 65_535  # bytes of a message over TCP
MAX_TTL = 2**31 - 1  # s (RFC 2181, 8)
MAX_QUERY = 4096  # bytes; a question with its EDNS options has a few dozen
MAX_ASKING = 256  # questions on their way to other servers; each holds a descriptor
MAX_WAITING = 1024  # clients that wait for them
SMALLEST = 16  # bytes of a record in a message: an address with its name compressed
MAX_ALIASES = 8  # one after the other; a service may be another name for itself
MAX_CLIENT = 128  # of one address, so that one that floods leaves room for others

HEADER = 12  # bytes
_QR, _OPCODE, _RD = 0x80, 0x78, 0x01  # bits of the third byte
_TRANSFERS = range(249, 255)  # TKEY, TSIG, IXFR, AXFR, MAILB, MAILA: not for a question to a resolver
_COUNTED = frozenset(("A", "AAAA", "SRV", "PTR", "TXT", "MX", "CNAME", "NS", "SOA", "HTTPS", "ANY"))

Reply = Callable[[bytes], None]


class Question(NamedTuple):
    """What makes two questions the same."""

    name: str
    kind: dns.rdatatype.RdataType
    dnssec: bool  # wants signatures
    unchecked: bool  # wants them even if they are wrong


@dataclass(slots=True)
class _Client:
    """Somebody who waits for an answer."""

    query: dns.message.Message
    ip: str
    stream: bool
    reply: Reply
    aliases: tuple[Record, ...] = ()  # from the name that was asked for to the one that has the answer

    @property
    def way(self) -> list[dns.rrset.RRset]:
        """`aliases`, for the answer."""
        owners = (self.query.question[0].name, *(None for _ in self.aliases))
        pairs = zip(self.aliases, owners, strict=False)
        return [rrset for alias, owner in pairs for rrset in _sets((alias,), owner)]

    @property
    def limit(self) -> int:
        """Bytes of the largest answer it can take."""
        if self.stream:
            return STREAM
        return PLAIN if self.query.edns < 0 else min(max(self.query.payload, PLAIN), PAYLOAD)


class Resolver:
    """Owns the questions on their way. `names`: the cluster's; `ready` when they are known."""

    def __init__(self, names: Names, forwarder: Forwarder, counts: "Counter[tuple[str, str]]", log: Logger) -> None:
        self.names = names
        self.ready = False
        self.cache_ttl = 30.0  # s, at most; 0: nothing is kept
        self._forwarder = forwarder
        self._counts = counts  # questions, by kind and result
        self._log = log
        self._cache: TtlCache[dns.message.Message] = TtlCache()
        self._asking: dict[Question, list[_Client]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: Counter[str] = Counter()  # clients, by address

    def forget(self) -> None:
        """Others are to be asked from now on."""
        self._cache.clear()

    def handle(self, wire: bytes, ip: str, stream: bool, reply: Reply) -> None:
        """The question of a client at `ip`, over TCP or not. `reply` is called once, or never for what deserves no
        answer."""
        if len(wire) < HEADER or wire[2] & _QR:
            self._counts["other", "garbage"] += 1
            return
        if wire[2] & _OPCODE:
            self._counts["other", "refused"] += 1
            reply(_bare(wire, dns.rcode.NOTIMP))
            return
        query = _parsed(wire)
        if query is None:
            self._counts["other", "garbage"] += 1
            reply(_bare(wire, dns.rcode.FORMERR))
            return
        client = _Client(query, ip, stream, reply)
        asked = query.question[0]
        if query.edns > 0:
            self._refuse(client, dns.rcode.BADVERS, "refused")
        elif asked.rdclass != dns.rdataclass.IN or asked.rdtype in _TRANSFERS:
            self._refuse(client, dns.rcode.REFUSED, "refused")
        else:
            self._answer(client, asked.name.to_text(omit_final_dot=True).lower(), asked.rdtype)

    async def close(self) -> None:
        """Those who wait are told that there is no answer."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _answer(self, client: _Client, name: str, kind: dns.rdatatype.RdataType) -> None:
        if not self.ready and self.names.covers(name):
            self._refuse(client, dns.rcode.SERVFAIL, "failed")
            return
        answer = self.names.answer(name, dns.rdatatype.to_text(kind))
        while answer is not None and answer.alias and len(client.aliases) < MAX_ALIASES:
            client.aliases += answer.records
            name = answer.alias
            answer = self.names.answer(name, dns.rdatatype.to_text(kind))
        if answer is not None:
            self._own(client, answer)
            return
        flags = client.query.flags
        question = Question(name, kind, _dnssec(client.query), bool(flags & dns.flags.CD))
        found = self._cache.get(question, time.monotonic())
        if found is not None:
            self._relay(client, found.value, "cached", found.age, found.left)
        elif not flags & dns.flags.RD:
            self._refuse(client, dns.rcode.REFUSED, "refused")
        else:
            self._ask(question, client)

    # ── ours ──

    def _own(self, client: _Client, answer: Answer) -> None:
        response = _response(client.query)
        response.flags |= dns.flags.AA
        response.answer = client.way
        if len(answer.records) * SMALLEST > client.limit:  # no need to make it to see that it does not fit
            response.flags |= dns.flags.TC
        elif answer.records:
            owner = None if client.aliases else client.query.question[0].name
            response.answer += _sets(answer.records, owner)  # dnspython shuffles them
            response.additional = [*_sets(answer.extra)]
        else:
            response.authority = [*_sets((answer.soa,))]
            if not answer.exists:
                response.set_rcode(dns.rcode.NXDOMAIN)
        self._send(client, response, "answered" if answer.records else "nodata" if answer.exists else "nxdomain")

    # ── others' ──

    def _ask(self, question: Question, client: _Client) -> None:
        known = self._asking.get(question)
        if self._waiting[client.ip] >= MAX_CLIENT or self._waiting.total() >= MAX_WAITING:
            self._refuse(client, dns.rcode.SERVFAIL, "limit")
        elif known is not None:
            self._waiting[client.ip] += 1
            known.append(client)
        elif len(self._asking) >= MAX_ASKING:
            self._refuse(client, dns.rcode.SERVFAIL, "limit")
        else:
            self._waiting[client.ip] += 1
            self._asking[question] = [client]
            task = asyncio.create_task(self._forward(question), name="dns")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def _forward(self, question: Question) -> None:
        query = dns.message.make_query(
            dns.name.from_text(question.name),
            question.kind,
            use_edns=0,
            payload=PAYLOAD,
            want_dnssec=question.dnssec,
        )
        if question.unchecked:
            query.flags |= dns.flags.CD
        answer = None
        try:
            answer = await self._forwarder.ask(query)
        finally:
            clients = self._asking.pop(question)
            self._waiting -= Counter(client.ip for client in clients)
            if answer is None:
                for client in clients:
                    self._refuse(client, dns.rcode.SERVFAIL, "failed")
        if answer is not None:
            ttl = min(_ttl(answer), self.cache_ttl)
            self._cache.put(question, answer, _size(answer), ttl, time.monotonic())
            for client in clients:
                self._relay(client, answer, "forwarded", 0.0, self.cache_ttl or MAX_TTL)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a question was not forwarded", extra={"error": repr(error)}, exc_info=error)

    def _relay(self, client: _Client, answer: dns.message.Message, result: str, age: float, left: float) -> None:
        response = _response(client.query)
        response.set_rcode(answer.rcode())
        if _dnssec(client.query) or client.query.flags & dns.flags.AD:
            response.flags |= answer.flags & dns.flags.AD
        response.answer, response.authority, response.additional = (
            [_aged(rrset, age, left) for rrset in section]
            for section in (answer.answer, answer.authority, answer.additional)
        )
        response.answer[:0] = client.way
        self._send(client, response, result)

    # ── replies ──

    def _refuse(self, client: _Client, rcode: dns.rcode.Rcode, result: str) -> None:
        response = _response(client.query)
        response.answer = client.way
        if not response.answer:  # half an answer is one: whoever asked may find the rest
            response.set_rcode(rcode)
        self._send(client, response, result)

    def _send(self, client: _Client, response: dns.message.Message, result: str) -> None:
        kind = dns.rdatatype.to_text(client.query.question[0].rdtype)
        self._counts[kind if kind in _COUNTED else "other", result] += 1
        client.reply(response.to_wire(max_size=client.limit, prefer_truncation=True))


def _parsed(wire: bytes) -> dns.message.Message | None:
    """A question as it should be: one, and with it nothing but EDNS and a signature."""
    counts = [int.from_bytes(wire[at : at + 2], "big") for at in (4, 6, 8, 10)]
    if len(wire) > MAX_QUERY or counts[:3] != [1, 0, 0] or counts[3] > 2:
        return None
    try:
        return dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None


def _bare(wire: bytes, rcode: int) -> bytes:
    """Just a header, to a question that cannot be repeated."""
    return wire[:2] + bytes([_QR | wire[2] & (_OPCODE | _RD), 0x80 | rcode]) + bytes(8)


def _dnssec(query: dns.message.Message) -> bool:
    return bool(query.ednsflags & dns.flags.DO)


def _response(query: dns.message.Message) -> dns.message.Message:
    return dns.message.make_response(query, recursion_available=True, our_payload=PAYLOAD)


@lru_cache(maxsize=256)  # pods ask for the same few names, and with a search list mostly for what is not there
def _sets(records: tuple[Record, ...], owner: dns.name.Name | None = None) -> tuple[dns.rrset.RRset, ...]:
    sets: dict[tuple[str, str], list[str]] = {}
    for record in records:
        sets.setdefault((record.name, record.kind), []).append(record.data)
    return tuple(
        dns.rrset.from_text_list(owner or dns.name.from_text(name), TTL, "IN", kind, data)
        for (name, kind), data in sets.items()
    )


def _ttl(answer: dns.message.Message) -> float:
    """Seconds for which an answer may be repeated; negative ones as RFC 2308, 5 has it."""
    if answer.flags & dns.flags.TC or answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return 0.0
    if answer.answer and answer.rcode() == dns.rcode.NOERROR:
        return float(min(rrset.ttl for rrset in (*answer.answer, *answer.authority)))
    soa = [rrset for rrset in answer.authority if rrset.rdtype == dns.rdatatype.SOA]
    return float(min(min(rrset.ttl, rrset[0].minimum) for rrset in soa)) if soa else 0.0


def _size(answer: dns.message.Message) -> int:
    """About what it takes in memory: a record is several objects."""
    return 1024 + 512 * sum(len(rrset) for section in answer.sections for rrset in section)


def _aged(rrset: dns.rrset.RRset, age: float, left: float) -> dns.rrset.RRset:
    aged: dns.rrset.RRset = rrset.copy()  # type: ignore[no-untyped-call]
    aged.ttl = max(0, min(int(rrset.ttl - age), int(left)))
    return aged
