"""DNS names → addresses, without ever holding anything up.

`getaddrinfo` blocks for up to tens of seconds where a route exists but no name server answers. It runs in daemon
threads of its own: the loop's executor would be starved by it, and the interpreter would wait for it at exit.
"""

from __future__ import annotations

import asyncio
import socket
import threading

# Seconds until a lookup counts as failed; the thread may linger until the system gives up.
TIMEOUT = 5.0
# Threads at once, lingering ones included; further lookups fail until one ends.
MAX_THREADS = 4


class Resolver:
    """Bounded lookups in daemon threads."""

    def __init__(self) -> None:
        self._running = 0

    async def resolve(self, host: str) -> tuple[str, ...]:
        """Addresses of a name in the system's order of preference; OSError or TimeoutError when there are none."""
        if self._running >= MAX_THREADS:
            raise TimeoutError(f"{self._running} lookups are still waiting for the name server")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[str, ...]] = loop.create_future()
        self._running += 1

        def finish(ips: tuple[str, ...], error: OSError | None) -> None:
            self._running -= 1
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(ips)

        def work() -> None:
            ips: tuple[str, ...] = ()
            failure: OSError | None = None
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                ips = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
            except (OSError, UnicodeError) as error:
                failure = error if isinstance(error, OSError) else OSError(str(error))
            try:
                loop.call_soon_threadsafe(finish, ips, failure)
            except RuntimeError:
                pass  # the loop is closed; nobody waits

        threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
        try:
            async with asyncio.timeout(TIMEOUT):
                return await answer
        except TimeoutError:
            raise TimeoutError(f"no answer from the name server within {TIMEOUT:.0f} s") from None
