"""The ingress gateway with real clients and real backends: HTTP/1.1 in all its ways, and what goes wrong."""

import asyncio
import json
import socket
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import h11
import pytest
import websockets

from services.proxy.core.gateway.model import Destination
from services.proxy.core.health import EJECT_AFTER
from services.proxy.core.plan import FILTER_LABEL
from services.proxy.gateway import front, limits
from tests.proxy.conftest import until
from tests.proxy.ingress import Ingress, gateway, route, routes, server, to
from tests.proxy.neighbours import service

pytestmark = pytest.mark.slow  # curl in most of them

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n%b\r\n"


def get(target: bytes = b"/", *headers: bytes) -> bytes:
    return GET % (target, b"".join(header + b"\r\n" for header in headers))


def answers(data: bytes, *methods: bytes) -> list[tuple[int, bytes]]:
    """(status, body) of each answer in `data`, the first of which are to these methods."""
    found = []
    for method in [*methods, *[b"GET"] * 100]:
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"x")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(data)
        reader.receive_data(b"")
        body, status = b"", 0
        while not isinstance(event := reader.next_event(), (h11.EndOfMessage, h11.ConnectionClosed)):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif event is h11.NEED_DATA or event is h11.PAUSED:
                break
        found.append((status, body))
        data = reader.trailing_data[0]
        if not data:
            return found
    raise AssertionError("too many answers")


@pytest.fixture
async def web(ingress: Ingress) -> Ingress:
    """One backend, and everything goes to it."""
    await ingress.backend("web")
    await ingress.set(gateway(server(8080)), routes(route("web")))
    return ingress


# ── requests and answers ──


async def test_a_backend_sees_the_request_and_who_sent_it(web: Ingress) -> None:
    status, body = await web.curl(
        "http://a.test:8080/x/../p?q=1",
        "--path-as-is",
        *(
            "-H",
            "X-Forwarded-For: 192.0.2.1",
            "-H",
            "X-Forwarded-Proto: https",
            "-H",
            "Connection: x-mine",
            "-H",
            "X-Mine: 1",
        ),
        *("-H", "Cookie: a=b", "-H", "TE: trailers", "-H", "Keep-Alive: 5", "-i"),
    )
    head, _, body = body.partition("\r\n\r\n")
    told = json.loads(body)
    headers = told["headers"]
    assert status == "200" and (told["method"], told["target"]) == ("GET", "/p?q=1")
    assert headers["host"] == headers["x-forwarded-host"] == "a.test:8080"
    assert headers["x-forwarded-for"].startswith("192.0.2.1, 127.") and headers["x-forwarded-proto"] == "http"
    assert headers["cookie"] == "a=b"
    assert not {"x-mine", "te", "keep-alive", "connection", "transfer-encoding"} & headers.keys()
    assert "x-backend: web" in head.lower() and "x-hop" not in head.lower()


async def test_bodies_in_every_form(web: Ingress, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"0123456789abcdef" * 300_000)
    for arguments in (
        ("--data-binary", f"@{large}"),
        ("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{large}"),
        ("-H", "Expect: 100-continue", "--data-binary", f"@{large}"),
        ("-T", str(large)),
    ):
        status, body = await web.curl("http://a.test:8080/post", *arguments)
        told = json.loads(body)
        assert (status, told["size"]) == ("200", large.stat().st_size), arguments
        chunked = "chunked" in " ".join(arguments)
        assert told["headers"].get("transfer-encoding") == ("chunked" if chunked else None)
    status, body = await web.curl("http://a.test:8080/large?size=5000000", "-o", str(tmp_path / "got"))
    assert status == "200" and (tmp_path / "got").stat().st_size == 5_000_000


async def test_keep_alive_and_pipelining_keep_the_order(web: Ingress) -> None:
    requests = [get(b"/%d" % number) for number in range(20)]
    found = answers(await web.raw(b"".join(requests) + get(b"/last", b"Connection: close")))
    assert [status for status, _ in found] == [200] * 21
    assert [json.loads(body)["target"] for _, body in found] == [*(f"/{number}" for number in range(20)), "/last"]
    # All of them on one connection to the backend.
    assert len({tuple(json.loads(body)["from"]) for _, body in found}) == 1


