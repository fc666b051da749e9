"""An event that epoll reported before an earlier one of the same batch changed what we wait for."""

import select
import socket
from types import SimpleNamespace

from services.tunnel.engine import Engine
from services.tunnel.streamio import StreamIO
from tests.tunnel.harness import Net
from tests.tunnel.local import tcp_pair


async def test_a_hangup_reported_while_paused_does_not_put_a_resumed_stream_to_sleep() -> None:
    net = Net()
    net.link()
    net.run(0.2)
    session = net.a.session
    stream = net.a.open()
    engine = Engine()
    pairing = SimpleNamespace(session=session, blocked=[], mark=lambda: None, closed=lambda io: None)
    ours, theirs = tcp_pair()
    io = StreamIO(engine, pairing, stream)
    try:
        io.attach(ours)
        io._listen(0)  # the session was full
        theirs.sendall(b"the last words")
        theirs.close()
        ours.shutdown(socket.SHUT_WR)
        io.finished = True
        io.resume()  # it has room again …
        io._ready(select.EPOLLHUP)  # … and here comes what epoll had found while it was full
        for _ in range(3):
            for _, mask in engine._epoll.poll(0.2):
                io._ready(mask)
        net.run(0.2)
        assert bytes(net.b.got[stream.id]) == b"the last words"
        assert stream.id in net.b.finished
    finally:
        io.close()
        engine.close()
