"""Whether a gateway has forgotten its mappings, by the clock that it shows."""


class Epoch:
    """The gateway's seconds since it lost its state, compared with ours (RFC 6887 section 8.5)."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def fits(self, server: int, now: float) -> bool:
        """Whether the gateway's clock went on since the last time; the first time: yes."""
        last, self._last = self._last, (server, now)
        if last is None:
            return True
        theirs, ours = server - last[0], now - last[1]
        # A second back is jitter of the network; clocks may differ by one in sixteen and two seconds.
        return theirs >= -1 and ours + 2 >= theirs - theirs / 16 and theirs + 2 >= ours - ours / 16
