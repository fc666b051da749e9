"""HTTP/2 at the ingress gateway, with real clients and real backends: every pair of protocols, and what goes wrong."""

import asyncio
import json
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from services.proxy.gateway import limits
from tests.proxy import http2
from tests.proxy.conftest import until
from tests.proxy.http2 import Client
from tests.proxy.ingress import Authority, Ingress, gateway, route, routes, secret, server
from tests.proxy.neighbours import service

pytestmark = pytest.mark.slow  # curl and others in many of them

TWO = "--http2-prior-knowledge"


@pytest.fixture
async def both(ingress: Ingress) -> AsyncIterator[http2.Backend]:
    """A backend of HTTP/2 as service `two`, at /two, and one of HTTP/1.1, `one`, for the rest."""
    await ingress.backend("one")
    two = http2.Backend(ingress.loopback_ip())
    await two.start()
    ingress.node.discovery.put(service("two", "", ("n", two.ip, two.port), name_of_port="http2"))
    await ingress.set(gateway(server(8080)), routes(route("two", "/two/", rewrite={"uri": "/"}), route("one")))
    yield two
    await two.stop()


@pytest.mark.parametrize("speaks", ["--http1.1", TWO])
@pytest.mark.parametrize("path", ["/", "/two/"])
async def test_every_pair_of_protocols(
    ingress: Ingress, both: http2.Backend, speaks: str, path: str, tmp_path: Path
) -> None:
    url = f"http://a.test:8080{path}"
    more = ("-H", "Cookie: a=b; c=d", "-H", "X-Mine: 1", "-w", "\n%{http_version}\n%{http_code}")
    status, body = await ingress.curl(f"{url}p?q=1", speaks, *more)
    text, version = body.rsplit("\n", 1)
    assert (status, version) == ("200", "2" if speaks == TWO else "1.1")
    headers = json.loads(text)["headers"]
    target = headers[":path"] if path == "/two/" else json.loads(text)["target"]
    host = headers[":authority"] if path == "/two/" else headers["host"]
    assert (target, host) == ("/p?q=1", "a.test:8080")
    assert (headers["cookie"], headers["x-mine"], headers["x-forwarded-proto"]) == ("a=b; c=d", "1", "http")
    assert headers["x-forwarded-host"] == "a.test:8080" and headers["x-forwarded-for"].startswith("127.")
    assert "transfer-encoding" not in headers
    large = tmp_path / "large"
    large.write_bytes(b"0123456789abcdef" * 300_000)
    for form in (("--data-binary", f"@{large}"), ("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{large}")):
        if speaks == "--http1.1" or "-H" not in form:
            status, body = await ingress.curl(f"{url}post", speaks, *form)
            assert (status, json.loads(body)["size"]) == ("200", large.stat().st_size), form
    size = "5000000"
    size = f"large?{size}" if path == "/two/" else f"large?size={size}"
    status, body = await ingress.curl(url + size, speaks, "-o", str(tmp_path / "got"))
    assert status == "200" and (tmp_path / "got").stat().st_size == 5_000_000
    assert (await ingress.curl(url + "none", speaks, "-X", "OPTIONS"))[0] == "200"
    assert (await ingress.curl(url + "none", speaks, "-I"))[0] == "200"


async def test_answers_without_a_body(ingress: Ingress, both: http2.Backend) -> None:
    client = await Client.open(ingress.ip, 8080)
    for path, status in (("/empty?status=204", 204), ("/empty?status=304", 304), ("/two/empty", 200)):
        told = await client.get(path)
        assert (told.status, told.body, told.ended) == (status, b"", True)
    head = await client.answer(client.ask("/large?size=5", method="HEAD"))
    assert (head.status, head.headers["content-length"], head.body) == (200, "5", b"")


async def test_trailers_and_early_hints_both_ways(ingress: Ingress, both: http2.Backend) -> None:
    client = await Client.open(ingress.ip, 8080)
    number = client.ask("/two/trailers", method="POST", end=False)
    client.h2.send_data(number, b"body")
    client.h2.send_headers(number, [("x-last", "word")], end_stream=True)
    client.flush()
    told = await client.answer(number)
    asked = json.loads(told.body)
    assert (asked["size"], asked["headers"]["trailer x-last"]) == (4, "word")
    assert told.trailers == {"x-after": "all"}
    assert (await client.get("/two/hint")).status == 200
    raw = await ingress.raw(b"GET /two/hint HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 103 ") and b"HTTP/1.1 200" in raw


