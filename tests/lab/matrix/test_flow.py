"""What a connection concludes from the times at which it sent and heard."""

import dataclasses

import pytest

from lab.matrix.content import block
from lab.matrix.flow import BULK, IDLE, REQUEST, TCP, UDP, Finding, Flow, Pace, paces

RTT = 0.040
EVENT, END = 10.0, 14.0


def answer(flow: Flow, number: int, now: float) -> None:
    flow.receive(block(number, flow.pace.size), now)


def chat(protocol: str, *, silent: tuple[float, float] = (99.0, 99.0), lost: bool = False) -> Flow:
    """Asks every 10 ms from 9 s on; whatever would come during `silent` is late, or lost."""
    flow = Flow(Pace(protocol, REQUEST, 64, 0.010))
    asked = [9.0 + step * 0.010 for step in range(500)]
    for now in asked:
        flow.message(now)
    for number, now in enumerate(asked):
        due = now + RTT
        if silent[0] < due < silent[1]:
            if lost:
                continue
            due = silent[1]
        answer(flow, number, due)
    return flow


def test_without_an_event_there_is_no_stall() -> None:
    found = chat(TCP).finding(EVENT, END)
    assert found.stall == pytest.approx(0.0, abs=1e-6)
    assert found.normal == pytest.approx(RTT)
    assert found.intact
    assert (found.sent, found.lost) == (500 * 64, 0)


def test_the_stall_of_requests_is_the_longest_wait_beyond_the_round_trip() -> None:
    found = chat(TCP, silent=(10.0, 10.5)).finding(EVENT, END)
    assert found.stall == pytest.approx(0.5, abs=0.011)
    assert found.stall_after == pytest.approx(-RTT, abs=0.011)
    assert found.intact


def test_a_stall_that_was_over_before_the_event_does_not_count() -> None:
    assert chat(TCP, silent=(9.3, 9.8)).finding(EVENT, END).stall == pytest.approx(0.0, abs=1e-6)


def test_the_stall_of_datagrams_is_the_longest_gap_beyond_the_pace() -> None:
    found = chat(UDP, silent=(10.0, 10.5), lost=True).finding(EVENT, END)
    assert found.stall == pytest.approx(0.5, abs=0.021)
    assert found.lost == pytest.approx(50 * 64, abs=2 * 64)
    assert found.intact  # UDP promises nothing else


def test_a_lost_request_is_harm_and_never_went_on() -> None:
    found = chat(TCP, silent=(10.0, 10.5), lost=True).finding(EVENT, END)
    assert found.stall is None
    assert found.lost == pytest.approx(50 * 64, abs=2 * 64)
    assert not found.intact


def test_a_stream_that_broke_is_harm_even_if_all_came() -> None:
    flow = chat(TCP)
    flow.broken = "ConnectionResetError"
    found = flow.finding(EVENT, END)
    assert found.stall is None
    assert found.lost == 0
    assert not found.intact


def test_doubled_and_swapped_bytes_are_harm() -> None:
    for numbers, field in (([0, 1, 1, 2], "repeated"), ([0, 2, 1], "swapped")):
        flow = Flow(Pace(TCP, BULK, 1000, 0.004, 3))
        flow.message(9.0)
        for number in numbers:
            answer(flow, number, 9.1)
        found = flow.finding(EVENT, END)
        assert getattr(found, field) == 1000
        assert not found.intact


def test_the_stall_of_bulk_is_the_longest_time_without_a_byte() -> None:
    flow = Flow(Pace(TCP, BULK, 1000, 0.004))
    for step in range(500):
        now = 9.0 + step * 0.010
        flow.message(now)
        if not 10.2 < now < 11.2:
            for number in range(500):
                if number <= step and flow.answered[number] is None:
                    answer(flow, number, now)
    found = flow.finding(EVENT, flow.sent[-1])
    assert found.stall == pytest.approx(1.0, abs=0.02)
    assert found.stall_after == pytest.approx(0.2, abs=0.02)
    assert found.intact


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_flows_that_end_silent_never_went_on(protocol: str) -> None:
    flow = Flow(Pace(protocol, BULK, 1000, 0.010))
    for step in range(100):
        flow.message(9.0 + step * 0.010)
        answer(flow, step, 9.0 + step * 0.010 + RTT)
    for step in range(400):
        flow.message(10.0 + step * 0.010)
    assert flow.finding(EVENT, END).stall is None


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_stall_of_an_idle_connection_is_the_time_from_its_use_to_the_answer(protocol: str) -> None:
    flow = Flow(Pace(protocol, IDLE, 64))
    for step in range(3):
        flow.message(9.0 + step / 10)
        answer(flow, step, 9.0 + step / 10 + RTT)
    flow.message(12.0)
    if protocol == UDP:  # the first is lost, the second answered
        flow.message(12.1)
        answer(flow, 4, 12.3)
    else:
        answer(flow, 3, 12.3)
    found = flow.finding(EVENT, END)
    assert found.stall == pytest.approx(0.3 - RTT)
    assert found.stall_after == pytest.approx(2.0)
    assert found.lost == (64 if protocol == UDP else 0)


def test_an_idle_connection_that_is_not_answered_never_went_on() -> None:
    for protocol in (TCP, UDP):
        flow = Flow(Pace(protocol, IDLE, 64))
        flow.message(9.0)
        answer(flow, 0, 9.0 + RTT)
        flow.message(12.0)
        assert flow.finding(EVENT, END).stall is None
        assert not flow.flows(END, 0.4)


def test_what_was_never_sent_is_harm_for_datagrams_too() -> None:
    flow = Flow(Pace(UDP, REQUEST, 64, 0.020))
    flow.message(9.0)
    flow.receive(block(0, 64) + b"!", 9.04)
    assert not flow.finding(EVENT, END).intact


def test_a_flow_tells_whether_it_is_as_usual() -> None:
    flow = chat(TCP, silent=(10.0, 99.0), lost=True)
    assert flow.flows(10.3, 0.4)
    assert not flow.flows(10.5, 0.4)
    assert not flow.complete
    assert chat(TCP).flows(99.0, 0.4)  # who waits for nothing
    udp = chat(UDP)
    assert udp.flows(udp.arrivals[-1] + 0.3, 0.4)
    assert not udp.flows(udp.arrivals[-1] + 0.5, 0.4)


def test_findings_survive_json() -> None:
    found = chat(TCP).finding(EVENT, END)
    assert Finding(**found.as_dict()) == found
    assert dataclasses.replace(found, lost=64).intact is False


def test_bulk_is_sent_at_its_rate() -> None:
    for rate in (2e6, 16e6):
        (tcp, _) = paces(BULK, rate)
        assert tcp.size * tcp.batch * 8 / tcp.every == pytest.approx(rate)
    assert {(it.protocol, it.load) for load in (IDLE, REQUEST, BULK) for it in paces(load, 1e6)} == {
        (protocol, load) for protocol in (TCP, UDP) for load in (IDLE, REQUEST, BULK)
    }
