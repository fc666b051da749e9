"""Twelve nodes behind symmetric NATs and three relays about equally near: the fullest relay dies, returns, and drains.

`python -m lab.rootless python -m tests.e2e.crowd [--partners N] [--pace SECONDS]` prints what every client saw, how the
sessions spread, and how many moved in each second.
"""

import argparse
import asyncio
import contextlib
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.folder import short_folder
from lab.nat import Kind, Nat
from lab.network import Network
from lab.node import Node, together
from lab.place import simulated
from lab.stalls import longest_wait, percentile
from lab.wire import Shape
from protos import tunnel_pb2 as pb
from tests.e2e import figures
from tests.e2e.traffic import eventually
from tests.tunnel.local import Attached, Exit

NODES = 12
RELAYS = {"r1": Shape(delay=0.010), "r2": Shape(delay=0.011), "r3": Shape(delay=0.012)}  # one way, seconds
PARTNERS = 5
"""Nodes that each node calls: 60 sessions. With fewer, chance alone puts more than 60 % on one of two relays at times:
24 sessions in 1 of 20 runs, 36 in 1 of 80 (by simulation of the choice)."""
PACE = 0.5  # seconds between an answer and the next request of a stream; 0.1 takes a core more
SHARE = 0.6  # of all sessions at one relay, from the requirement
WATCHED = 10.0  # seconds after a relay was killed or drained
RETURN_WATCHED = 25.0  # seconds; who moves to a relay that returned begins to within 15


