"""Random schedules: whatever happens to links, what arrives is what was sent, in order, once.

`CAUSEWAY_SCHEDULES=N` runs N random schedules of up to 200 steps instead of the fixed few that every run gets.
"""

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.tunnel.core import events
from services.tunnel.core.budget import Budget
from services.tunnel.core.frames import Reason
from services.tunnel.core.link import DIRECT, PUNCHED, RELAYED
from services.tunnel.core.packets import RECORD
from services.tunnel.core.stream import INITIAL_WINDOW, Stream
from tests.tunnel.harness import End, Net

EXAMPLES = int(os.environ.get("CAUSEWAY_SCHEDULES", "0"))
CAPACITY = 1 << 20
HEALING = 60.0
"""Fake seconds after which all must have arrived once a good link is there: a silent one is given up after 10."""


NOISE = random.Random(1).randbytes(48 << 20)


def content(start: int, size: int, salt: int) -> memoryview:
    """Bytes that depend on their position and the stream, so that no block fits elsewhere."""
    begin = salt * 4099 + start
    assert begin + size <= len(NOISE)
    return memoryview(NOISE)[begin : begin + size]


class World:
    """Two sessions, their links and streams. Each step is something that users, networks or relays do."""

    def __init__(self) -> None:
        self.net = Net(capacity=CAPACITY)
        self.budgets = Budget(16 * CAPACITY), Budget(16 * CAPACITY)
        for end, budget in zip((self.net.a, self.net.b), self.budgets, strict=True):
            end.session.outbox._budget = budget
        self.sent: dict[tuple[str, int], int] = {}
        """Bytes sent by side and stream."""
        self.good: dict[tuple[str, int], int] = {}
        """Bytes that came and were compared, by side and stream."""
        self.datagrams: dict[tuple[str, int], set[bytes]] = {}
        self.killed: set[int] = set()
        """Streams that an application reset."""
        self.net.link(relay="r1")
        self.net.link(relay="r2", delay=0.03)
        self.net.run(0.2)
        for side in "ab":
            self.open_stream(side, 0)
        self.open_flow("a", 0)
        self.net.run(0.2)

    def end_of(self, side: str) -> End:
        return self.net.a if side == "a" else self.net.b

    def stream(self, side: str, index: int, *, datagram: bool = False) -> Stream | None:
        there = [one for one in self.end_of(side).session.streams.values() if one.datagram == datagram]
        return there[index % len(there)] if there else None

    def pipe(self, index: int) -> int | None:
        numbers = list(self.net.pipes)
        return numbers[index % len(numbers)] if numbers else None

    # ---------------------------------------------------------------- applications

    def open_stream(self, side: str, index: int, *, udp: bool = False) -> None:
        end = self.end_of(side)
        if len(end.session.streams) < 8:
            stream = end.open_udp() if udp else end.open()
            self.sent.update({("a", stream.id): 0, ("b", stream.id): 0})

    def open_flow(self, side: str, index: int) -> None:
        self.open_stream(side, index, udp=True)

    def send(self, side: str, index: int, size: int = 3000) -> None:
        end, stream = self.end_of(side), self.stream(side, index)
        if stream is None or stream.fin_sent or end.session.blocked:
            return
        start = self.sent[side, stream.id]
        self.sent[side, stream.id] += end.session.send(stream, content(start, size, stream.id * 2 + (side == "b")))

    def send_little(self, side: str, index: int) -> None:
        self.send(side, index, 1 + index)

    def send_much(self, side: str, index: int) -> None:
        self.send(side, index, 70_000 + index * 20_000)

    def send_datagrams(self, side: str, index: int) -> None:
        end, stream = self.end_of(side), self.stream(side, index, datagram=True)
        if stream is None:
            return
        sent = self.datagrams.setdefault((side, stream.id), set())
        for _ in range(1 + index % 5):
            payload = len(sent).to_bytes(4) + bytes((0, 1200, 60_000)[index % 3])
            sent.add(payload)
            end.session.send_datagram(stream, payload)

    def finish(self, side: str, index: int) -> None:
        stream = self.stream(side, index)
        if stream is not None:
            self.end_of(side).session.finish(stream)

    def reset(self, side: str, index: int) -> None:
        stream = self.stream(side, index, datagram=index % 2 == 1)
        if stream is not None:
            self.killed.add(stream.id)
            self.end_of(side).session.reset(stream, Reason(0, "enough"))

    def stop_reading(self, side: str, index: int) -> None:
        stream = self.stream(side, index)
        if stream is not None:
            self.end_of(side).slow.add(stream.id)

    def read_again(self, side: str, index: int) -> None:
        end = self.end_of(side)
        for stream_id in list(end.slow):
            end.slow.discard(stream_id)
            stream = end.session.streams.get(stream_id)
            if stream is not None:
                end.session.consumed(stream, len(end.got.get(stream_id, b"")) - stream.consumed)

    # ---------------------------------------------------------------- networks

    def link(self, side: str, index: int) -> None:
        if len(self.net.pipes) < 5:
            kind = (DIRECT, PUNCHED, RELAYED, RELAYED)[index % 4]
            self.net.link((0.0, 0.005, 0.02, 0.3)[index // 4 % 4], kind, f"r{index % 3}" if kind == RELAYED else "")

    def cut(self, side: str, index: int) -> None:
        if (number := self.pipe(index)) is not None:
            self.net.cut(number)

    def part(self, side: str, index: int) -> None:
        if (number := self.pipe(index)) is not None:
            self.net.part(number, self.end_of(side), (0.0, 0.02, 0.5)[index % 3])

    def kill_relay(self, side: str, index: int) -> None:
        self.net.relay_dies(f"r{index % 3}")

    def silence(self, side: str, index: int) -> None:
        if (number := self.pipe(index)) is not None:
            self.net.silence(number, True, ((True, True), (True, False), (False, True))[index % 3])

    def unsilence(self, side: str, index: int) -> None:
        if (number := self.pipe(index)) is not None:
            self.net.silence(number, False)

    def drain(self, side: str, index: int) -> None:
        for end in (self.net.a, self.net.b):
            end.apply(end.session.drain_relay(f"r{index % 3}"))

    def retire(self, side: str, index: int) -> None:
        if (number := self.pipe(index)) is not None and number not in self.net._parting:
            self.end_of(side).session.retire(self.net.pipes[number][0 if side == "a" else 1])

    def revalidate(self, side: str, index: int) -> None:
        self.end_of(side).session.revalidate(self.net.now)

    def rekey(self, side: str, index: int) -> None:
        self.end_of(side).session._rekeyed_at = -1e9

    def tamper(self, side: str, index: int) -> None:
        """Somebody between the nodes, a relay perhaps, works on the records that are under way."""
        self.send_much(side, index)
        self.net.step()
        wires = [pipe[2 if side == "a" else 3] for pipe in self.net.pipes.values()]
        found = [(wire.queue, at) for wire in wires for at, (_, packet) in enumerate(wire.queue) if packet[0] == RECORD]
        if not found:
            return
        queue, at = found[index % len(found)]
        when, packet = queue[at]
        if index % 4 == 0:
            del queue[at]
        elif index % 4 == 1:
            queue.insert(at, (when, packet))
        elif index % 4 == 2:
            queue[at] = when, packet[:-1] + bytes([packet[-1] ^ 1])
        else:
            queue.rotate(1)

    def wait(self, side: str, index: int) -> None:
        self.net.run((0.01, 0.03, 0.1, 0.4)[index % 4])

    def wait_long(self, side: str, index: int) -> None:
        self.net.run(12.0, tick=0.05)

    # ---------------------------------------------------------------- what must hold

    def check(self) -> None:
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
        for end, budget in zip((self.net.a, self.net.b), self.budgets, strict=True):
            end.session.outbox.check_invariants()
            assert budget.used == end.session.outbox.memory
            streams = end.session.streams.values()
            assert end.session._windows.used == sum(stream.window - INITIAL_WINDOW for stream in streams)

    def heal(self) -> None:
        """A good link appears: all must arrive, nothing may have been reset, all memory returns."""
        net = self.net
        for number in list(net.pipes):
            if number not in net._parting:
                net.silence(number, False)
        net.link(relay="r9")
        for side in "ab":
            self.read_again(side, 0)
        self._run_until(self._complete)
        self.check()
        survivors = {stream_id for _, stream_id in self.sent} - self.killed
        for side, other in ("ab", "ba"):
            end = self.end_of(side)
            for stream_id in survivors:
                assert len(end.got.get(stream_id, b"")) == self.sent[other, stream_id], (
                    f"stream {stream_id} stands still"
                )
            resets = {subject for kind, subject, _ in end.seen if kind == events.RESET}
            assert resets <= self.killed, "a stream was reset that nobody reset"
            assert events.ENDED not in end.kinds()
        self._run_until(lambda: not any(budget.used for budget in self.budgets))
        assert [budget.used for budget in self.budgets] == [0, 0], "something is never acknowledged"
        assert set(net.a.session.streams) == set(net.b.session.streams)

    def _run_until(self, condition: Callable[[], bool]) -> None:
        self.net.run(0.5)
        limit = self.net.now + HEALING
        while not condition() and self.net.now < limit:
            if not self.net.pipes:  # the tunnel would dial
                self.net.link(relay="r9")
            self.net.run(0.2, tick=0.02)

    def _complete(self) -> bool:
        return all(
            len(self.end_of(side).got.get(stream_id, b"")) == self.sent[other, stream_id]
            for side, other in ("ab", "ba")
            for stream_id in {stream_id for _, stream_id in self.sent} - self.killed
        )


# How often something happens, relative to the rest.
STEPS = [
    *[World.wait] * 8,
    *[World.send, World.send_little, World.send_much, World.send_datagrams, World.link] * 4,
    *[World.cut, World.part, World.silence, World.unsilence, World.tamper] * 2,
    *[World.open_stream, World.open_flow, World.finish, World.reset, World.stop_reading, World.read_again],
    *[World.kill_relay, World.drain, World.retire, World.revalidate, World.rekey, World.wait_long],
]


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES or 15,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from("ab"), st.integers(0, 30)),
        min_size=60,
        max_size=200 if EXAMPLES else 80,
    )
)
def test_delivered_is_what_was_sent_in_order_and_once(schedule: list[tuple[Callable[..., None], str, int]]) -> None:
    world = World()
    for step, side, index in schedule:
        step(world, side, index)
        world.check()
    world.heal()
