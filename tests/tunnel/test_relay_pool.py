"""At which relays a tunnel holds reservations when they are dead, full, silent or out of reach. All in this process."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from protos import relay_pb2
from services.relay.core import broker
from services.tunnel import dialling, relay_client, relays, rotation
from services.tunnel.core.punch import GO, OFFER, READY, Punch, Word
from services.tunnel.errors import LinkFailed
from services.tunnel.peers import Draining, PeerAddress, PeerInfo
from services.tunnel.punching import MAX_AT_ONCE, Punching
from tests.relay.harness import limits
from tests.tunnel.inside import Inside, Puppet, honest, inside
from tests.tunnel.local import until

Message = relay_pb2.ControlMessage


@pytest.fixture
async def here(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    """With a heart that beats quickly."""
    monkeypatch.setattr(relay_client, "HEARTBEAT", 0.1)
    async with inside(short_path) as one:
        yield one


# ---------------------------------------------------------------- alive on paper


@pytest.mark.slow
async def test_a_zombie_connection_is_no_reservation(here: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 2: the socket to the relay is established, and nobody answers on it; the record says so at once."""
    monkeypatch.setattr(relay_client, "HEARTBEAT_TIMEOUT", 0.5)
    alive = True

    def answer(puppet: Puppet, message: Message) -> Message | None:
        return honest(puppet, message) if alive else None

    zombie = await here.puppet("r1", answer)
    a = await here.tunnel("a")
    await until(lambda: here.directory.records["a"].reservations == ("r1",), "the record names the relay")
    alive = False
    await until(lambda: here.directory.records["a"].reservations == (), "the record does not name it any more")
    alive = True
    await until(lambda: here.directory.records["a"].reservations == ("r1",), "the relay has come back to life")
    assert zombie.greeted >= 2 and a.reserved() == {"r1"}


