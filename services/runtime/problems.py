"""What is wrong with a configuration, told so that it can be put right in one go."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place.

    file: the file as the user named it. key: dotted path, empty when the whole file is meant. found and
    expected: phrases. nearest: the name that was probably meant, or empty. line: from 1, 0 when unknown.
    """

    file: str
    key: str
    found: str
    expected: str
    nearest: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{place}: {self.key}: " if self.key else f"{place}: "
        text += self.found
        if self.expected:
            text += f"; expected {self.expected}"
        if self.nearest:
            text += f"; did you mean {self.nearest}?"
        return text


class ConfigError(Exception):
    """All problems of one configuration; `str()` gives one line for each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def show(value: Any) -> str:
    """A value as found in a file, short enough for one line."""
    if isinstance(value, dict):
        return "found a mapping"
    if isinstance(value, (list, tuple)):
        return f"found a list of {len(value)}"
    if isinstance(value, bool):
        return f"found {str(value).lower()}"
    text = repr(value)
    return f"found {text if len(text) <= 80 else text[:77] + '…'}"


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The candidate most like `name` (case does not count), or empty when none is close."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else ""
