"""Protobuf ↔ domain towards others: the control connection's messages, and this node's discovery."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from protos import discovery_pb2, discovery_pb2_grpc
from protos import relay_pb2 as pb
from services.runtime.dial import local_channel

from .core import messages as m
from .core.report import Report
from .errors import ProtocolError

MAX_NAME = 253
"""Characters of a node name (RFC 1123, as in Kubernetes)."""
MAX_TEXT = 1024
"""Characters of a text for a person that are sent or logged."""
REPORT_TIMEOUT = 5.0
"""Seconds for discovery to answer."""

_REASONS = {
    m.Reason.NO_RESERVATION: pb.REFUSED_REASON_NO_RESERVATION,
    m.Reason.LIMIT: pb.REFUSED_REASON_LIMIT,
    m.Reason.DRAINING: pb.REFUSED_REASON_DRAINING,
    m.Reason.NOT_A_RELAY: pb.REFUSED_REASON_NOT_A_RELAY,
    m.Reason.BAD_REQUEST: pb.REFUSED_REASON_BAD_REQUEST,
}
_OUTCOMES = {
    m.Outcome.CONNECTED: pb.DIAL_BACK_OUTCOME_CONNECTED,
    m.Outcome.RESET: pb.DIAL_BACK_OUTCOME_RESET,
    m.Outcome.SILENCE: pb.DIAL_BACK_OUTCOME_SILENCE,
    m.Outcome.UNREACHABLE: pb.DIAL_BACK_OUTCOME_UNREACHABLE,
}
_OUTCOMES_BACK = {value: outcome for outcome, value in _OUTCOMES.items()}
_REASONS_BACK = {value: reason for reason, value in _REASONS.items()}


def duration(seconds: float) -> Duration:
    """Seconds as protobuf has them."""
    result = Duration()
    result.FromMicroseconds(round(seconds * 1e6))
    return result


def _seconds(value: Duration) -> float:
    return value.seconds + value.nanos / 1e9


def encode(id: int, message: m.Message) -> bytes:  # noqa: A002  the wire's word
    """A domain message as a ControlMessage."""
    out = pb.ControlMessage(id=id)
    match message:
        case m.Hello():
            out.hello.CopyFrom(
                pb.Hello(
                    version=message.version,
                    cluster=message.cluster,
                    node_name=message.node_name,
                    expected_relay=message.expected_relay,
                )
            )
        case m.Welcome():
            out.welcome.CopyFrom(
                pb.Welcome(version=message.version, node_name=message.node_name, observed=message.observed)
            )
        case m.Reserve():
            out.reserve.SetInParent()
        case m.Reserved(ttl=ttl, voucher=v):
            voucher = pb.Voucher(
                relay=v.relay, peer=v.peer, expires_at=Timestamp(seconds=v.expires_at), signature=v.signature
            )
            out.reserved.CopyFrom(pb.Reserved(ttl=duration(ttl), voucher=voucher))
        case m.Connect(peer=peer, traceparent=traceparent):
            out.connect.CopyFrom(pb.Connect(peer=peer, traceparent=traceparent))
        case m.Circuit(token=token, timeout=timeout):
            out.circuit.CopyFrom(pb.Circuit(token=token, timeout=duration(timeout)))
        case m.Incoming(peer=peer, token=token, timeout=timeout):
            out.incoming.CopyFrom(pb.Incoming(peer=peer, token=token, timeout=duration(timeout)))
        case m.Withdraw(token=token):
            out.withdraw.CopyFrom(pb.Withdraw(token=token))
        case m.Refused():
            out.refused.CopyFrom(
                pb.Refused(
                    reason=_REASONS[message.reason],
                    message=message.message[:MAX_TEXT],
                    alternatives=message.alternatives,
                    retry_after=duration(message.retry_after),
                )
            )
        case m.Heartbeat(load_permille=load):
            out.heartbeat.load_permille = load
            out.heartbeat.SetInParent()
        case m.DrainNotice(deadline=deadline, spread=spread):
            out.drain.CopyFrom(pb.DrainNotice(deadline=duration(deadline), spread=duration(spread)))
        case m.Reject(reason=reason, message=text):
            out.reject.CopyFrom(pb.Reject(reason=reason, message=text[:MAX_TEXT]))
        case m.DialBack(port=port):
            out.dial_back.CopyFrom(pb.DialBack(port=port))
        case m.DialledBack(outcome=outcome, token=token):
            out.dialled_back.CopyFrom(pb.DialledBack(outcome=_OUTCOMES[outcome], token=token))
    return out.SerializeToString()


def decode(data: bytes) -> tuple[int, m.Message]:
    """(id, message). ProtocolError when it is not a ControlMessage with a body that we know."""
    try:
        got = pb.ControlMessage.FromString(data)
    except DecodeError:
        raise ProtocolError(f"got {len(data)} bytes that are not a ControlMessage") from None
    return got.id, _body(got)


def _body(got: pb.ControlMessage) -> m.Message:
    match got.WhichOneof("body"):
        case "hello":
            hello = got.hello
            return m.Hello(hello.version, _name(hello.cluster), _name(hello.node_name), _name(hello.expected_relay))
        case "welcome":
            return m.Welcome(got.welcome.version, _name(got.welcome.node_name), _name(got.welcome.observed))
        case "reserve":
            return m.Reserve()
        case "reserved":
            v = got.reserved.voucher
            voucher = m.Voucher(_name(v.relay), _name(v.peer), v.expires_at.seconds, v.signature)
            return m.Reserved(_seconds(got.reserved.ttl), voucher)
        case "connect":
            return m.Connect(_name(got.connect.peer), got.connect.traceparent[:64])
        case "circuit":
            return m.Circuit(got.circuit.token, _seconds(got.circuit.timeout))
        case "incoming":
            incoming = got.incoming
            return m.Incoming(_name(incoming.peer), incoming.token, _seconds(incoming.timeout))
        case "withdraw":
            return m.Withdraw(got.withdraw.token)
        case "refused":
            refused = got.refused
            return m.Refused(
                _REASONS_BACK.get(refused.reason, m.Reason.BAD_REQUEST),
                refused.message[:MAX_TEXT],
                tuple(refused.alternatives),
                _seconds(refused.retry_after),
            )
        case "heartbeat":
            return m.Heartbeat(got.heartbeat.load_permille)
        case "drain":
            return m.DrainNotice(_seconds(got.drain.deadline), _seconds(got.drain.spread))
        case "reject":
            return m.Reject(got.reject.reason[:64], got.reject.message[:MAX_TEXT])
        case "dial_back":
            return m.DialBack(got.dial_back.port)
        case "dialled_back":
            back = got.dialled_back
            return m.DialledBack(_OUTCOMES_BACK.get(back.outcome, m.Outcome.UNREACHABLE), back.token)
        case _:
            raise ProtocolError("got a ControlMessage without a body that this version knows")


def _outcome(number: int) -> Outcome:
    try:
        return Outcome(number)
    except ValueError:
        return Outcome.UNREACHABLE


def _name(text: str) -> str:
    if len(text) > MAX_NAME:
        raise ProtocolError(f"got a name of {len(text)} characters, expected at most {MAX_NAME}")
    return text


class Outcome(IntEnum):
    """How another node's dial ended; numbers as DialBackOutcome in protos/discovery.proto."""

    CONNECTED = 1
    RESET = 2
    SILENCE = 3
    UNREACHABLE = 4
    LOST = 5