async def test_answers_without_a_body(web: Ingress) -> None:
    data = await web.raw(
        get(b"/large?size=5").replace(b"GET", b"HEAD")
        + get(b"/empty?status=204")
        + get(b"/empty?status=304")
        + get(b"/none").replace(b"GET", b"OPTIONS")
        + get(b"/large?size=3", b"Connection: close")
    )
    found = answers(data, b"HEAD", b"GET", b"GET", b"OPTIONS")
    assert [status for status, _ in found] == [200, 204, 304, 200, 200]
    assert [len(body) for _, body in found[:3]] == [0, 0, 0] and found[4][1] == b"\0\1\2"
    assert b"Content-Length: 5\r\n".lower() in data.partition(b"\r\n\r\n")[0].lower() + b"\r\n"


async def test_an_old_client_is_answered_and_left(web: Ingress) -> None:
    data = await web.raw(b"GET /old HTTP/1.0\r\nHost: a.test\r\n\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower() and json.loads(body)["target"] == "/old"


async def test_a_client_that_ends_its_sending_is_answered(web: Ingress) -> None:
    reader, writer = await asyncio.open_connection(web.ip, 8080)
    writer.write(get(b"/half"))
    writer.write_eof()
    assert [status for status, _ in answers(await reader.read())] == [200]
    writer.close()


async def test_websockets_pass_unharmed(web: Ingress) -> None:
    async with websockets.connect(f"ws://{web.ip}:8080/ws", max_size=None) as client:
        await client.send("hello")
        assert await client.recv() == "web:hello"
        blob = bytes(range(256)) * 8192
        await client.send(blob)
        assert await client.recv() == blob
        await (await client.ping())
        await client.send("bye")
        assert await client.recv() == "web:bye"
        with pytest.raises(websockets.ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (4001, "as asked")
    status, _ = await web.curl("http://a.test:8080/after")
    assert status == "200"


async def test_an_upgrade_that_is_refused_is_an_answer_as_any(web: Ingress) -> None:
    upgrade = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: x")
    h2c = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    data = await web.raw(get(b"/plain", *upgrade) + get(b"/plain", *h2c) + get(b"/x", b"Connection: close"))
    found = answers(data)
    assert [status for status, _ in found] == [200, 200, 200]
    assert json.loads(found[0][1])["headers"]["upgrade"] == "websocket"
    assert not {"upgrade", "http2-settings"} & json.loads(found[1][1])["headers"].keys()


# ── routes ──


async def test_routes_rewriting_redirects_and_none(ingress: Ingress) -> None:
    await ingress.backend("web")
    await ingress.backend("api")
    await ingress.set(
        gateway(server(8080)),
        routes(
            route("api", "/api/", rewrite={"uri": "/", "authority": "inside"}),
            {"match": [{"uri": {"prefix": "/old"}}], "redirect": {"uri": "/new", "redirectCode": 302}},
            {"match": [{"uri": {"regex": "/r/[0-9]+"}, "headers": {"x-v": {"exact": "2"}}}], "route": [to("web")]},
        ),
    )
    status, body = await ingress.curl("http://a.test:8080/api/users?id=1")
    assert (status, json.loads(body)["target"], json.loads(body)["backend"]) == ("200", "/users?id=1", "api")
    assert json.loads(body)["headers"]["host"] == "inside"
    status, body = await ingress.curl("http://a.test:8080/old?x", "-D", "-")
    assert status == "302" and "location: http://a.test:8080/new?x" in body.lower()
    status, body = await ingress.curl("http://a.test:8080/r/12", "-H", "X-V: 2")
    assert json.loads(body)["backend"] == "web"
    assert await ingress.curl("http://a.test:8080/r/12") == ("404", "no route")
    counted = ingress.node.proxy._counters.requests if ingress.node.proxy else {}
    assert counted == {
        ("default/r:0", "2xx"): 1,
        ("default/r:1", "3xx"): 1,
        ("default/r:2", "2xx"): 1,
        ("", "4xx"): 1,
    }


async def test_weights_over_many_requests(ingress: Ingress) -> None:
    for name in ("old", "new"):
        await ingress.backend(name)
    await ingress.set(gateway(server(8080)), routes({"route": [to("old", weight=90), to("new", weight=10)]}))
    found = answers(await ingress.raw(get() * 79 + get(b"/", b"Connection: close")))
    for _ in range(9):
        found += answers(await ingress.raw(get() * 79 + get(b"/", b"Connection: close")))
    seen = Counter(json.loads(body)["backend"] for _, body in found)
    assert sum(seen.values()) == 800
    assert abs(seen["new"] - 80) < 5 * (800 * 0.1 * 0.9) ** 0.5  # five sigma


async def test_requests_go_round_the_endpoints(ingress: Ingress) -> None:
    found = [await ingress.backend(f"b{number}") for number in range(3)]
    ingress.serve("all", *((one.ip, one.port) for one in found))
    await ingress.set(gateway(server(8080)), routes(route("all")))
    data = await ingress.raw(get() * 29 + get(b"/", b"Connection: close"))
    seen = Counter(json.loads(body)["backend"] for _, body in answers(data))
    assert seen == {"b0": 10, "b1": 10, "b2": 10}


async def test_connections_to_endpoints_that_left_or_are_left_out_are_not_used_again(ingress: Ingress) -> None:
    found = [await ingress.backend(f"b{number}") for number in range(3)]
    endpoints = [(one.ip, one.port) for one in found]
    ingress.serve("all", *endpoints)
    await ingress.set(gateway(server(8080)), routes(route("all")))

    async def ask() -> dict[str, int]:
        before = [one.requests.total() for one in found]
        await ingress.raw(get() * 11 + get(b"/", b"Connection: close"))
        return {one.name: one.requests.total() - count for one, count in zip(found, before, strict=True)}

    def serving() -> Any:
        assert ingress.node.proxy is not None
        route = ingress.node.proxy._gateway._resolve(Destination("default/all", 80))
        assert route is not None
        return route

    assert await ask() == {"b0": 4, "b1": 4, "b2": 4}
    ingress.serve("all", *endpoints[:2])
    await until(lambda: len(serving()) == 2, "one has left")
    assert await ask() == {"b0": 6, "b1": 6, "b2": 0}
    out = serving().balancer.backends[0]
    for _ in range(EJECT_AFTER):
        serving().balancer.health.failed(out, time.monotonic() + 600)
    assert await ask() == {"b0": 0, "b1": 12, "b2": 0}


async def test_direct_responses_and_routes_that_cannot_be_served(ingress: Ingress) -> None:
    def direct(path: str, status: int, text: str = "") -> dict[str, Any]:
        body = {"body": {"string": text}} if text else {}
        return {"match": [{"uri": {"exact": path}}], "directResponse": {"status": status, **body}}

    subset = {"match": [{"uri": {"prefix": "/v2"}}], "route": [{"destination": {"host": "web", "subset": "v2"}}]}
    await ingress.backend("web")
    await ingress.set(
        gateway(server(8080)),
        routes(direct("/health", 200, "fine"), direct("/none", 204, "never said"), subset, route("web")),
        problems=1,
    )
    post = b"POST /health HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc"
    paths = (b"/none", b"/v2/x")
    data = await ingress.raw(get(b"/health") + b"".join(map(get, paths)) + get(b"/", b"Connection: close"))
    *told, (status, _) = answers(data)
    assert told == [(200, b"fine"), (204, b""), (503, b"this route is not served\n")]
    assert status == 200
    assert answers(await ingress.raw(post)) == [(200, b"fine")]
    (warning,) = ingress.node.status().warnings
    assert warning.startswith(
        "VirtualService default/r, spec.http[2] is not served: spec.http[2].route[0].destination."
    )


async def test_a_service_that_is_left_out_is_said_to_be(ingress: Ingress) -> None:
    one = service("theirs", "", ("n", "127.0.0.1", 1))
    one.labels[FILTER_LABEL] = "other"
    ingress.node.discovery.put(one)
    await ingress.set(gateway(server(8080)), routes(route("theirs")), problems=1)
    (warning,) = ingress.node.status().warnings
    assert warning.startswith("VirtualService default/r: Service default/theirs is left out: it has the label")


async def test_changes_are_served_on_connections_that_stay(ingress: Ingress) -> None:
    for name in ("one", "two"):
        await ingress.backend(name)
    await ingress.set(gateway(server(8080)), routes(route("one")))
    reader, writer = await asyncio.open_connection(ingress.ip, 8080)

    async def ask() -> str:
        writer.write(get())
        await reader.readuntil(b"\r\n\r\n")
        size = int(await reader.readuntil(b"\r\n"), 16)
        body = await reader.readexactly(size)
        await reader.readuntil(b"0\r\n\r\n")
        return str(json.loads(body)["backend"])

    assert await ask() == "one"
    await ingress.set(routes(route("two")))
    assert await ask() == "two"
    ingress.node.discovery.remove_object("Gateway/default/edge")
    await until(lambda: not ingress.node.status().rows, "the gateway is gone")
    writer.write(get())
    assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
    writer.close()


async def test_streams_go_their_way_unread(ingress: Ingress) -> None:
    backend = await ingress.backend("web")
    objects = gateway(server(8080, "TCP"), server(8081, "TCP"))
    await ingress.set(objects, routes(tcp=[{"match": [{"port": 8080}], "route": [to("web")]}]))
    assert [status for status, _ in answers(await ingress.raw(get(b"/", b"Connection: close")))] == [200]
    assert backend.requests["GET"] == 1
    with pytest.raises(ConnectionResetError):
        await ingress.raw(get(), 8081)


# ── mistakes and malice ──


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a.test/x?\r\n\r\n", 400),
        (b"GET http://u@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
        (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\n", 505),
    ],
)
async def test_what_is_no_good_request_is_refused(web: Ingress, request_: bytes, status: int) -> None:
    data = await web.raw(request_)
    assert data.startswith(b"HTTP/1.1 %d " % status), data[:200]
    assert not web.backends["web"].requests
    assert [one for one, _ in answers(await web.raw(get(b"/", b"Connection: close")))] == [200]


async def test_no_request_hides_in_another(web: Ingress) -> None:
    """A chunked body whose chunks look like requests stays a body."""
    hidden = get(b"/hidden")
    body = b"%x;x=y\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(hidden), hidden)
    post = b"POST /post HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    found = answers(await web.raw(post + get(b"/next", b"Connection: close")))
    told = [json.loads(text) for _, text in found]
    assert [(one["target"], one["size"]) for one in told] == [("/post", len(hidden)), ("/next", 0)]


async def test_slow_heads_and_bodies_do_not_stay(web: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_TIME", "BODY_IDLE", "KEEP_ALIVE"):
        monkeypatch.setattr(limits, name, 0.3)
    assert (await web.raw(b"GET / HT")).startswith(b"HTTP/1.1 408 ")
    assert await web.raw(b"") == b""
    slow = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf"
    with pytest.raises(ConnectionResetError):
        assert await web.raw(slow) == b""
        raise ConnectionResetError  # an end without an answer does, too
    await until(lambda: not len(web.front), "nobody is left")


async def test_a_client_that_stops_reading_does_not_stay(web: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL", 0.3)
    client = socket.create_connection((web.ip, 8080))
    client.sendall(get(b"/large?size=200000000"))
    await until(lambda: len(web.front), "it is served")
    await until(lambda: not len(web.front), "nobody is left")
    client.close()


async def test_more_clients_than_there_is_room_for(web: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "MAX_EACH", 3)
    taken = [await asyncio.open_connection(web.ip, 8080) for _ in range(3)]
    await until(lambda: len(web.front) == 3)
    with pytest.raises(ConnectionResetError):
        await web.raw(get())
    for _, writer in taken:
        writer.close()
    await until(lambda: not len(web.front), "there is room again")
    assert [status for status, _ in answers(await web.raw(get(b"/", b"Connection: close")))] == [200]


async def test_backends_that_fail(ingress: Ingress) -> None:
    backend = await ingress.backend("web")
    ingress.serve("none")
    ingress.serve("closed", (ingress.ip, 1))

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        answer = {b"/cut/1": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"/cut/2": b"rubbish\r\n\r\n"}
        writer.write(answer.get(target, b""))
        writer.close()

    cutting = await asyncio.start_server(cut, ingress.loopback_ip(), 0)
    ingress.serve("cut", cutting.sockets[0].getsockname())
    await ingress.set(
        gateway(server(8080)),
        routes(
            route("none", "/none"),
            route("closed", "/closed"),
            route("cut", "/cut"),
            route("missing", "/missing"),
            route("web", "/slow", timeout="300ms"),
            route("web"),
        ),
        problems=1,
    )
    assert any("no Service port default/missing:80" in warning for warning in ingress.node.status().warnings)
    for target, status, why in (
        ("none", "503", "no endpoint of default/none:80 is ready"),
        ("closed", "502", "causeway: connection_refused: connect to "),
        ("missing", "503", "there is no service default/missing:80"),
        ("cut/0", "502", "default/cut:80 ended the connection without an answer"),
        ("cut/2", "502", "default/cut:80 did not speak HTTP to the end"),
        ("slow", "504", "no answer from default/web:80 in time"),
    ):
        told = await ingress.curl(f"http://a.test:8080/{target}")
        assert (told[0], told[1].startswith(why)) == (status, True), told
    status, body = await ingress.curl("http://a.test:8080/cut/1")
    assert "half" in body or "curl: (" in body  # never a whole answer
    with pytest.raises(ConnectionResetError):
        await ingress.raw(get(b"/cut/1"))
    # A backend that restarts: the connections that rested are no longer used.
    assert (await ingress.curl("http://a.test:8080/"))[0] == "200"
    await backend.stop()
    await backend.start()
    for method in ("GET", "POST"):
        assert (await ingress.curl("http://a.test:8080/", "-X", method))[0] == "200"
    cutting.close()


async def test_a_backend_that_says_nothing_is_not_waited_for_without_end(
    web: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ANSWER_IDLE", 0.3)
    assert await web.curl("http://a.test:8080/slow") == ("504", "no answer from default/web:80 in time")


async def test_a_connection_that_went_stale_is_replaced_for_what_may_be_repeated(ingress: Ingress) -> None:
    """The backend ends each connection when the second request comes, without an answer."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        seen.append((await reader.read(1000))[:4])
        writer.close()

    stale = await asyncio.start_server(serve, ingress.loopback_ip(), 0)
    ingress.serve("stale", stale.sockets[0].getsockname())
    await ingress.set(gateway(server(8080)), routes(route("stale")))
    post = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx"
    found = answers(await ingress.raw(get() + get() + post + get(b"/", b"Connection: close")))
    assert found == [(200, b"ok")] * 4
    await until(lambda: seen.count(b"GET ") >= 1)
    assert b"POST" not in seen  # it went on a connection of its own
    stale.close()


async def test_large_bodies_need_little_memory(web: Ingress) -> None:
    size = 24 << 20

    async def pour() -> None:
        reader, writer = await asyncio.open_connection(web.ip, 8080, limit=1 << 16)
        writer.write(b"POST /post HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(1 << 16)
        for _ in range(size >> 16):
            writer.write(piece)
            await writer.drain()
        assert json.loads(answers(await reader.read())[0][1])["size"] == size
        writer.close()

    async def sip() -> None:
        reader, writer = await asyncio.open_connection(web.ip, 8080, limit=1 << 16)
        writer.write(get(b"/large?size=%d" % size, b"Connection: close"))
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while piece := await reader.read(1 << 16):
            got += len(piece)
        assert got == size
        writer.close()

    tracemalloc.start()
    try:
        await asyncio.gather(pour(), sip())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # of all that is in this process: client, gateway, backend


async def test_a_reader_that_does_not_read_holds_back_the_backend(web: Ingress) -> None:
    client = socket.create_connection((web.ip, 8080))
    client.sendall(get(b"/large?size=200000000"))
    tracemalloc.start()
    try:
        await asyncio.sleep(1.0)
        assert tracemalloc.get_traced_memory()[0] < 16 << 20
    finally:
        tracemalloc.stop()
        client.close()
    await until(lambda: not len(web.front), "the client is noticed to be gone")


async def test_a_wrong_object_is_a_warning_and_the_rest_is_served(web: Ingress) -> None:
    await web.set(gateway(server(80, "FTP"), name="bad"), routes({"route": [{}]}, name="worse"), problems=2)
    one, two = web.node.status().warnings
    assert one.startswith("Gateway default/bad, spec.servers[0] is not served: ") and "FTP" in one
    assert two.startswith("VirtualService default/worse, spec.http[0] is not served: ")
    assert (await web.curl("http://a.test:8080/"))[0] == "200"
    rows = web.node.status().rows
    assert [(str(row.spot), row.label, row.endpoints, row.error) for row in rows] == [
        (f"{web.ip}:8080", "gateway default/edge:8080 HTTP", 1, "")
    ]


async def test_a_port_that_is_taken_is_told_of_and_tried_again(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.proxy.gateway import gateway as module

    monkeypatch.setattr(module, "PERIOD", 0.1)
    await ingress.backend("web")
    holder = socket.create_server((ingress.ip, 8080))
    ingress.node.discovery.put_objects(gateway(server(8080)), routes(route("web")))
    errors: Any = await until(lambda: [row.error for row in ingress.node.status().rows if row.error])
    assert errors == ["cannot listen: Address already in use"]
    holder.close()
    await until(lambda: not any(row.error for row in ingress.node.status().rows), "it listens")
    assert (await ingress.curl("http://a.test:8080/"))[0] == "200"
