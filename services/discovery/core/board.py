"""What a person should know: the state of each source in one line, and warnings that stand until cleared."""

from __future__ import annotations

# Warnings kept; what comes beyond is only logged.
MAX_WARNINGS = 64


class Board:
    """Lines for GetStatus."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self._warnings: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """Standing warnings, oldest first."""
        return list(self._warnings.values())

    def say(self, source: str, text: str) -> None:
        """The state of a source."""
        self.sources[source] = text

    def warn(self, key: str, text: str) -> bool:
        """Raise a warning, or reword it; True when it is news and so deserves a line in the log."""
        if self._warnings.get(key) == text:
            return False
        if key in self._warnings or len(self._warnings) < MAX_WARNINGS:
            self._warnings[key] = text
        return True

    def clear(self, key: str) -> bool:
        """Take a warning back; True when it stood."""
        return self._warnings.pop(key, None) is not None