class Talk:
    """A stream from one node to another: a request, its answer, a pause, and so on."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.asked: list[float] = []
        self.answered: list[float | None] = []

    async def run(self, pace: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            request = b"%064d" % len(self.asked)
            self.asked.append(time.monotonic())
            self.answered.append(None)
            await loop.sock_sendall(self._sock, request)
            answer = b""
            while len(answer) < len(request):
                part = await loop.sock_recv(self._sock, len(request) - len(answer))
                assert part, "the stream ended"
                answer += part
            assert answer == request, "the answer is to another request"
            self.answered[-1] = time.monotonic()
            await asyncio.sleep(pace)

    def answered_since(self, start: float) -> bool:
        """Whether something that was said after `start` was answered."""
        return any(sent > start and answer for sent, answer in zip(self.asked, self.answered, strict=True))

    def stall(self, start: float) -> float:
        """Seconds of the longest wait for an answer that had not come at `start`."""
        return longest_wait(self.asked, self.answered, start, time.monotonic())[0]


@dataclass
class Watch:
    """What happened from its start on."""

    start: float = field(default_factory=time.monotonic)
    before: Counter[str] = field(default_factory=Counter)
    seconds: list[int] = field(default_factory=list)
    """Sessions that went to another relay, by second."""
    reasons: Counter[str] = field(default_factory=Counter)
    stalls: list[float] = field(default_factory=list)
    """Of each stream, its longest."""
    places: Counter[str] = field(default_factory=Counter)
    """Sessions by relay at the end."""

    @property
    def share(self) -> float:
        """Of the fullest relay."""
        return max(self.places.values()) / self.places.total()

    def __str__(self) -> str:
        ms = [round(stall * 1000) for stall in self.stalls]
        parts = [f"{name} {count} ({count / self.places.total():.0%})" for name, count in sorted(self.places.items())]
        moves = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()) if count) or "none"
        return (
            f"stall of {len(ms)} streams: median {percentile(ms, 0.5)} ms, 90 % {percentile(ms, 0.9)} ms, max {max(ms)} ms\n"
            f"  sessions: {', '.join(parts)}\n"
            f"  moves: {moves}; most in a second {max(self.seconds, default=0)}; by second {self.seconds}"
        )


class Crowd:
    """The network, its nodes, their sessions and streams. Start, use, stop."""

    def __init__(self, folder: Path, nodes: int = NODES, partners: int = PARTNERS) -> None:
        self.network = Network()
        self.talks: list[Talk] = []
        try:
            relays = [simulated(self.network.public(name, shape=shape)) for name, shape in RELAYS.items()]
            names = [f"n{number:02}" for number in range(nodes)]
            homes = [self.network.lan(f"home-{name}", Nat(Kind.SYMMETRIC)) for name in names]
            # They do not listen: nobody punches, which would be in vain and costs more time than all their traffic.
            places = [simulated(home.host(name), listens=False) for home, name in zip(homes, names, strict=True)]
            psk = secrets.token_hex(32)
            self.relays = {it.name: Node(it, folder / it.name, psk=psk, relays=relays) for it in relays}
            self.nodes = [Node(it, folder / it.name, psk=psk, relays=relays, relay_mode="off") for it in places]
        except BaseException:
            self.network.close()
            raise
        pairs = [
            (caller, self.nodes[(index + step) % nodes])
            for step in range(1, partners + 1)
            for index, caller in enumerate(self.nodes)
        ]
        self.pairs = list({frozenset(it): it for it in pairs}.values())
        """Each two nodes once: they have one session, whoever calls."""

    async def start(self) -> None:
        """Starts everything; each node has a reservation at every relay, and each pair a session with a standby."""
        for relay in self.relays.values():
            relay.start("discovery", "relay")
        await together(relay.ready("discovery", "relay", timeout=120) for relay in self.relays.values())
        for node in self.nodes:
            node.start("discovery", "tunnel")
        await together(node.ready("discovery", "tunnel", timeout=180) for node in self.nodes)
        for node in self.nodes:
            await eventually(lambda node=node: self._reserved(node), f"{node.name} has its reservations", 120)
        for caller, callee in self.pairs:
            await caller.ping(callee.name, timeout=60)
        await eventually(self.settled, "every session has a path and a standby", 120)

    async def stop(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.network.close)
            await asyncio.gather(*(node.stop(timeout=5) for node in [*self.nodes, *self.relays.values()]))

    @contextlib.asynccontextmanager
    async def streams(self, pace: float) -> AsyncIterator[None]:
        """A stream for each pair, whose end echoes. One that breaks breaks the block."""
        async with contextlib.AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            tasks: list[asyncio.Task[None]] = []

            async def answer(offer: pb.Offer) -> socket.socket:
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                stack.callback(ours.close)
                tasks.append(group.create_task(_echo(ours)))
                return theirs

            for node in self.nodes:
                await stack.enter_async_context(Exit(node, answer))
            for caller, callee in self.pairs:
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                stack.callback(ours.close)
                attached = Attached(caller)
                stack.callback(attached.close)
                number = attached.open(callee.name, "127.0.0.1:1", theirs)
                result = await attached.result(number)
                assert not result.HasField("refusal"), result
                self.talks.append(talk := Talk(ours))
                tasks.append(group.create_task(talk.run(pace)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------- what is seen

    async def _reserved(self, node: Node) -> bool:
        return [it.state for it in (await node.tunnel()).relays].count("reserved") == len(RELAYS)

    async def sessions(self) -> list[tuple[str, str]]:
        """Relays of the active link and of the standby, of each pair, as its caller says."""
        found = []
        for node in self.nodes:
            peers = {callee.name for caller, callee in self.pairs if caller is node}
            for session in (await node.tunnel()).sessions:
                if session.peer in peers:
                    over = [link.relay for link in session.links if link.state != "closing"]  # the active one first
                    found.append((over[0] if over else "", over[1] if len(over) > 1 else ""))
        return found

    async def places(self) -> Counter[str]:
        """Sessions by relay."""
        return Counter(active for active, _ in await self.sessions())

    async def settled(self) -> bool:
        """Whether every pair has a link over a relay, and another one over another."""
        found = await self.sessions()
        return len(found) == len(self.pairs) and all(active and standby for active, standby in found)

    async def left(self, relay: str) -> bool:
        """Whether no session runs through a relay (any more), and each has a path and a standby."""
        return await self.settled() and not (await self.places())[relay]

    async def answered(self, since: float) -> bool:
        """Whether every stream has had an answer to what it said after that."""
        return all(talk.answered_since(since) for talk in self.talks)

    async def moves(self) -> Counter[str]:
        """Sessions that went to another relay, by reason, since the start."""
        total: Counter[str] = Counter()
        for node in self.nodes:
            total.update((await node.tunnel()).migrations)
        return total

    async def watch(self, seconds: float, watch: Watch) -> Watch:
        """Looks on for so long, and completes what was begun."""
        last = watch.before
        for second in range(1, round(seconds) + 1):
            await asyncio.sleep(max(watch.start + second - time.monotonic(), 0.0))
            now = await self.moves()
            watch.seconds.append((now - last).total())
            last = now
        watch.reasons = last - watch.before
        watch.stalls = [talk.stall(watch.start) for talk in self.talks]
        watch.places = await self.places()
        return watch

    # ---------------------------------------------------------------- what happens

    async def quiet(self, seconds: float = WATCHED) -> Watch:
        """Nothing happens: what the machine does by itself."""
        return await self.watch(seconds, Watch(before=await self.moves()))

    async def kill_fullest(self, seconds: float = WATCHED) -> tuple[Node, Watch]:
        """SIGKILL to the relay with most sessions."""
        fullest = self.relays[(await self.places()).most_common(1)[0][0]]
        before = await self.moves()
        fullest.signal(9, "relay", "discovery")
        watch = Watch(before=before)
        await fullest.kill("relay", "discovery")
        return fullest, await self.watch(seconds, watch)

    async def revive(self, relay: Node, seconds: float = RETURN_WATCHED) -> Watch:
        """It starts again."""
        before = await self.moves()
        relay.start("discovery", "relay")
        await relay.ready("discovery", "relay", timeout=120)
        return await self.watch(seconds, Watch(before=before))

    async def drain_fullest(self, seconds: float = WATCHED) -> tuple[Node, Watch]:
        """SIGTERM to the relay with most sessions."""
        relay = self.relays[(await self.places()).most_common(1)[0][0]]
        before = await self.moves()
        watch = Watch(before=before)
        await relay.stop("relay")
        return relay, await self.watch(seconds, watch)


async def _echo(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(sock, 4096):
            await loop.sock_sendall(sock, data)


@contextlib.contextmanager
def crowd(nodes: int = NODES, partners: int = PARTNERS) -> Iterator[Crowd]:
    """One in a folder of its own, started by the caller, stopped here."""
    with short_folder() as folder:
        one = Crowd(folder, nodes, partners)
        try:
            yield one
        finally:
            asyncio.run(one.stop())


async def _show(one: Crowd, pace: float) -> None:
    await one.start()
    found = await one.sessions()
    standbys = {name: Counter(standby for active, standby in found if active == name) for name in RELAYS}
    print(f"{len(one.nodes)} nodes, {len(one.pairs)} sessions; standbys by relay: ", end="")
    print("; ".join(f"{name}: {dict(sorted(counts.items()))}" for name, counts in standbys.items()), flush=True)
    async with one.streams(pace):
        print("nothing happens:", await one.quiet(), flush=True)
        relay, watch = await one.kill_fullest()
        print(f"{relay.name} killed:", watch, flush=True)
        figures.note("crowd stall", max(watch.stalls))
        figures.note("crowd share", 100 * watch.share)
        watch = await one.revive(relay)
        print(f"{relay.name} returns:", watch, flush=True)
        figures.note("crowd herd", max(watch.seconds, default=0))
        await eventually(one.settled, "every session has a path and a standby", 120)
        relay, watch = await one.drain_fullest()
        print(f"{relay.name} drains:", watch, flush=True)
        figures.note("crowd drain", max(watch.stalls))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--partners", type=int, default=PARTNERS, help="nodes that each one calls")
    parser.add_argument("--pace", type=float, default=PACE, help="seconds between an answer and the next request")
    options = parser.parse_args()
    with crowd(partners=options.partners) as one:
        asyncio.run(_show(one, options.pace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
