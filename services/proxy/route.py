"""One port of a service, as clients take it: to which backend next, with how much patience, and who is on the way."""

import time
from dataclasses import dataclass

from services.proxy.core.balancer import Backends, Balancer
from services.proxy.core.catalog import Backend
from services.proxy.core.health import RetryBudget
from services.proxy.core.plan import Wanted
from services.proxy.core.request import speaks, speaks_2
from services.proxy.peers import Opening

MAX_TRIES = 4  # backends that one client may try


class Route:
    """Its balancer, and for each backend the header for the tunnel made ready."""

    def __init__(self, want: Wanted, balancer: Balancer, number: int) -> None:
        """`number`: under which the tunnel gives clients back."""
        self.number = number
        self.service = want.service
        self.label = want.label
        self.network = want.port.network
        self.http = speaks(want.port.name, want.port.app)
        self.http2 = speaks_2(want.port.name, want.port.app)
        self.balancer = balancer
        self.budget = RetryBudget(time.monotonic())
        self.unasked = 0  # clients whose request was to be read, and was none that can be
        self._openings: dict[Backend, Opening] = {}
        balancer.update(want.backends, want.traffic, want.levels)

    def __len__(self) -> int:
        return len(self.balancer.backends)

    @property
    def preferred(self) -> int:
        """Backends that are meant for the clients on this node; 0: all are."""
        return len(next(iter(self.balancer.levels), ()))

    @property
    def ejected(self) -> int:
        """Backends that are left out now."""
        return len(self.balancer.health.ejected(time.monotonic()))

    def update(self, want: Wanted) -> None:
        """Other backends, or another way to choose, from now on; clients that are on their way are not touched."""
        balancer = self.balancer
        if (want.backends, want.traffic, want.levels) != (balancer.backends, balancer.traffic, balancer.levels):
            balancer.update(want.backends, want.traffic, want.levels)
            self._openings.clear()

    def opening(self, backend: Backend) -> Opening:
        opening = self._openings.get(backend)
        if opening is None:
            opening = self._openings[backend] = Opening(backend, self.network, self.service, self.number)
        return opening

    def next(self, client: str, tried: Backends, key: str, now: float) -> Backend | None:
        """A backend for a client whom the last of those `tried` did not accept, if it may go on."""
        if len(tried) >= MAX_TRIES:
            return None
        another = self.balancer.pick(client, now, tried, key)
        if another is None:
            return None
        out = self.balancer.health.ejected(now)
        # From one that is known to be dead to one that is well: no more load than if it had gone there at once.
        free = tried[-1] in out and another not in out
        return another if free or self.budget.take(now) else None

    def whole(self, tried: Backends, now: float) -> bool:
        """Whether the attempt at the last of those `tried` shall have all the time: nobody else is well."""
        return len(self) == 1 or len(tried) >= MAX_TRIES or not self.balancer.spare(tried, now)


@dataclass(slots=True, eq=False)
class Use:
    """A client that is on its way to a backend, or connected to it."""

    route: Route
    backend: Backend
    counted: bool = False  # among the balancer's active ones
    judged: bool = False  # nothing more is to be learnt from it of its backend

    @classmethod
    def begin(cls, route: Route, backend: Backend) -> "Use":
        return cls(route, backend, route.balancer.begin(backend))

    def end(self) -> None:
        """It is over, or nothing more will be heard of it. May be said twice."""
        if self.counted:
            self.counted = False
            self.route.balancer.end(self.backend)
