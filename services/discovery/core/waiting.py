"""Nodes that are to be called when there is time: proven ones, whom something waits for, before strangers.

Bounded, each kind for itself: a flood of publications makes no flood of calls, and keeps nobody waiting but strangers.
"""

from __future__ import annotations

from dataclasses import replace

from .contacts import Contact

# Of each kind; addresses of each.
MAX_WAITING, MAX_ENDPOINTS = 64, 4


class Waiting:
    """In order of arrival, each name once."""

    def __init__(self) -> None:
        self._proven: dict[str, Contact] = {}
        self._strangers: dict[str, Contact] = {}

    def add(self, contact: Contact, *, proven: bool) -> bool:
        """False: it waits already, there is no room, or nothing to call."""
        name = contact.node_name
        kind = self._proven if proven else self._strangers
        if not name or not contact.endpoints or name in self._proven or name in kind or len(kind) >= MAX_WAITING:
            return False
        self._strangers.pop(name, None)
        kind[name] = replace(contact, endpoints=contact.endpoints[:MAX_ENDPOINTS])
        return True

    def take(self) -> Contact | None:
        """The next one."""
        kind = self._proven or self._strangers
        return kind.pop(next(iter(kind))) if kind else None

    def __len__(self) -> int:
        return len(self._proven) + len(self._strangers)
