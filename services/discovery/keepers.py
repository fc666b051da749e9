"""One small task per contact, for as long as it is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable

from .core.contacts import Contact


class Keepers:
    """Runs `keep(key)` for every contact; `purpose` names the tasks. `contacts`: what is known of each now, by key."""

    def __init__(self, keep: Callable[[str], Coroutine[None, None, None]], purpose: str) -> None:
        self.contacts: dict[str, Contact] = {}
        self._keep = keep
        self._purpose = purpose
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def reconcile(self, contacts: Iterable[Contact]) -> None:
        """These are the contacts from now on; returns when the tasks of the others have ended."""
        wanted = {contact.key: contact for contact in contacts}
        gone = [self._tasks.pop(key) for key in self._tasks.keys() - wanted.keys()]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        self.contacts = wanted
        for key in wanted.keys() - self._tasks.keys():
            self._tasks[key] = asyncio.create_task(self._keep(key), name=f"{self._purpose} {key}")
