"""Which backends are taken for dead, by what became of real connections, and how many retries that may cost.

No probes: what fails for a client fails here. A backend that failed EJECT_AFTER times in a row is left out for a while,
then gets one client as a trial; a failed trial costs that client one retry, not the connection.
"""

from dataclasses import dataclass

from services.proxy.core.catalog import Backend

# Failures in a row: one may be chance, and at 100 connections a second three are over in 30 ms.
EJECT_AFTER = 3
# Seconds left out: after the first ejection, and the most it doubles to. A backend that returns is found within this.
EJECT_FIRST, EJECT_LAST = 1.0, 4.0
# Seconds until another client tries while the first trial has no result.
TRIAL = 1.0

# Retries: a share of the clients, and some for those who come rarely (as Finagle's RetryBudget: 20 %, 10 a second).
RETRY_SHARE, RETRY_RATE, RETRY_MOST = 0.2, 10.0, 100.0


@dataclass(slots=True)
class _Ill:
    failures: int = 0  # in a row
    pause: float = 0.0  # s of the last ejection; 0: not ejected
    until: float = 0.0  # left out until then


class Health:
    """Of the backends of one service port."""

    def __init__(self) -> None:
        self._ill: dict[Backend, _Ill] = {}

    def __bool__(self) -> bool:
        """False: nobody failed lately, no need to ask for anyone."""
        return bool(self._ill)

    def keep(self, backends: tuple[Backend, ...]) -> None:
        """Forgets the others."""
        for backend in self._ill.keys() - set(backends):
            del self._ill[backend]

    def ejected(self, now: float) -> list[Backend]:
        """Left out at `now`, in no order."""
        return [backend for backend, ill in self._ill.items() if ill.pause and ill.until > now]

    def picked(self, backend: Backend, now: float) -> None:
        """A client is on its way: the trial, if the backend's pause is over."""
        ill = self._ill.get(backend)
        if ill is not None and ill.pause:
            ill.until = max(ill.until, now + TRIAL)

    def worked(self, backend: Backend) -> None:
        """It accepted a client."""
        self._ill.pop(backend, None)

    def failed(self, backend: Backend, now: float) -> bool:
        """It did not. True when that ejects it, or keeps it out."""
        ill = self._ill.setdefault(backend, _Ill())
        ill.failures += 1
        if ill.failures < EJECT_AFTER:
            return False
        if ill.pause and ill.until - now > TRIAL:
            return False  # one of those on their way when it was ejected
        ill.pause = min(ill.pause * 2, EJECT_LAST) if ill.pause else EJECT_FIRST
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