async def test_in_tls_by_alpn_and_http_1_beside_it(ingress: Ingress, both: http2.Backend, tmp_path: Path) -> None:
    ca = Authority()
    (tmp_path / "ca.pem").write_text(ca.pem)
    mine = ca.issue("me")
    for name, file in (("tls.crt", "me.crt"), ("tls.key", "me.key")):
        (tmp_path / file).write_text(mine[name])
    who = ("--cert", str(tmp_path / "me.crt"), "--key", str(tmp_path / "me.key"))
    await ingress.set(
        secret("c", ca.issue("a.test")),
        secret("m", ca.issue("m.test")),
        gateway(
            server(8443, "HTTPS", "a.test", mode="SIMPLE", credentialName="c"),
            server(8443, "HTTPS", "m.test", mode="MUTUAL", credentialName="m"),
        ),
    )
    ask = ("--cacert", str(tmp_path / "ca.pem"), "-w", "\n%{http_version}\n%{http_code}")
    for host, more in (("a.test", ()), ("m.test", who)):
        for speaks, version in (("--http2", "2"), ("--http1.1", "1.1")):
            status, body = await ingress.curl(f"https://{host}:8443/", *ask, *more, speaks)
            text, spoken = body.rsplit("\n", 1)
            assert (status, spoken) == ("200", version)
            assert json.loads(text)["headers"]["x-forwarded-proto"] == "https"
    assert (await ingress.curl("https://m.test:8443/", *ask))[0] == "000", "without a certificate"
    context = ssl.create_default_context(cadata=ca.pem)
    context.set_alpn_protocols(["h2"])
    client = await Client.open(ingress.ip, 8443, ssl=context, server_hostname="a.test")
    number = client.h2.get_next_available_stream_id()
    client.told[number] = http2.Told()
    fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "m.test")]
    client.h2.send_headers(number, fields, end_stream=True)
    client.flush()
    assert (await client.answer(number)).status == 421, "the host is another server's, which asks for certificates"
    client.writer.close()


async def test_routes_redirects_and_what_is_answered_here(ingress: Ingress, both: http2.Backend) -> None:
    rules = routes(
        {"match": [{"uri": {"prefix": "/old"}}], "redirect": {"uri": "/new", "redirectCode": 302}},
        {"match": [{"uri": {"exact": "/fine"}}], "directResponse": {"status": 200, "body": {"string": "fine"}}},
        {"match": [{"uri": {"regex": "/r/[0-9]+"}, "headers": {"x-v": {"exact": "2"}}}], **route("two")}
        | {"match": [{"uri": {"regex": "/r/[0-9]+"}, "headers": {"x-v": {"exact": "2"}}}]},
        {
            "match": [{"uri": {"prefix": "/hurry"}}],
            "timeout": "300ms",
            "rewrite": {"uri": "/slow"},
            "route": route("two")["route"],
        },
    )
    await ingress.set(rules)
    client = await Client.open(ingress.ip, 8080)
    told = await client.get("/old?x")
    assert (told.status, told.headers["location"]) == (302, "http://a.test/new?x")
    assert (await client.get("/fine")).body == b"fine"
    assert (await client.get("/r/12", ("x-v", "2"))).headers["x-backend"] == "two"
    told = await client.get("/r/12")
    assert (told.status, told.body) == (404, b"no route\n")
    told = await client.get("/hurry")
    assert (told.status, told.body) == (504, b"no answer from default/two:80 in time\n")
    await until(lambda: both.reset == [ErrorCodes.CANCEL], "the backend need not go on")
    assert (await client.answer(client.ask("/fine", method="TRACE"))).status == 405
    post = client.ask("/fine", method="POST", end=False)
    assert (await client.answer(post)).body == b"fine"
    await client.hear(lambda: client.told[post].reset is not None)
    assert client.told[post].reset == ErrorCodes.NO_ERROR, "what it has yet to send, nobody reads"
    counted = ingress.node.proxy._counters.requests if ingress.node.proxy else {}
    assert counted["default/r:0", "3xx"] == 1 and counted["default/r:3", "5xx"] == 1


