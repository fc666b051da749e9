"""Protobuf ↔ domain: what is said of each stream. Attach and AttachResult of the attach socket, and the offers.

Plain classes and named tuples: to make a dataclass takes up to half a microsecond also where this is compiled.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from google.protobuf.message import DecodeError

from protos import tunnel_pb2 as pb
from services.tunnel.core import frames
from services.tunnel.core.frames import Opening, Reason


class OpenRequest:
    """Start a stream."""

    def __init__(
        self,
        number: int,
        node: str,
        opening: Opening,
        head: bytes,
        datagrams: tuple[bytes, ...],
        timeout: float,
        *,
        keep: bool,
        watch: bool,
        welcome: bytes,
        give_back: bool,
    ) -> None:
        self.number = number
        self.node = node
        self.opening = opening
        self.head = head
        self.datagrams = datagrams
        self.timeout = timeout
        self.keep = keep
        self.watch = watch
        self.welcome = welcome
        self.give_back = give_back
        self.asked = 0.0
        """When it came; monotonic seconds."""


class Offer:
    """A stream that a peer asks for; `path` is a link kind."""

    def __init__(self, token: bytes, peer: str, opening: Opening, traceparent: str, path: int) -> None:
        self.token = token
        self.peer = peer
        self.opening = opening
        self.traceparent = traceparent
        self.path = path


class Answer(NamedTuple):
    """Answers an offer; `refusal` None: accepted, and a descriptor came along."""

    token: bytes
    refusal: Reason | None
    service: str = ""
    """Of which this node knows the backend as an endpoint."""


class Listen(NamedTuple):
    """Asks for the offers."""


def decode_attach(data: bytes) -> OpenRequest | Answer | Listen:
    """A message of the attach socket. ValueError when it is none."""
    try:
        return _decode_attach(pb.Attach.FromString(data))
    except (DecodeError, OverflowError) as error:  # OverflowError: a duration of more years than there are
        raise ValueError("not an Attach message") from error


def _decode_attach(message: pb.Attach) -> OpenRequest | Answer | Listen:
    role = message.WhichOneof("role")
    if role == "open":
        request = message.open
        target = request.target
        udp = target.network == pb.NETWORK_UDP
        numbered = message.id != 0 and not udp
        opening = Opening(
            frames.UDP if udp else frames.TCP,
            target.address,
            target.service,
            request.traceparent,
            request.client,
        )
        timeout = request.timeout.ToTimedelta().total_seconds() if request.HasField("timeout") else 0.0
        return OpenRequest(
            message.id,
            request.node,
            opening,
            request.head,
            tuple(request.datagrams) if udp else (),
            timeout,
            keep=request.keep and numbered,
            watch=request.watch and message.id != 0,
            welcome=request.welcome,
            give_back=request.give_back and not request.keep and numbered,
        )
    if role == "accept":
        return Answer(message.accept.token, None, message.accept.service)
    if role == "refuse":
        refusal = message.refuse.refusal
        return Answer(message.refuse.token, Reason(refusal.reason, refusal.message))
    if role == "listen":
        return Listen()
    raise ValueError("an Attach message without open, accept, refuse or listen")


TAKEN_OVER = pb.AttachResult(taken_over=True).SerializeToString()
"""What a connection that listened is told when another listener takes over."""


def encode_offers(offers: Sequence[Offer]) -> bytes:
    """What a connection that listens is told of them."""
    result = pb.AttachResult()
    add_offers(result, offers)
    return result.SerializeToString()


def add_offers(response: pb.ListenResponse | pb.AttachResult, offers: Sequence[Offer]) -> None:
    """Puts them into what tells a listener."""
    for offer in offers:
        opening, message = offer.opening, response.offers.add()  # field by field: twice as fast as by a constructor
        message.token = offer.token
        message.peer = offer.peer
        message.traceparent = offer.traceparent
        message.client = opening.client
        message.path = offer.path  # type: ignore[assignment]
        target = message.target
        target.network = pb.NETWORK_UDP if opening.network == frames.UDP else pb.NETWORK_TCP
        target.address = opening.address
        target.service = opening.service


def encode_result(
    number: int,
    refusal: Reason | None,
    path: int = 0,
    rtt: float = 0.0,
    head: bytes = b"",
    *,
    ended: bool = False,
    answered: bool = False,
) -> bytes:
    """AttachResult; `rtt` in seconds, 0: not measured."""
    result = pb.AttachResult(id=number, path=path, head=head, ended=ended, answered=answered)  # type: ignore[arg-type]
    if rtt:
        result.rtt.FromTimedelta(timedelta(seconds=rtt))
    if refusal is not None:
        result.refusal.reason = refusal.code  # type: ignore[assignment]
        result.refusal.message = refusal.message
    return result.SerializeToString()
