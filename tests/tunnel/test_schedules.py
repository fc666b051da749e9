"""Random schedules: whatever happens to links, what arrives is what was sent, in order, once.

`CAUSEWAY_SCHEDULES=N` runs N random examples of up to 120 steps instead of the fixed few that every run gets.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.tunnel.core import events
from services.tunnel.core.budget import Budget
from services.tunnel.core.frames import Reason
from services.tunnel.core.link import DIRECT, PUNCHED, RELAYED
from tests.tunnel.harness import End, Net

EXAMPLES = int(os.environ.get("CAUSEWAY_SCHEDULES", "0"))
SIDES = st.sampled_from("ab")
INDEX = st.integers(0, 30)
CAPACITY = 1 << 20
HEALING = 60.0
"""Fake seconds after which all must have arrived once a good link is there: a silent one is given up after 10."""


def content(start: int, size: int, salt: int) -> bytes:
    """Bytes that depend on their position, so that no block fits elsewhere."""
    first = start // 4
    words = b"".join(
        (((number + salt * 0x01000193) * 2654435761) & 0xFFFFFFFF).to_bytes(4)
        for number in range(first, (start + size) // 4 + 1)
    )
    return words[start - first * 4 :][:size]


class Schedules(RuleBasedStateMachine):
    """Two sessions, their links and streams; the rules are what users, networks and relays do."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets = Budget(16 * CAPACITY), Budget(16 * CAPACITY)
        self.net = Net(capacity=CAPACITY)
        for end, budget in zip((self.net.a, self.net.b), self.budgets, strict=True):
            end.session.outbox._budget = budget
        self.net.link()
        self.net.run(0.2)
        self.sent: dict[tuple[str, int], int] = {}
        """Bytes sent by side and stream."""
        self.datagrams: dict[tuple[str, int], set[bytes]] = {}
        self.killed: set[int] = set()
        """Streams that an application reset."""

    def end_of(self, side: str) -> End:
        return self.net.a if side == "a" else self.net.b

    def stream(self, side: str, index: int, *, datagram: bool = False):
        open_now = [s for s in self.end_of(side).session.streams.values() if s.datagram == datagram]
        return open_now[index % len(open_now)] if open_now else None

    def pipe(self, index: int) -> int | None:
        numbers = list(self.net.pipes)
        return numbers[index % len(numbers)] if numbers else None

    # ---------------------------------------------------------------- applications

    @precondition(lambda self: len(self.net.a.session.streams) < 8)
    @rule(side=SIDES, udp=st.booleans())
    def open(self, side: str, udp: bool) -> None:
        end = self.end_of(side)
        stream = end.open_udp() if udp else end.open()
        self.sent.update({("a", stream.id): 0, ("b", stream.id): 0})

    @rule(side=SIDES, index=INDEX, size=st.sampled_from([1, 100, 3000, 70_000, 600_000]))
    def send(self, side: str, index: int, size: int) -> None:
        end, stream = self.end_of(side), self.stream(side, index)
        if stream is None or stream.fin_sent or end.session.blocked:
            return
        start = self.sent[side, stream.id]
        self.sent[side, stream.id] += end.session.send(stream, content(start, size, stream.id * 2 + (side == "b")))

    @rule(side=SIDES, index=INDEX, count=st.integers(1, 5), size=st.sampled_from([0, 1200, 60_000]))
    def send_datagrams(self, side: str, index: int, count: int, size: int) -> None:
        end, stream = self.end_of(side), self.stream(side, index, datagram=True)
        if stream is None:
            return
        sent = self.datagrams.setdefault((side, stream.id), set())
        for _ in range(count):
            payload = len(sent).to_bytes(4) + bytes(size)
            sent.add(payload)
            end.session.send_datagram(stream, payload)

    @rule(side=SIDES, index=INDEX)
    def finish(self, side: str, index: int) -> None:
        stream = self.stream(side, index)
        if stream is not None:
            self.end_of(side).session.finish(stream)

    @rule(side=SIDES, index=INDEX, udp=st.booleans())
    def reset(self, side: str, index: int, udp: bool) -> None:
        stream = self.stream(side, index, datagram=udp)
        if stream is not None:
            self.killed.add(stream.id)
            self.end_of(side).session.reset(stream, Reason(0, "enough"))

    @rule(side=SIDES, index=INDEX)
    def stop_reading(self, side: str, index: int) -> None:
        stream = self.stream(side, index)
        if stream is not None:
            self.end_of(side).slow.add(stream.id)

    @rule(side=SIDES)
    def read_again(self, side: str) -> None:
        end = self.end_of(side)
        for stream_id in list(end.slow):
            end.slow.discard(stream_id)
            stream = end.session.streams.get(stream_id)
            if stream is not None:
                end.session.consumed(stream, len(end.got.get(stream_id, b"")) - stream.consumed)

    # ---------------------------------------------------------------- networks

    @precondition(lambda self: len(self.net.pipes) < 5)
    @rule(
        kind=st.sampled_from([DIRECT, PUNCHED, RELAYED, RELAYED]),
        relay=st.sampled_from(["r1", "r2", "r3"]),
        delay=st.sampled_from([0.0, 0.005, 0.02, 0.3]),
    )
    def link(self, kind: int, relay: str, delay: float) -> None:
        self.net.link(delay, kind, relay if kind == RELAYED else "")

    @rule(index=INDEX)
    def cut(self, index: int) -> None:
        if (number := self.pipe(index)) is not None:
            self.net.cut(number)

    @rule(index=INDEX, side=SIDES, after=st.sampled_from([0.0, 0.02, 0.5]))
    def part(self, index: int, side: str, after: float) -> None:
        if (number := self.pipe(index)) is not None:
            self.net.part(number, self.end_of(side), after)

    @rule(relay=st.sampled_from(["r1", "r2", "r3"]))
    def relay_dies(self, relay: str) -> None:
        self.net.relay_dies(relay)

    @rule(index=INDEX, ways=st.sampled_from([(True, True), (True, False), (False, True)]), silent=st.booleans())
    def silence(self, index: int, ways: tuple[bool, bool], silent: bool) -> None:
        if (number := self.pipe(index)) is not None:
            self.net.silence(number, silent, ways)

    @rule(relay=st.sampled_from(["r1", "r2"]))
    def drain(self, relay: str) -> None:
        for end in (self.net.a, self.net.b):
            end.apply(end.session.drain_relay(relay))

    @rule(index=INDEX, side=SIDES)
    def retire(self, index: int, side: str) -> None:
        if (number := self.pipe(index)) is not None:
            self.end_of(side).session.retire(self.net.pipes[number][0 if side == "a" else 1])

    @rule(side=SIDES)
    def revalidate(self, side: str) -> None:
        self.end_of(side).session.revalidate(self.net.now)

    @rule(side=SIDES)
    def rekey(self, side: str) -> None:
        self.end_of(side).session._rekeyed_at = -1e9

    @rule(seconds=st.sampled_from([0.01, 0.03, 0.1, 0.4, 2.0]))
    def wait(self, seconds: float) -> None:
        self.net.run(seconds)

    @rule()
    def wait_long(self) -> None:
        self.net.run(12.0, tick=0.05)

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def what_came_is_a_prefix_of_what_was_sent(self) -> None:
        for side, other in ("ab", "ba"):
            end = self.end_of(side)
            for stream_id, got in end.got.items():
                assert len(got) <= self.sent[other, stream_id]
                assert bytes(got) == content(0, len(got), stream_id * 2 + (other == "b")), (
                    f"stream {stream_id} at {side}"
                )
            for stream_id, came in end.datagrams.items():
                assert len(came) == len(set(came)), "a datagram came twice"
                assert set(came) <= self.datagrams[other, stream_id], "a datagram with other borders"

    @invariant()
    def no_record_is_lost_and_memory_is_counted(self) -> None:
        for end, budget in zip((self.net.a, self.net.b), self.budgets, strict=True):
            end.session.outbox.check_invariants()
            assert budget.used == end.session.outbox.memory

    def teardown(self) -> None:
        """A good link appears: all must arrive, nothing may have been reset, all memory returns."""
        net = self.net
        for number in list(net.pipes):
            net.silence(number, silent=False)
        net.link(relay="r9")
        for side in "ab":
            self.read_again(side)
        net.run(0.5)
        limit = net.now + HEALING
        while not self._complete() and net.now < limit:
            net.run(0.2, tick=0.02)
        self.what_came_is_a_prefix_of_what_was_sent()
        for side, other in ("ab", "ba"):
            end = self.end_of(side)
            for stream_id in {stream_id for _, stream_id in self.sent} - self.killed:
                assert len(end.got.get(stream_id, b"")) == self.sent[other, stream_id], (
                    f"stream {stream_id} at {side} stands still"
                )
            resets = {subject for kind, subject, _ in end.seen if kind == events.RESET}
            assert resets <= self.killed, "a stream was reset that nobody reset"
            assert not any(kind == events.ENDED for kind in end.kinds())
        limit = net.now + HEALING
        while net.now < limit and any(budget.used for budget in self.budgets):
            net.run(0.2, tick=0.02)
        assert [budget.used for budget in self.budgets] == [0, 0], "something is never acknowledged"
        assert {s.id for s in net.a.session.streams.values()} == {s.id for s in net.b.session.streams.values()}

    def _complete(self) -> bool:
        return all(
            len(self.end_of(side).got.get(stream_id, b"")) == self.sent[other, stream_id]
            for side, other in ("ab", "ba")
            for stream_id in {stream_id for _, stream_id in self.sent} - self.killed
        )


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=EXAMPLES or 25,
    stateful_step_count=120 if EXAMPLES else 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