async def test_many_at_once_and_one_after_the_other_use_connections_again(
    ingress: Ingress, both: http2.Backend
) -> None:
    client = await Client.open(ingress.ip, 8080)
    asked = [client.ask(path) for path in ("/two/slow", *["/two/x"] * 20)]
    for number in asked[1:]:
        assert (await client.answer(number)).status == 200
    before = both.connections
    for _ in range(20):
        post = client.ask("/two/x", method="POST", end=False)
        client.h2.send_data(post, b"xyz", end_stream=True)
        client.flush()
        assert json.loads((await client.answer(post)).body)["size"] == 3
    assert both.connections == before, "all of them on one that was there"
    client.h2.reset_stream(asked[0], ErrorCodes.CANCEL)
    client.flush()
    await until(lambda: both.reset == [ErrorCodes.CANCEL], "the backend hears of it")
    assert (await client.get("/two/x")).status == 200
    assert both.connections == before, "and keeps its connection"


async def test_bodies_that_nobody_reads_use_up_no_room(ingress: Ingress, both: http2.Backend) -> None:
    """Five times what may wait of a connection, for requests that are answered before, or taken back."""
    fault = {"match": [{"uri": {"prefix": "/fault"}}], "directResponse": {"status": 503}}
    await ingress.set(routes(fault, route("two", "/two/", rewrite={"uri": "/"}), route("one")))
    client = await Client.open(ingress.ip, 8080)
    for turn in range(100):
        number = client.ask("/fault" if turn % 2 else "/two/slow", method="POST", end=False)
        await client.pour(number, 52_000)
        if turn % 2:
            assert (await client.answer(number)).status == 503
        else:
            client.h2.reset_stream(number, ErrorCodes.CANCEL)
            client.flush()
    post = client.ask("/two/x", method="POST", end=False)
    await client.pour(post, 2_000_000, end=True)
    assert json.loads((await client.answer(post)).body)["size"] == 2_000_000


