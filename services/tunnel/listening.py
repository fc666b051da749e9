"""A connection to the attach socket on which offers are told, as many at a time as have gathered."""

from services.tunnel import wire
from services.tunnel.attach import Connection
from services.tunnel.engine import Engine
from services.tunnel.offers import Offers

AT_ONCE = 12
"""Offers in one message, of 64 KiB at most: each has four texts of up to 1 KiB and a name."""


class Listening:
    """See the module."""

    def __init__(self, engine: Engine, offers: Offers, connection: Connection) -> None:
        self._engine = engine
        self._offers = offers
        self._connection = connection
        self._marked = False

    def news(self) -> None:
        """There are offers to take."""
        if not self._marked:
            self._marked = True
            self._engine.dirty(self)

    def flush(self, now: float) -> None:
        """Tells them. Those that a connection was told and did not answer are told to the next one."""
        self._marked = False
        while self._connection.takes_messages and (offers := self._offers.take(self, AT_ONCE)):
            self._connection.answer(wire.encode_offers(offers))

    def broke(self) -> None:
        """Telling them failed, a fault of ours."""
        self._connection.close()

    def replaced(self) -> None:
        """Another listener took over."""
        if self._connection.takes_messages:
            self._connection.answer(wire.TAKEN_OVER)
