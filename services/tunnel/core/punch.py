"""Hole punching as a conversation: who says what when, and how often it is tried. No sockets, no clock.

TCP simultaneous open needs both sides to connect at the same moment: then each side's own SYN has opened its NAT when
the other's arrives. The two talk over the relayed session that they have:

    starter                              answerer
    OFFER(addresses)        ──▶                          the session's responder starts: its peer dialled, so is there
                            ◀──          READY(addresses)          sent when its sockets could be opened at once
    GO                      ──▶          connects when GO arrives
    connects half a round trip later

The starter waits for READY before it measures anything, so a relay that is nearer than the peer is quick does no harm
(FAILURES 21), and one side alone starts, so nothing has to be cancelled (20). Source of the scheme: libp2p's DCUtR.

Where a NAT will soon cut the punched link that is in use, another hole is punched beside it. The answerer asks for
that with AGAIN(); what follows is the same conversation, over the link that is to be replaced.
"""

import ipaddress
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

OFFER, READY, GO, AGAIN = "offer", "ready", "go", "again"

SUCCESS = "punched"
"""The outcome of an attempt that succeeded."""

ANSWER_WITHIN = 3.0
"""Seconds the other side has for each word; a relayed round trip is far less."""
PAUSES = (2.0, 10.0, 300.0, 600.0, 1200.0)
"""Seconds between attempts, from the peer's READY on; the last one repeats. 97.6 % of the punches that ever succeed do so
at the first (arXiv 2510.27500), so after three the NATs are taken for such that forbid it, and only looked at again now
and then."""
UNANSWERED = (2.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds between offers that nobody answers; the last one repeats. Nothing was tried then, so nothing is known of the
NATs: the peer may be busy with others, or be looking for a port."""
IN_VAIN, IN_VAIN_WITHIN = 9, 600.0
"""Attempts that may fail within so many seconds, whatever is forgotten meanwhile: where a route comes and goes, each
change is a reason to begin anew, and would be one attempt more (FAILURES 23)."""
PROVEN_AFTER = 10.0
"""A punched link that was heard for so long, seconds, clears the pauses when it is lost; one that was not would flap.
From this age on `core/lifetime.py` learns of NATs that cut links: until it has, each is punched again at once."""
NO_ADDRESS = 5.0
"""Seconds until a node that knows no address of its own looks for one again: a handshake with a relay each time."""
MAX_ADDRESSES = 6
"""Addresses tried in one attempt: each is a flow in somebody's router (FAILURES 23)."""
MIN_BETWEEN = 1.0
"""Seconds between attempts that an answerer takes part in, whatever the starter says."""

Address = tuple[str, int]
"""IP and TCP port."""


@dataclass(frozen=True, slots=True)
class Word:
    """One message of the conversation."""

    kind: str
    attempt: int
    """The starter's number; words of another attempt are late and mean nothing."""
    addresses: tuple[Address, ...] = ()
    """Where the sender's listen port can be seen from outside."""

    def encode(self) -> bytes:
        return json.dumps({"punch": self.kind, "attempt": self.attempt, "addresses": self.addresses}).encode()

    @classmethod
    def decode(cls, note: bytes) -> "Word | None":
        """None for what is no word of this conversation, or not well-formed: the peer may be newer than we are."""
        try:
            fields = json.loads(note)
            kind, attempt, addresses = fields["punch"], fields["attempt"], fields.get("addresses", [])
            if kind not in (OFFER, READY, GO, AGAIN) or type(attempt) is not int or not isinstance(addresses, list):
                return None
            return cls(kind, attempt, usable((ip, port) for ip, port in addresses[: 4 * MAX_ADDRESSES]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def usable(addresses: Iterable[tuple[object, object]]) -> tuple[Address, ...]:
    """Those worth a SYN, each once, MAX_ADDRESSES at most: what a peer says may be anything."""
    found: dict[Address, None] = {}
    for ip, port in addresses:
        if not isinstance(ip, str) or type(port) is not int or not 0 < port < 65536:
            continue
        try:
            parsed = ipaddress.ip_address(ip)
        except ValueError:
            continue
        if not (parsed.is_multicast or parsed.is_unspecified or parsed.is_link_local):
            found.setdefault((str(parsed), port))
    return tuple(found)[:MAX_ADDRESSES]


@dataclass(frozen=True, slots=True)
class Say:
    """Send this word to the peer."""

    word: Word


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to all of these at once, so many seconds from now."""

    addresses: tuple[Address, ...]
    delay: float


Action = Say | Connect


class Punch:
    """One peer's punching: `starter` is the side that did not dial the session.

    The shell calls `begin` when a better path is wanted, `receive` for each word, and `ended` when a Connect is over.
    """

    def __init__(self, *, starter: bool) -> None:
        self.starter = starter
        self.attempts = 0
        """That both sides took part in, since the start, or since a punched link proved itself."""
        self.outcome = "not tried"
        """How the last attempt ended, for people."""
        self._number = 0
        self._expected = ""
        self._expires = 0.0
        self._connecting = False
        self._next = 0.0
        self._unanswered = 0
        """Offers in a row."""
        self._in_vain: deque[float] = deque(maxlen=IN_VAIN)
        """When the last attempts began that did not succeed, or are under way."""
        self._peers: tuple[Address, ...] = ()
        self._renewed = 0
        """The link for whose replacement the pauses were cleared."""

    @property
    def tried(self) -> bool:
        """There was an attempt in this session: its ports may be remembered on the way, or here, by what it left."""
        return self._number > 0

    def due(self, now: float) -> bool:
        """This side starts, and it is time."""
        return self.starter and not self.busy(now) and not self.due_in(now)

    def busy(self, now: float) -> bool:
        """An attempt is under way."""
        return self._connecting or (self._expected != "" and now < self._expires)

    def patience(self, now: float) -> float:
        """Seconds that the peer still has for the word that is expected; 0: none is."""
        return max(self._expires - now, 0.0) if self._expected else 0.0

    def due_in(self, now: float) -> float:
        """Seconds until the next attempt may begin."""
        rested = self._in_vain[0] + IN_VAIN_WITHIN if len(self._in_vain) == IN_VAIN else 0.0
        return max(self._next - now, rested - now, 0.0)

    def forget(self) -> None:
        """The network changed, or an address became known: what failed before may work now."""
        self.attempts = self._unanswered = 0
        self._next = 0.0

    def renew(self, link: int) -> None:
        """A punched link is to be replaced: that it is there shows that punching works, so no pause is kept from former
        attempts. Once for each link: where it does not work any more, the routers are left in peace as ever."""
        if link != self._renewed:
            self._renewed = link
            self.forget()

    def unable(self, now: float) -> None:
        """This side has no address to offer, and may look for one again after a while."""
        self.outcome = "this node knows no address of its own"
        self._next = max(self._next, now + NO_ADDRESS)

    def begin(self, own: tuple[Address, ...], now: float) -> list[Action]:
        """Starts an attempt if one is due and this side is the one that starts."""
        if not own or not self.due(now):
            return []
        if self._expected:
            self.outcome = f"no answer within {ANSWER_WITHIN:g} s"
        self._number += 1
        self._unanswered += 1
        self._next = now + UNANSWERED[min(self._unanswered, len(UNANSWERED)) - 1]
        self._expect(READY, now)
        return [Say(Word(OFFER, self._number, usable(own)))]

    def would_answer(self, offer: Word, now: float) -> bool:
        """Whether an OFFER gets a READY, if this side has an address."""
        return bool(offer.addresses) and not (self.starter or self._connecting or now < self._next)

    def receive(self, word: Word, own: tuple[Address, ...], rtt: float, now: float) -> list[Action]:
        """A word from the peer. `rtt`: round trip of the path that carries the conversation, seconds."""
        if word.kind == OFFER:
            if not own or not self.would_answer(word, now):
                return []
            self._number, self._peers = word.attempt, word.addresses
            self.attempts += 1
            self._next = now + MIN_BETWEEN
            self._expect(GO, now)
            return [Say(Word(READY, word.attempt, usable(own)))]
        if word.kind != self._expected or word.attempt != self._number or now >= self._expires:
            return []
        self._expected = ""
        if word.kind == READY:
            if not word.addresses:
                self.outcome = "the peer knows no address of its own"
                return []
            self._unanswered = 0
            self.attempts += 1
            self._next = now + PAUSES[min(self.attempts, len(PAUSES)) - 1]
            self._in_vain.append(now)
            self._connecting = True
            return [Say(Word(GO, self._number)), Connect(word.addresses, rtt / 2)]
        self._connecting = True
        return [Connect(self._peers, 0.0)]

    def ended(self, outcome: str) -> None:
        """The Connect is over; `outcome` is for people."""
        self._connecting = False
        self.outcome = outcome
        if outcome == SUCCESS and self._in_vain:
            self._in_vain.pop()

    def lost(self, lived: float) -> None:
        """A punched link is gone; so many seconds after it came up it was last heard."""
        if lived >= PROVEN_AFTER:
            self.forget()

    def _expect(self, kind: str, now: float) -> None:
        self._expected = kind
        self._expires = now + ANSWER_WITHIN