async def test_h2load(ingress: Ingress, both: http2.Backend) -> None:
    for path, more in (("/x", ("-m", "20")), ("/two/x", ("-m", "20")), ("/two/x", ("--h1",))):
        process = await asyncio.create_subprocess_exec(
            "h2load", "-n", "200", "-c", "4", *more, f"http://{ingress.ip}:8080{path}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out = (await process.communicate())[0].decode()
        assert "200 succeeded, 0 failed" in out, out


async def test_a_user_has_one_backend_here_too(ingress: Ingress) -> None:
    """The departure reads the head that the gateway writes."""
    backends = [http2.Backend(ingress.loopback_ip()) for _ in range(4)]
    for one in backends:
        await one.start()
    policy = {"consistentHash": {"httpHeaderName": "X-User"}}
    endpoints = [("n", one.ip, one.port) for one in backends]
    ingress.node.discovery.put(service("web", "", *endpoints, name_of_port="http2", policy=policy))
    await ingress.set(gateway(server(8080)), routes(route("web")))
    client = await Client.open(ingress.ip, 8080)
    for number in range(12):
        for _ in range(3):
            assert (await client.get(f"/{number}", ("x-user", f"user-{number}"))).status == 200
    found = [sorted(one.requests) for one in backends]
    assert sum(map(len, found)) == 12 and sum(map(bool, found)) > 1
    assert not ingress.node.status().warnings
    for one in backends:
        await one.stop()


async def test_a_gateway_that_stops_says_goodbye(ingress: Ingress, both: http2.Backend) -> None:
    client = await Client.open(ingress.ip, 8080)
    assert (await client.get("/x")).status == 200
    client.ask("/two/slow")
    assert ingress.node.proxy is not None
    stopping = asyncio.create_task(ingress.node.proxy._gateway.close())
    try:
        await client.end()
    except ConnectionResetError:  # there was a request
        pass
    assert client.goodbye == 0
    await stopping


async def test_backends_that_fail(ingress: Ingress, both: http2.Backend) -> None:
    ingress.node.discovery.put(service("closed", "", ("n", ingress.ip, 1), name_of_port="grpc"))
    ingress.node.discovery.put(service("old", "", ("n", "127.0.0.1", 1), name_of_port="grpc"))
    old = await asyncio.start_server(_rubbish, ingress.loopback_ip(), 0)
    where = old.sockets[0].getsockname()
    ingress.node.discovery.put(service("old", "", ("n", *where[:2]), name_of_port="grpc"))
    await ingress.set(routes(route("closed", "/closed"), route("old", "/old"), route("two")))
    client = await Client.open(ingress.ip, 8080)
    for path, status, why in (
        ("/closed", 502, b"causeway: connection_refused: connect to "),
        ("/old", 502, b"default/old:80 ended the connection without an answer\n"),
        ("/cut", 502, b"default/two:80 ended the connection without an answer\n"),
        ("/refuse?7", 502, b"default/two:80 takes no requests\n"),
        ("/refuse?2", 502, b"default/two:80 ended the connection without an answer\n"),
        ("/x", 200, b"{"),
        ("/goodbye", 200, b"{"),
        ("/y", 200, b"{"),
    ):
        told = await client.get(path)
        assert (told.status, told.body[: len(why)]) == (status, why), told
    for _ in range(3):  # connections that rested are over
        await both.stop()
        await both.start()
        assert (await client.get("/z")).status == 200
    old.close()


async def _rubbish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server of HTTP/1.1 that gets HTTP/2."""
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    writer.close()


async def test_a_gateway_that_is_gone_says_goodbye(ingress: Ingress, both: http2.Backend) -> None:
    client = await Client.open(ingress.ip, 8080)
    slow = client.ask("/two/large?3000000")
    await client.hear(lambda: client.told[slow].status == 200, take=False)
    ingress.node.discovery.remove_object("Gateway/default/edge")
    await until(lambda: not ingress.node.status().rows, "the gateway is gone")
    # For h2 in this client a GOAWAY is the end, so its bytes are looked at.
    client.h2.send_headers(number := client.h2.get_next_available_stream_id(), [
        (":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")], end_stream=True)  # fmt: skip
    client.told[number] = http2.Told()
    client.flush()
    data = b""
    goodbye = http2.frame(7, 0, b"\x7f\xff\xff\xff" + bytes(4))
    async with asyncio.timeout(60):
        while goodbye not in data:
            data += await client._reader.read(1 << 16)
    client.writer.close()


async def test_large_bodies_need_little_memory(ingress: Ingress, both: http2.Backend) -> None:
    """A client that does not read holds back its own backend, and nobody else's."""
    size = 200_000_000
    client = await Client.open(ingress.ip, 8080)
    client.h2.increment_flow_control_window(10 << 20)
    client.flush()
    tracemalloc.start()
    try:
        slow = [client.ask(f"{path}{size}") for path in ("/large?size=", "/two/large?")]
        await client.hear(lambda: all(len(client.told[one].body) >= 65_535 for one in slow), take=False)
        assert (await client.get("/x")).status == 200
        await asyncio.sleep(0.5)
        assert tracemalloc.get_traced_memory()[0] < 16 << 20
    finally:
        tracemalloc.stop()
    client.writer.close()
    front = ingress.front
    await until(lambda: not len(front), "the client is noticed to be gone")
    await until(lambda: front._shared.busy == 0)


async def test_a_client_that_takes_nothing_does_not_stay(
    ingress: Ingress, both: http2.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STALL", 0.3)
    client = await Client.open(ingress.ip, 8080)
    slow = client.ask("/large?size=200000000")
    await client.hear(lambda: client.told[slow].over, take=False)
    assert client.told[slow].reset == ErrorCodes.INTERNAL_ERROR
    client.h2.increment_flow_control_window(1 << 20)
    client.flush()
    assert (await client.get("/x")).status == 200, "the others go on"
    client.ask("/large?size=200000000")
    for _ in range(40):  # it reads nothing at all
        client.h2.increment_flow_control_window(10 << 20)
        client.h2.increment_flow_control_window(10 << 20, client.ask("/large?size=200000000"))
    client.flush()
    front = ingress.front
    await until(lambda: not len(front), "nobody is left")


async def test_who_has_nothing_to_ask_is_left(
    ingress: Ingress, both: http2.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEEP_ALIVE", 0.5)
    client = await Client.open(ingress.ip, 8080)
    number = client.ask("/two/large?3000000")
    await client.hear(lambda: client.told[number].status == 200, take=False)
    await asyncio.sleep(1.0)  # but not who waits for an answer
    client.h2.acknowledge_received_data(65_535, number)
    client.flush()
    await client.answer(number)
    assert len(client.told[number].body) == 3_000_000
    await client.end()
    assert client.goodbye == 0
