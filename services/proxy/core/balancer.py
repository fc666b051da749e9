"""Which backend the next client of a service port gets."""

from collections.abc import Sequence

from services.proxy.core.catalog import Backend


class RoundRobin:
    """Each backend in turn: over any run of picks without a change, counts differ by at most one.

    A change of the backends keeps the turn: the one whose turn it was stays next while it is still there.
    """

    def __init__(self, backends: Sequence[Backend] = ()) -> None:
        self._backends = tuple(backends)
        self._next = 0

    def __len__(self) -> int:
        return len(self._backends)

    def pick(self) -> Backend | None:
        """The next backend; None when there is none."""
        if not self._backends:
            return None
        backend = self._backends[self._next]
        self._next = (self._next + 1) % len(self._backends)
        return backend

    def replace(self, backends: Sequence[Backend]) -> None:
        """Other backends from now on."""
        old, self._backends = self._backends, tuple(backends)
        places = {backend: place for place, backend in enumerate(self._backends)}
        for step in range(len(old)):
            place = places.get(old[(self._next + step) % len(old)])
            if place is not None:
                self._next = place
                return
        self._next = 0
