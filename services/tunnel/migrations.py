"""Sessions that went from one relay to another: how many, and why. Each is counted once, at its initiator."""

from collections import Counter
from weakref import WeakKeyDictionary

from services.tunnel import metrics
from services.tunnel.core.choice import BETTER, DRAIN, FAILOVER, LOAD, RETURN
from services.tunnel.life import Life
from services.tunnel.pairing import Pairing

CAUSES = (BETTER, LOAD, DRAIN, FAILOVER, RETURN)


class Migrations:
    """`total` since the start, by cause."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter(dict.fromkeys(CAUSES, 0))
        self._left: WeakKeyDictionary[Life, str] = WeakKeyDictionary()
        """The relay that a session had to leave last."""

    def note(self, pairing: Pairing, before: str, after: str, why: str, *, lost: bool) -> None:
        """A session's active link is over `after` now and was over `before`; empty: over none. `why`: as in
        events.SWITCHED; `lost`: for a while it had none."""
        if not (pairing.keys.initiator and before and after and before != after):
            return
        cause = FAILOVER if lost else _CAUSES.get(why, FAILOVER)
        if cause == BETTER and self._left.get(pairing.life) == after:
            cause = RETURN
        if cause in (LOAD, DRAIN, FAILOVER):
            self._left[pairing.life] = before
        self.total[cause] += 1
        metrics.MIGRATIONS.labels(cause).inc()


_CAUSES = {BETTER: BETTER, LOAD: LOAD, "drain": DRAIN, "better_path": BETTER, "link_up": BETTER}
"""From why a link became the active one; all others are ways to lose the former."""
