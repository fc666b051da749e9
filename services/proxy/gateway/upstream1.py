"""HTTP/1.1 to a backend."""

from dataclasses import dataclass, field

import h11

from services.proxy.core.gateway.headers import Head, Header, framing
from services.proxy.gateway.message import Answer, Asked, End
from services.proxy.gateway.upstream import MAX_HEAD, Garbled, Upstream


@dataclass(slots=True, eq=False)
class Http1Upstream(Upstream):
    """See Upstream."""

    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT, MAX_HEAD))

    async def ask(self, asked: Asked, head: Head) -> None:
        headers = [*asked.headers, *framing(head, has_body=asked.has_body)]
        try:
            begin = self.http.send(h11.Request(method=asked.method, target=asked.target, headers=headers))
            end = b"" if asked.has_body else self.http.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise Garbled(f"a request that cannot be sent: {error}") from error
        try:
            await self.stream.write(begin or b"", end or b"")
        except OSError:
            pass

    async def send(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def finish(self, trailers: list[Header]) -> None:
        await self._send(h11.EndOfMessage(headers=trailers))

    async def hear(self) -> Answer | bytes | End:
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                data = await self.stream.read()
                self.heard = self.heard or bool(data)
                self.http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise Garbled(str(error)) from error
        match event:
            case h11.Data():
                return event.data
            case h11.Response() | h11.InformationalResponse():
                return Answer(event.status_code, list(event.headers), event.reason)
            case h11.EndOfMessage():
                return End(list(event.headers))
        raise Garbled(f"{event!r}, expected an answer")

    def renew(self) -> bool:
        http = self.http
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE or http.trailing_data[0]:
            return False
        http.start_next_cycle()
        return True

    async def idle(self) -> None:
        """Nothing may come while there is no request."""
        await self.stream.idle()

    async def _send(self, event: h11.Event) -> None:
        try:
            pieces = self.http.send_with_data_passthrough(event) or ()
        except h11.LocalProtocolError as error:
            raise Garbled(str(error)) from error
        await self.stream.write(*pieces)
