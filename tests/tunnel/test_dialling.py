"""Connections to other nodes, by the kernel's own TCP."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from services.tunnel import dialling

pytestmark = pytest.mark.slow  # TCP repeats a SYN after 1 s and after 2 s more


async def test_a_connection_whose_syn_was_repeated_is_made_afresh(loopback_ip: Callable[[], str]) -> None:
    """Its TCP would begin with one segment. The listener's queue is full for so long that two SYNs are lost."""
    ip = loopback_ip()
    with socket.create_server((ip, 0), backlog=0) as listener, socket.create_connection(listener.getsockname()):
        port = listener.getsockname()[1]
        first = asyncio.create_task(dialling.connect(ip, port, source=("", 0), again=False))
        second = asyncio.create_task(dialling.connect(ip, port, source=("", 0)))
        await asyncio.sleep(1.5)
        listener.listen(16)
        listener.accept()[0].close()
        with await first as cold, await second as fresh:
            assert dialling.cold(cold)
            assert not dialling.cold(fresh)
