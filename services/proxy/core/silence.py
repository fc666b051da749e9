"""Which backends of a UDP service have fallen silent, by whether the flows to them get answers.

A host that is gone and a process that hangs refuse nothing: no ICMP error comes back, and a flow has no handshake that
could time out. What is left to go by is that a flow with at least one datagram sent has got none back for WAIT. That a
backend was silent to EJECT_AFTER such flows in a row, and in between to all others, makes it suspect: it is left out, but
for a trial now and then, see core/health.py.

Many services of UDP never answer (syslog, statsd). So nobody is judged before somebody has answered: this backend, or
another one of the same service port. Where clients of one service want answers only at times, a backend that gets
several of the others in a row rests for a while without need: that costs balance, and never a client.
"""

from services.proxy.core.catalog import Backend
from services.proxy.core.health import Health, Pauses

WAIT = 3.0
"""Seconds without a datagram back until a flow says that its backend is silent. Less than the 5 s after which a resolver
asks again (resolv.conf(5), timeout), more than a slow answer takes; one that is slower yet clears the backend at once."""

# Seconds. A trial costs its client all that it sends until it begins another flow, where one of TCP costs a retry: so
# they are rarer. Its result is known after WAIT, or a moment later.
SILENT = Pauses(first=5.0, last=20.0, trial=WAIT + 1.0)


class Silence:
    """Of the backends of one service port; what is found goes into their `health`."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._answered: dict[Backend, float] = {}  # who ever did, and when it last did
        self._ejected: dict[Backend, float] = {}  # when it was, if it has not answered since

    def __bool__(self) -> bool:
        """Whether there is anything to go by: somebody has answered."""
        return bool(self._answered)

    def keep(self, backends: tuple[Backend, ...]) -> None:
        """These are all; forgets the others."""
        for known in (self._answered, self._ejected):
            for gone in known.keys() - {*backends}:
                del known[gone]

    def answered(self, backend: Backend, now: float) -> None:
        """The first datagram of a flow came back."""
        self._answered[backend] = now
        self._ejected.pop(backend, None)
        self._health.worked(backend)

    def unanswered(self, backend: Backend, began: float, now: float) -> bool:
        """A flow that began then got nothing back for WAIT. True when that ejects its backend, or keeps it out."""
        if not self or began < max(self._answered.get(backend, began), self._ejected.get(backend, began)):
            return False  # others got answers meanwhile; or it was on its way when the backend was ejected
        if not self._health.failed(backend, now, SILENT):
            return False
        self._ejected[backend] = now
        return True