@dataclass(frozen=True, slots=True)
class Addresses:
    """This node's addresses."""

    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dialled:
    """A vantage dialled `ip` with `token`."""

    vantage: str
    ip: str
    token: bytes
    outcome: Outcome


class Discovery:
    """This node's discovery service. It may be absent, and may restart at any time."""

    def __init__(self, run_dir: Path) -> None:
        self._channel = local_channel(run_dir, "discovery")
        self._stub = discovery_pb2_grpc.DiscoveryServiceStub(self._channel)

    async def report(self, port: int, report: Report) -> None:
        """Say what this relay contributes to the node's record. ConnectionError when discovery did not take it."""
        relay = discovery_pb2.RelayReport(port=port)
        if report.serving:
            relay.role.CopyFrom(
                discovery_pb2.RelayRole(
                    configured=report.configured,
                    load_permille=report.load_permille,
                    circuits=report.circuits,
                    draining=report.draining,
                    proven=report.proven,
                    throughput=report.throughput,
                )
            )
            if report.up_since:
                relay.role.up_since.FromSeconds(report.up_since)
        try:
            await self._stub.ReportSelf(discovery_pb2.ReportSelfRequest(relay=relay), timeout=REPORT_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(
                f"discovery did not take the report: {error.code().name}: {error.details()}"
            ) from None

    async def probe(self, port: int, tokens: list[bytes], pace: float) -> AsyncGenerator[Addresses | Dialled, None]:
        """One round of dials from other nodes, without end; `pace`: seconds after which those who offer come again.
        ConnectionError when discovery is not there any more."""
        request = discovery_pb2.ProbePortRequest(port=port, tokens=tokens, pace=duration(pace))
        call = self._stub.ProbePort(request)
        try:
            async for event in call:
                if event.WhichOneof("event") == "addresses":
                    yield Addresses(tuple(event.addresses.ips))
                elif event.WhichOneof("event") == "outcome":
                    it = event.outcome
                    yield Dialled(it.vantage, it.ip, it.token, _outcome(it.outcome))
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(f"discovery: {error.code().name}: {error.details()}") from None
        finally:
            call.cancel()
        raise ConnectionError("discovery ended the round")

    async def watch(self, on_lost: Callable[[], None]) -> None:
        """For ever: call `on_lost` whenever the connection to discovery, once up, goes down."""
        state = self._channel.get_state()
        while True:
            await self._channel.wait_for_state_change(state)
            before, state = state, self._channel.get_state()
            if before == grpc.ChannelConnectivity.READY:
                on_lost()

    async def close(self) -> None:
        await self._channel.close(None)
