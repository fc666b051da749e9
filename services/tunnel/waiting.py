"""Those who wait for a session with one peer, or for a path."""

import asyncio
from typing import TYPE_CHECKING

from services.tunnel.errors import Refused

if TYPE_CHECKING:
    from services.tunnel.pairing import Pairing


class Waiting:
    """True while somebody does."""

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[Pairing], bool] = {}
        """And whether they have patience with a node that nobody knows."""

    def __bool__(self) -> bool:
        return bool(self._waiters)

    async def wait(self, timeout: float, *, patient: bool) -> "Pairing":
        """The session. TimeoutError after so many seconds; unless `patient`, what is given to `refuse`."""
        waiter: asyncio.Future[Pairing] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = patient
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        finally:
            self._waiters.pop(waiter, None)

    def tell(self, pairing: "Pairing") -> None:
        """All get this session."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(pairing)
        self._waiters.clear()

    def refuse(self, refusal: Refused) -> None:
        """Those without patience wait in vain."""
        for waiter in [waiter for waiter, patient in self._waiters.items() if not patient]:
            del self._waiters[waiter]
            if not waiter.done():
                waiter.set_exception(refusal)

    def inherit(self, former: "Waiting") -> None:
        """Takes over all of another one."""
        self._waiters |= former._waiters
        former._waiters.clear()