@pytest.mark.slow
async def test_a_greeting_that_is_never_answered_does_not_keep_the_client(
    here: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILURES 2, 3: the port accepts, TLS works, and the service behind it is dead: tried again, another is taken."""
    monkeypatch.setattr(relay_client, "HANDSHAKE_TIMEOUT", 0.2)
    monkeypatch.setattr(relays, "RELAYS_HELD", 1)
    dead = await here.puppet("r1", lambda _, __: None)
    await here.relay("r2", rank=2)
    a = await here.tunnel("a")
    await until(lambda: a.reserved() == {"r2"}, "the one that serves is taken")
    greeted = dead.greeted
    await until(lambda: dead.greeted > greeted, "the dead one is asked again, it may come back")


async def test_a_relay_that_answers_and_grants_nothing_does_not_take_the_place_of_one_that_does(here: Inside) -> None:
    """FAILURES 3: three relays greet and answer every heartbeat, and serve nobody."""

    def answer(puppet: Puppet, message: Message) -> Message | None:
        if message.WhichOneof("body") != "reserve":
            return honest(puppet, message)
        refused = relay_pb2.Refused(reason=relay_pb2.REFUSED_REASON_LIMIT, message="no room")
        refused.retry_after.FromSeconds(600)
        return Message(refused=refused)

    for name in ("r1", "r2", "r3"):
        await here.puppet(name, answer)
    await here.relay("r4", rank=2)
    a = await here.tunnel("a")
    await until(lambda: a.reserved() == {"r4"}, "the fourth is asked")


async def test_a_relay_whose_circuits_come_to_nothing_is_passed_over(here: Inside) -> None:
    """FAILURES 3: it grants reservations and promises circuits that are never complete."""

    def answer(puppet: Puppet, message: Message) -> Message | None:
        if message.WhichOneof("body") != "connect":
            return honest(puppet, message)
        return Message(circuit=relay_pb2.Circuit(token=b"t" * 32, timeout={"seconds": 10}))

    await here.puppet("r1", answer)
    await here.relay("r2", rank=2)
    a, b = await here.tunnel("a"), await here.tunnel("b")
    await until(lambda: a.reserved() == b.reserved() == {"r1", "r2"}, "both hold two reservations")
    await a.tunnel.ping("b", 1, 30)
    assert a.relays_in_use("b") == ["r2"]


# ---------------------------------------------------------------- out of reach


@pytest.mark.parametrize("caller", ["a", "b"])
async def test_relays_that_only_one_of_both_reaches(here: Inside, caller: str) -> None:
    """FAILURES 4: r1 is out of reach for a, r2 for b; they meet at r3."""
    for name in ("r1", "r2", "r3"):
        await here.relay(name)
    a = await here.tunnel("a", out_of_reach={"r1"})
    b = await here.tunnel("b", out_of_reach={"r2"})
    await until(lambda: a.reserved() == {"r2", "r3"} and b.reserved() == {"r1", "r3"}, "each has what it reaches")
    one, peer = (a, "b") if caller == "a" else (b, "a")
    await one.tunnel.ping(peer, 1, 30)
    assert one.relays_in_use(peer) == ["r3"]


async def test_who_reaches_one_relay_only_is_met_there(here: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 4: a reaches only r4, where b had no reason to hold a reservation, and a calls b."""
    names = ["r1", "r2", "r3", "r4"]
    for number, name in enumerate(names, start=1):
        await here.relay(name, rank=number)
    b = await here.tunnel("b")
    await until(lambda: b.reserved() == {"r1", "r2", "r3"}, "b has its three")
    a = await here.tunnel("a", out_of_reach={"r1", "r2", "r3"})
    await until(lambda: a.reserved() == {"r4"}, "a has the one it reaches")
    await until(lambda: b.reserved() == set(names), "b comes there, too")
    await a.tunnel.ping("b", 1, 30)
    assert a.relays_in_use("b") == ["r4"]
    here.directory.withdraw("a")
    assert not b.tunnel.relays.clients["r4"].hold, "without a there is no need"
    assert all(b.tunnel.relays.clients[name].hold for name in names[:3])


async def test_strangers_make_a_tunnel_hold_two_reservations_more_at_most(
    here: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILURES 4: however many peers hold theirs elsewhere."""
    # All are as near, whatever a busy machine measures: one that was slow to answer at first is left for a nearer one.
    monkeypatch.setattr(relays.RelayPool, "measured", lambda *_: None)
    for number in range(1, 10):
        await here.relay(f"r{number}", rank=number)
    b = await here.tunnel("b")
    await until(lambda: len(b.reserved()) == 3, "b has its three")
    for number in range(200):
        there = (f"r{4 + number % 6}",) if number < 150 else ("r9",)
        here.directory.publish(PeerInfo(f"peer-{number}", reservations=there))
        await asyncio.sleep(0)

    def held() -> set[str]:
        return {name for name, client in b.tunnel.relays.clients.items() if client.hold}

    await until(lambda: b.reserved() == held() and len(held()) == 5, "two more")
    assert held() > {"r1", "r2", "r3"}


# ---------------------------------------------------------------- forgotten


@pytest.mark.slow
async def test_a_relay_that_failed_many_times_is_asked_again(here: Inside) -> None:
    """FAILURES 8: a relay is away when the node starts, comes, dies under the reservation, and comes back."""
    address = here.ground.address()
    here.announce("r1", address)
    a = await here.tunnel("a")
    await until(lambda: a.tunnel.relays.clients["r1"].failing, "it failed twice")
    relay = await here.relay("r1", address=address)
    await until(lambda: a.reserved() == {"r1"}, "it is asked again")
    await relay.close()
    await until(lambda: not a.reserved() and a.tunnel.relays.clients["r1"].failing, "it is lost, and fails")
    await here.relay("r1", address=address)
    await until(lambda: a.reserved() == {"r1"}, "and asked again")


@pytest.mark.slow
async def test_a_reservation_refused_in_mid_session_is_asked_for_again(here: Inside) -> None:
    """FAILURES 8: the control connection lives, the reservation runs out because the relay has no room for a while."""
    full, lives = False, 1

    def answer(puppet: Puppet, message: Message) -> Message | None:
        if message.WhichOneof("body") != "reserve":
            return honest(puppet, message)
        if full:
            return Message(refused=relay_pb2.Refused(reason=relay_pb2.REFUSED_REASON_LIMIT))
        return Message(reserved=relay_pb2.Reserved(ttl={"seconds": lives}))

    puppet = await here.puppet("r1", answer)
    a = await here.tunnel("a")
    await until(lambda: a.reserved() == {"r1"}, "there is room")
    full = True
    await until(lambda: a.tunnel.relays.clients["r1"].state.startswith("refused"), "there is none")
    await until(lambda: not a.reserved(), "what ran out is not told of any more")
    full = False
    await until(lambda: a.reserved() == {"r1"}, "there is room again")
    assert puppet.greeted == 1, "all on one connection"


# ---------------------------------------------------------------- another one


@pytest.mark.slow
async def test_a_relay_is_not_left_before_the_record_names_the_other_one(
    here: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it is where others look for us."""
    monkeypatch.setattr(relays, "RELAYS_HELD", 1)
    await here.relay("far")
    a = await here.tunnel("a")
    await until(lambda: a.reserved() == {"far"}, "a has a reservation")
    pool, measured = a.tunnel.relays, a.tunnel.relays.measured
    pool.measured = lambda name, rtt, now: measured(name, rtt + 0.1 * (name == "far"), now)
    pool._near.clear()
    report = a.view.report

    async def unreachable(*_: object) -> bool:
        return False

    a.view.report = unreachable
    await here.relay("near")
    await until(lambda: a.reserved() == {"far", "near"}, "a has one at the nearer relay, too")
    await until(lambda: pool.known() == ["near", "far"], "a knows that it is nearer")
    await asyncio.sleep(1.0)
    assert a.reserved() == {"far", "near"} and "near" not in here.directory.records["a"].reservations
    a.view.report = report
    await until(lambda: a.reserved() == {"near"}, "the other one is left")
    await until(lambda: here.directory.records["a"].reservations == ("near",), "and not named any more")


async def test_a_relay_that_refuses_is_believed_who_may_help(here: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no room, and names one that would be the last to be asked."""
    monkeypatch.setattr(relays, "RELAYS_HELD", 1)

    def answer(puppet: Puppet, message: Message) -> Message | None:
        if message.WhichOneof("body") != "reserve":
            return honest(puppet, message)
        limit = relay_pb2.REFUSED_REASON_LIMIT
        return Message(refused=relay_pb2.Refused(reason=limit, alternatives=["r4"], retry_after={"seconds": 3600}))

    await here.puppet("r1", answer)
    for number in (2, 3, 4):
        await here.relay(f"r{number}", rank=number)
    a = await here.tunnel("a")
    await until(lambda: a.reserved() == {"r4"}, "a goes where it was sent")
    assert not {"r2", "r3"} & a.tunnel.relays.clients.keys()


# ---------------------------------------------------------------- no herd


@pytest.mark.slow
async def test_a_relay_without_room_keeps_the_crowd_away(here: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 10: half the relays are gone, all nodes come to the other half: who finds it full waits as long as *it*
    says, at random times, and does not come back with a handshake as often as it likes."""
    monkeypatch.setattr(relay_client, "BACKOFF_MOST", 0.01)
    monkeypatch.setattr(broker, "RETRY_AFTER", 3.0)
    relay = await here.relay("r1", limits(max_reservations=1))
    began = time.monotonic()
    crowd = [await here.tunnel(f"n{number}") for number in range(6)]
    # Four find no room for a connection, one has a connection and no reservation.
    await until(lambda: relay.status().refused.get("limit", 0) >= 5, "there is room for one")
    await asyncio.sleep(2.0)
    rounds = 1 + int((time.monotonic() - began) / 3.0)
    assert relay.status().refused["limit"] <= 5 * (rounds + 1)
    assert sum(len(node.reserved()) for node in crowd) == 1


async def test_who_is_asked_to_leave_goes_at_a_time_of_its_own(here: Inside) -> None:
    """FAILURES 10: the relay that stops says within which time its clients shall move, and they spread over it."""
    await here.relay("r1")
    a = await here.tunnel("a")
    await until(lambda: a.reserved() == {"r1"}, "a has a reservation")
    moved: list[float] = []
    a.tunnel.relays.drained = lambda _: moved.append(time.monotonic())
    client = a.tunnel.relays.clients["r1"]
    await asyncio.gather(*(client._leave(Draining(deadline=10.0, spread=0.5)) for _ in range(30)))
    assert len(moved) == 30 and moved[-1] - moved[0] > 0.2


# ---------------------------------------------------------------- where a relay sees us


@pytest.mark.parametrize("said", ["nonsense", "192.0.2.1", "192.0.2.1:x", "[::]:20006", "224.0.0.1:20006", "its own"])
async def test_what_cannot_be_our_address_is_not_told(here: Inside, said: str) -> None:
    """FAILURES 22: a relay tells of its own address, or of none, as the one at which it sees us."""
    address = ""

    def answer(puppet: Puppet, message: Message) -> Message | None:
        return honest(puppet, message, f"{address}:20007" if said == "its own" else said)

    await here.puppet("r1", answer)
    address = here.directory.records["r1"].relay_addresses[0][0]
    await here.relay("r2", rank=2)
    a = await here.tunnel("a", listens=True)
    await until(lambda: set(here.directory.records["a"].reservations) == {"r1", "r2"}, "both serve, the record says so")
    assert a.view.observed == [(a.address, 20006)], "what the honest one sees"


@pytest.mark.slow
async def test_the_address_of_another_port_is_not_told(here: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 22: a control connection that could not be made from the listen port shows some other port's mapping."""
    connect = dialling.connect

    async def elsewhere(ip: str, port: int, *, source: tuple[str, int], exact: bool = False):
        if exact:
            raise LinkFailed("that port is taken")
        return await connect(ip, port, source=(source[0], 0))

    monkeypatch.setattr(dialling, "connect", elsewhere)
    await here.relay("r1")
    a = await here.tunnel("a", listens=True)
    await until(lambda: here.directory.records["a"].reservations == ("r1",), "it serves")
    assert a.view.observed == []
    monkeypatch.undo()
    await until(lambda: a.view.observed == [(a.address, 20006)], "it comes back to the listen port")


@pytest.mark.slow
async def test_a_control_connection_that_is_replaced_comes_back_to_the_listen_port(here: Inside) -> None:
    """FAILURES 18, 22: while the old one holds the port the new one cannot come from it. What others know as this node's
    address stays true, and stays known."""
    await here.relay("r1")
    a = await here.tunnel("a", listens=True)
    pool, told = a.tunnel.relays, []
    await until(lambda: a.view.observed, "the relay sees it")
    report = a.view.report

    async def noted(port, reservations, observed, mapped=None) -> bool:
        told.append(observed)
        return await report(port, reservations, observed, mapped)

    a.view.report = noted
    for _ in range(2):
        old = pool.clients["r1"]
        assert old.from_listen_port
        await a.tunnel.rotation._rotate_client(old)
        strays = pool.clients["r1"]
        assert strays is not old and not strays.from_listen_port
        await until(lambda: pool.clients["r1"].from_listen_port, "from the listen port again")
    await asyncio.sleep(0.2)  # REPORT_DELAY, and some more
    assert told and all(observed == [(a.address, 20006)] for observed in told)


@pytest.mark.slow
async def test_who_cannot_come_from_the_listen_port_tries_it_less_and_less(
    here: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not said to be where nobody sees it any more."""
    monkeypatch.setattr(rotation, "WITHIN", 0.1)
    monkeypatch.setattr(rotation, "AGAIN_AFTER", 0.0)
    await here.relay("r1")
    a = await here.tunnel("a", listens=True)
    pool = a.tunnel.relays
    await until(lambda: a.view.observed, "the relay sees it")
    await a.tunnel.rotation._rotate_client(old := pool.clients["r1"])
    strays, connect = pool.clients["r1"], dialling.connect
    assert strays is not old

    async def taken(ip: str, port: int, *, exact: bool = False, **how):
        if exact:
            raise LinkFailed("that port is taken")
        return await connect(ip, port, **how)

    monkeypatch.setattr(dialling, "connect", taken)
    await until(lambda: a.view.observed == [], "what was seen is not told any more")
    await until(lambda: a.tunnel.rotation._returns["r1"].failures >= 3, "it is tried again")
    pace = a.tunnel.rotation._returns["r1"]
    assert pace.until - time.monotonic() > 0.0 and pool.clients["r1"] is strays and strays.reserved


# ---------------------------------------------------------------- a home router's table


@pytest.mark.slow
async def test_dials_for_a_better_path_are_few_at_a_time(here: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 23: eight peers with a dozen addresses each that do not answer, while all are served by a relay. The
    router of this node sees a bounded number of flows."""
    connect, dialling_now, most = dialling.connect, 0, 0

    async def counted(ip: str, port: int, **how):
        nonlocal dialling_now, most
        if not ip.startswith("192.0.2."):
            return await connect(ip, port, **how)
        dialling_now += 1
        most = max(most, dialling_now)
        try:
            await asyncio.sleep(1.0)
            raise LinkFailed("no answer")
        finally:
            dialling_now -= 1

    await here.relay("r1")
    a = await here.tunnel("a")
    peers = [await here.tunnel(f"p{number}") for number in range(8)]
    await until(lambda: all(peer.reserved() for peer in [a, *peers]), "all can be reached")
    monkeypatch.setattr(dialling, "connect", counted)
    await asyncio.gather(*(a.tunnel.ping(peer.name, 1, 60) for peer in peers))
    for number, peer in enumerate(peers):
        addresses = tuple(PeerAddress(f"192.0.2.{number + 1}", 1000 + port) for port in range(12))
        here.directory.publish(PeerInfo(peer.name, addresses, reservations=("r1",)))
    await until(lambda: most >= 16, "they are dialled")
    await asyncio.sleep(0.5)
    assert most <= 32


OWN = ("127.0.0.1", 9)


class Peer(SimpleNamespace):
    """What punching needs of a session; its peer answers whatever the test says."""

    def __init__(self, name: str, starter: bool) -> None:
        session = SimpleNamespace(active=SimpleNamespace(rtt=60.0), note=lambda _: None, links=[])
        super().__init__(session=session, punch=Punch(starter=starter), mark=lambda: None, peer=name)

    __hash__ = object.__hash__


def punching_of_a_node() -> Punching:
    settings = SimpleNamespace(listen_port=20006, listen_address="127.0.0.1")
    return Punching(settings, lambda: [OWN], None, None, None)


async def test_attempts_to_punch_are_few_at_a_time() -> None:
    """FAILURES 23: a hundred peers offer to punch at once, and a hundred are ready at once."""
    for starter in (True, False):
        punching = punching_of_a_node()
        peers = [Peer(f"p{number}", starter) for number in range(100)]
        for peer in peers:
            if starter:
                punching.consider(peer)
            else:
                punching.hear(peer, Word(OFFER, 1, (OWN,)).encode())
        for peer in peers:
            punching.hear(peer, Word(READY if starter else GO, 1, (OWN,)).encode())
        assert len(punching._running) == MAX_AT_ONCE
        await punching.close()


async def test_two_sessions_with_a_peer_do_not_punch_both() -> None:
    """FAILURES 20: both dialled at once, so there are two for a while, and each side begins one and starts the other's
    punches."""
    punching = punching_of_a_node()
    ours, theirs = Peer("p", True), Peer("p", False)
    punching.consider(ours)
    punching.hear(theirs, Word(OFFER, 1, (OWN,)).encode())
    assert list(punching._running) == [ours]
    await punching.close()
