"""Host patterns: `a.example.com`, `*.example.com` (any depth below, not itself) and `*`. The most exact one wins."""

import re
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")


class HostError(ValueError):
    """What was given is no host pattern."""


def pattern(text: str) -> str:
    """A host pattern in lower case. Raises HostError."""
    host = text.lower().rstrip(".")
    if host != "*" and not _NAME.fullmatch(host) and not re.fullmatch(r"\[?[0-9a-f:.]{2,45}\]?", host):
        raise HostError(f"{text!r} is no host; expected a name, '*.' and a name, or '*'")
    return host.strip("[]")


def overlap(one: str, two: str) -> str | None:
    """The pattern for hosts that match both; None when there are none."""
    if covers(one, two):
        return two
    return one if covers(two, one) else None


def covers(wide: str, narrow: str) -> bool:
    """Whether all that matches `narrow` matches `wide`."""
    if wide in ("*", narrow):
        return True
    return wide.startswith("*.") and narrow.endswith(wide[1:])


def host_of(authority: str) -> str:
    """The host of "host:port", "[ip]:port" or "host", in lower case, as patterns are matched with it."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().rstrip(".")


class Hosts(Generic[T]):
    """Values by host pattern."""

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._below: dict[str, T] = {}  # by what follows the star, with its dot

    def __iter__(self) -> Iterator[T]:
        yield from self._exact.values()
        yield from self._below.values()

    def put(self, host: str, value: T) -> None:
        """The value for exactly this pattern from now on."""
        if host.startswith("*"):
            self._below[host[1:]] = value
        else:
            self._exact[host] = value

    def setdefault(self, host: str, value: T) -> T:
        """The value for exactly this pattern; `value`, if it had none."""
        if host.startswith("*"):
            return self._below.setdefault(host[1:], value)
        return self._exact.setdefault(host, value)

    def get(self, host: str) -> T | None:
        """The value for exactly this pattern."""
        return self._below.get(host[1:]) if host.startswith("*") else self._exact.get(host)

    def find(self, host: str) -> T | None:
        """The value of the most exact pattern that matches `host`, in lower case."""
        found = self._exact.get(host)
        if found is not None or not self._below:
            return found
        at = host.find(".")
        while at >= 0:
            found = self._below.get(host[at:])
            if found is not None:
                return found
            at = host.find(".", at + 1)
        return self._below.get("")
