"""gRPC through the ingress gateway: grpcio before and behind it, in clear text and in TLS."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from lab.clients.rpc_program import OPTIONS, SERVICE, Calls, Echo
from tests.proxy.conftest import until
from tests.proxy.ingress import Authority, Ingress, gateway, route, routes, secret, server, to
from tests.proxy.neighbours import service

pytestmark = pytest.mark.slow


class Counting(Echo):
    """Knows how many calls came that it does not answer."""

    hanging = 0

    async def hang(self, request: bytes, context: Any) -> bytes:
        self.hanging += 1
        return await super().hang(request, context)


@dataclass
class Rpc:
    """A server of gRPC on this node, as service `rpc` port 80, and a gateway before it."""

    ingress: Ingress
    echo: Counting
    server: Any
    port: int
    ip: str

    async def serve(self, name: str, name_of_port: str, port: int = 0) -> None:
        """A port of the node as a service, to which all goes."""
        endpoint = ("n", self.ip, port or self.port)
        self.ingress.node.discovery.put(service(name, "", endpoint, name_of_port=name_of_port))
        await self.ingress.set(gateway(server(8080, "GRPC")), routes(route(name)))

    def channel(self, port: int = 8080) -> Any:
        return grpc.aio.insecure_channel(f"{self.ingress.ip}:{port}", options=OPTIONS)


@pytest.fixture
async def rpc(ingress: Ingress) -> AsyncIterator[Rpc]:
    echo, ip = Counting(), ingress.loopback_ip()
    made = grpc.aio.server(options=OPTIONS)
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, echo.handlers()),))
    port = made.add_insecure_port(f"{ip}:0")
    await made.start()
    found = Rpc(ingress, echo, made, port, ip)
    await found.serve("rpc", "grpc")
    yield found
    await found.server.stop(None)


ALL = ["unary", "server_stream", "client_stream", "both_streams", "large", "status", "deadline", "cancellation", "load"]


@pytest.mark.parametrize("name_of_port", ["grpc", "grpc-api", "h2c", "http2-x"])
async def test_all_kinds_of_calls(rpc: Rpc, name_of_port: str) -> None:
    await rpc.serve("other", name_of_port)
    async with rpc.channel() as channel:
        calls = Calls(channel, 200)
        for name in ALL if name_of_port == "grpc" else ALL[:4]:
            await getattr(calls, name)()


async def test_in_tls(rpc: Rpc) -> None:
    ca = Authority()
    mutual = {"mode": "MUTUAL", "credentialName": "m"}
    await rpc.ingress.set(
        secret("c", ca.issue("a.test")),
        secret("m", ca.issue("m.test")),
        gateway(
            server(8443, "HTTPS", "a.test", mode="SIMPLE", credentialName="c"),
            server(8443, "HTTPS", "m.test", **mutual),
        ),
    )
    mine, where = ca.issue("me"), f"{rpc.ingress.ip}:8443"
    trusting = grpc.ssl_channel_credentials(ca.pem.encode())
    known = grpc.ssl_channel_credentials(ca.pem.encode(), mine["tls.key"].encode(), mine["tls.crt"].encode())
    for credentials, name in ((trusting, "a.test"), (known, "m.test")):
        options = [*OPTIONS, ("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        async with grpc.aio.secure_channel(where, credentials, options=options) as channel:
            for kind in ("unary", "both_streams", "large", "cancellation"):
                await getattr(Calls(channel, 1), kind)()


async def failure(channel: Any, method: str = f"/{SERVICE}/Unary", timeout: float = 60.0) -> tuple[Any, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(method)(b"x", timeout=timeout)
    return caught.value.code(), caught.value.details() or ""


async def test_what_fails_is_said_in_the_status(rpc: Rpc) -> None:
    ingress = rpc.ingress
    ingress.serve("none")
    ingress.node.discovery.put(service("closed", "", ("n", ingress.ip, 1), name_of_port="grpc"))
    await ingress.backend("web")
    hang = route("rpc", f"/{SERVICE}/Hang", timeout="300ms")
    fault = {
        "match": [{"uri": {"prefix": "/fault"}}],
        "directResponse": {"status": 503, "body": {"string": "100% out"}},
    }
    rules = [route(name, f"/{name}/") for name in ("none", "closed", "web")]
    await ingress.set(routes(hang, fault, *rules, route("rpc", f"/{SERVICE}/")))
    code = grpc.StatusCode
    async with rpc.channel() as channel:
        for method, status, why in (
            ("/nobody/X", code.UNIMPLEMENTED, "no route"),
            ("/none/X", code.UNAVAILABLE, "no endpoint of default/none:80 is ready"),
            ("/closed/X", code.UNAVAILABLE, "causeway: connection_refused: connect to "),
            ("/fault/X", code.UNAVAILABLE, "100% out"),
            (f"/{SERVICE}/Hang", code.DEADLINE_EXCEEDED, "no answer from default/rpc:80 in time"),
            (f"/{SERVICE}/Nothing", code.UNIMPLEMENTED, "Method not found"),
        ):
            found = await failure(channel, method)
            assert (found[0], found[1][: len(why)]) == (status, why)
        assert (await failure(channel, "/web/X"))[0] == code.UNKNOWN, "a backend of HTTP/1.1 that answers 200"
        await Calls(channel, 1).unary()
    assert rpc.echo.cancelled == 1


async def test_routes_by_method_and_by_header(rpc: Rpc) -> None:
    """What a canary is made of."""
    ingress = rpc.ingress

    async def another(request: bytes, _: Any) -> bytes:
        return b"other"

    other = grpc.aio.server(options=OPTIONS)
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(another)}
    other.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    ip = ingress.loopback_ip()
    port = other.add_insecure_port(f"{ip}:0")
    await other.start()
    ingress.node.discovery.put(service("other", "", ("n", ip, port), name_of_port="grpc-web"))
    canary = {"match": [{"headers": {"x-canary": {"exact": "1"}}}], "route": [to("other")]}
    split = {
        "match": [{"uri": {"prefix": f"/{SERVICE}/Unary"}}],
        "route": [to("rpc", weight=50), to("other", weight=50)],
    }
    await ingress.set(routes(canary, split, route("rpc")))
    async with rpc.channel() as channel:
        unary = channel.unary_unary(f"/{SERVICE}/Unary")
        assert await unary(b"x", metadata=(("x-canary", "1"),)) == b"other"
        assert {await unary(b"x") for _ in range(40)} == {b"x", b"other"}
        await Calls(channel, 1).server_stream()
    await other.stop(None)


async def test_who_does_not_read_holds_back_who_sends(rpc: Rpc) -> None:
    """Flow control goes through, both ways."""
    message, count, sent, asked = bytes(64 << 10), 1000, 0, 0
    ready = asyncio.Event()

    async def pour(request: bytes, _: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(count):
            sent += 1
            yield message

    async def sip(requests: AsyncIterator[bytes], _: Any) -> bytes:
        await ready.wait()
        return b"%d" % len([it async for it in requests])

    async def requests() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(count):
            asked += 1
            yield message

    more = grpc.aio.server(options=OPTIONS)
    handlers = {
        "Pour": grpc.unary_stream_rpc_method_handler(pour),
        "Sip": grpc.stream_unary_rpc_method_handler(sip),
    }
    more.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("More", handlers),))
    port = more.add_insecure_port(f"{rpc.ip}:0")
    await more.start()
    await rpc.serve("more", "grpc", port)
    async with rpc.channel() as channel:
        call = channel.unary_stream("/More/Pour")(b"")
        answer = channel.stream_unary("/More/Sip")(requests())
        assert await call.read() == message
        await asyncio.sleep(1.0)
        assert sent < count / 2 and asked < count / 2
        ready.set()
        assert await answer == b"%d" % count
        got = 1
        while await call.read() == message:
            got += 1
        assert got == count
    await more.stop(None)


async def test_a_server_that_leaves_ends_what_it_has_begun(rpc: Rpc) -> None:
    """Its GOAWAY lets a call go on, and another server is asked from then on."""
    async with rpc.channel() as channel:
        call = channel.stream_stream(f"/{SERVICE}/Converse")()
        await call.write(b"before")
        assert await call.read() == b"before"
        stopping = asyncio.create_task(rpc.server.stop(60))
        assert (await failure(channel))[0] == grpc.StatusCode.UNAVAILABLE
        await call.write(b"after")
        assert await call.read() == b"after"
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF and await call.code() == grpc.StatusCode.OK
        await stopping


async def test_a_server_that_dies_is_told_of(rpc: Rpc) -> None:
    async with rpc.channel() as channel:
        call = channel.stream_stream(f"/{SERVICE}/Converse")()
        await call.write(b"before")
        assert await call.read() == b"before"
        await rpc.server.stop(None)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()


async def test_a_client_that_goes_away_takes_its_calls_back(rpc: Rpc) -> None:
    async with rpc.channel() as channel:
        calls = [channel.unary_unary(f"/{SERVICE}/Hang")(b"") for _ in range(20)]
        front = rpc.ingress.front
        await until(lambda: rpc.echo.hanging == 20, "all are there")
        assert front._shared.busy == 20
        await Calls(channel, 1).unary()
        assert not any(call.done() for call in calls)
    await until(lambda: rpc.echo.cancelled == 20, "the server hears of it")
    await until(lambda: front._shared.busy == 0)


async def test_a_server_that_was_replaced_is_noticed_without_a_call_that_fails(rpc: Rpc) -> None:
    async with rpc.channel() as channel:
        for _ in range(5):
            await Calls(channel, 1).unary()
            await rpc.server.stop(None)
            rpc.server = grpc.aio.server(options=OPTIONS)
            handlers = (grpc.method_handlers_generic_handler(SERVICE, rpc.echo.handlers()),)
            rpc.server.add_generic_rpc_handlers(handlers)
            rpc.server.add_insecure_port(f"{rpc.ip}:{rpc.port}")
            await rpc.server.start()
