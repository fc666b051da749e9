"""Which backends are taken for dead, by what became of real connections, and how many retries that may cost.

No probes: what fails for a client fails here. A backend that failed EJECT_AFTER times in a row is left out for a while,
then gets one client as a trial; a failed trial costs that client one retry, not the connection. Where the node cannot be
reached it is the node that failed, and all of its backends are left out together.
"""

from dataclasses import dataclass
from typing import NamedTuple

from services.proxy.core.catalog import Backend

# Failures in a row: one may be chance, and at 100 connections a second three are over in 30 ms.
EJECT_AFTER = 3
# Seconds left out: after the first ejection, and the most it doubles to. A backend that returns is found within this.
EJECT_FIRST, EJECT_LAST = 1.0, 4.0
# Seconds until another client tries while the first trial has no result.
TRIAL = 1.0


class Pauses(NamedTuple):
    """How long a backend is left out, as the constants above; in seconds."""

    first: float = EJECT_FIRST
    last: float = EJECT_LAST
    trial: float = TRIAL


_PAUSES = Pauses()

# Retries: a share of the clients, and some for those who come rarely (as Finagle's RetryBudget: 20 %, 10 a second).
RETRY_SHARE, RETRY_RATE, RETRY_MOST = 0.2, 10.0, 100.0


@dataclass(slots=True)
class _Ill:
    failures: int = 0  # in a row
    pause: float = 0.0  # s of the last ejection; 0: not ejected
    until: float = 0.0  # left out until then
    trial: float = TRIAL


class Health:
    """Of the backends of one service port, and of their nodes."""

    def __init__(self) -> None:
        self._backends: tuple[Backend, ...] = ()
        self._ill: dict[Backend | str, _Ill] = {}  # by backend, or by the name of a node

    def __bool__(self) -> bool:
        """False: nobody failed lately, no need to ask for anyone."""
        return bool(self._ill)

    def keep(self, backends: tuple[Backend, ...]) -> None:
        """These are all; forgets the others."""
        self._backends = backends
        for gone in self._ill.keys() - {*backends, *(backend.node for backend in backends)}:
            del self._ill[gone]

    def ejected(self, now: float) -> list[Backend]:
        """Left out at `now`, in no order."""
        out = {whom for whom, ill in self._ill.items() if ill.pause and ill.until > now}
        return [one for one in self._backends if one in out or one.node in out] if out else []

    def picked(self, backend: Backend, now: float) -> None:
        """A client is on its way: the trial, if the backend's pause, or its node's, is over."""
        for whom in (backend, backend.node):
            ill = self._ill.get(whom)
            if ill is not None and ill.pause:
                ill.until = max(ill.until, now + ill.trial)

    def worked(self, backend: Backend) -> None:
        """It accepted a client."""
        self._ill.pop(backend, None)
        self._ill.pop(backend.node, None)

    def failed(self, whom: Backend | str, now: float, pauses: Pauses = _PAUSES) -> bool:
        """A backend did not, or nobody could reach the node of that name. True when that ejects it, or keeps it out."""
        ill = self._ill.setdefault(whom, _Ill())
        ill.failures += 1
        if ill.failures < EJECT_AFTER:
            return False
        if ill.pause and ill.until - now > ill.trial:
            return False  # one of those on their way when it was ejected
        ill.trial = pauses.trial
        ill.pause = min(ill.pause * 2, pauses.last) if ill.pause else pauses.first
        ill.until = now + ill.pause
        return True


class RetryBudget:
    """Says whether one more attempt may be made: when everything fails, retries must not multiply the load."""

    def __init__(self, now: float) -> None:
        self._tokens = RETRY_MOST
        self._at = now

    def client(self) -> None:
        """A client came."""
        self._tokens = min(self._tokens + RETRY_SHARE, RETRY_MOST)

    def take(self, now: float) -> bool:
        """One retry, if there is one left."""
        self._tokens = min(self._tokens + (now - self._at) * RETRY_RATE, RETRY_MOST)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
