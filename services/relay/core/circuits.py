"""Pairs of legs, from the call to the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from .messages import TOKEN_LENGTH


@dataclass(slots=True)
class Circuit:
    """One pair. `legs` are the driver's names for the two connections, caller's first; None: not there yet."""

    id: int
    caller: str
    callee: str
    tokens: tuple[bytes, bytes]
    opened_at: float
    deadline: float
    legs: list[int | None] = field(default_factory=lambda: [None, None])

    @property
    def paired(self) -> bool:
        return self.legs[0] is not None and self.legs[1] is not None


class Circuits:
    """Circuits being opened and open. A token works once, for one side of one circuit, until the deadline.

    `random` must be unpredictable in production (random.SystemRandom).
    """

    def __init__(self, random: Random, timeout: float) -> None:
        self._random = random
        self._timeout = timeout
        self._last_id = 0
        self._all: dict[int, Circuit] = {}
        self._pending: dict[int, Circuit] = {}  # in order of deadline: the time to pair is the same for all
        self._by_token: dict[bytes, tuple[Circuit, int]] = {}
        self._per_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Circuit]:
        return iter(self._all.values())

    def get(self, circuit_id: int) -> Circuit | None:
        return self._all.get(circuit_id)

    def of(self, peer: str) -> int:
        """Circuits in which `peer` takes part."""
        return self._per_peer[peer]

    def open(self, caller: str, callee: str, now: float) -> Circuit:
        """Make tokens for two legs. The caller has checked the limits."""
        self._last_id += 1
        tokens = (self._random.randbytes(TOKEN_LENGTH), self._random.randbytes(TOKEN_LENGTH))
        circuit = Circuit(self._last_id, caller, callee, tokens, now, now + self._timeout)
        self._all[circuit.id] = self._pending[circuit.id] = circuit
        for side, token in enumerate(tokens):
            self._by_token[token] = (circuit, side)
        self._per_peer[caller] += 1
        self._per_peer[callee] += 1
        return circuit

    def arrive(self, token: bytes, leg: int, now: float) -> Circuit | None:
        """A leg showed its token. None: no such token (unknown, used, or too late)."""
        circuit, side = self._by_token.pop(token, (None, 0))
        if circuit is None or circuit.deadline <= now:
            return None
        circuit.legs[side] = leg
        if circuit.paired:
            del self._pending[circuit.id]
        return circuit

    def close(self, circuit_id: int) -> Circuit | None:
        """Forget a circuit, open or not."""
        circuit = self._all.pop(circuit_id, None)
        if circuit is not None:
            self._pending.pop(circuit_id, None)
            for token in circuit.tokens:
                self._by_token.pop(token, None)
            for peer in (circuit.caller, circuit.callee):
                self._per_peer[peer] -= 1
                if not self._per_peer[peer]:
                    del self._per_peer[peer]
        return circuit

    def withdraw(self, token: bytes) -> Circuit | None:
        """The leg with this token will not come: close its circuit. None: no such token, or the leg is there."""
        circuit, _ = self._by_token.get(token, (None, 0))
        return self.close(circuit.id) if circuit is not None else None

    @property
    def next_expiry(self) -> float | None:
        return next(iter(self._pending.values())).deadline if self._pending else None

    def expire(self, now: float) -> list[Circuit]:
        """Close and return those whose legs did not both arrive in time."""
        over = []
        while (expiry := self.next_expiry) is not None and expiry <= now:
            circuit = self.close(next(iter(self._pending)))
            assert circuit is not None
            over.append(circuit)
        return over
