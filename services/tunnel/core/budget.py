"""Memory for unacknowledged records, shared by all sessions of a node."""

from typing import Final


class Budget:
    """`limit` bytes for all; each session may use a floor of 1 MiB even when others have used it up."""

    FLOOR: Final = 1024 * 1024

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def allows(self, own: int) -> bool:
        """Whether a session that holds `own` bytes may take more."""
        return self.used < self.limit or own < self.FLOOR
