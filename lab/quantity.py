"""Quantities as people write them, with their unit: 40ms, 2%, 100mbit, 512kB.

`tc` uses the same words. A bare number is refused except zero: nobody can tell 40 s from 40 ms.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµ%]*)\s*")

_TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SIZES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "kib": 1024.0, "mib": 1024.0**2}


def seconds(value: object) -> float:
    """A time in seconds. Raises ValueError with what was expected."""
    return _parse(value, _TIMES, "a time with its unit, such as 40ms or 0.5s")


def bits_per_second(value: object) -> float:
    """A rate; 0: no limit. Raises ValueError with what was expected."""
    return _parse(value, _RATES, "a rate in kbit, mbit or gbit (a second), such as 100mbit; 0 for no limit")


def size(value: object) -> int:
    """A number of bytes. Raises ValueError with what was expected."""
    return round(_parse(value, _SIZES, "a size in B, kB, MB, KiB or MiB, such as 512kB"))


def share(value: object) -> float:
    """A share from 0 to 1. Raises ValueError with what was expected."""
    expected = "a share from 0% to 100%, such as 2%"
    found = _parse(value, {"%": 0.01}, expected)
    if found > 1:
        raise ValueError(expected)
    return found


def in_time(value: float) -> str:
    """A time for people: 40 ms."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value / 1e-6:g} µs" if value else "0 ms"


def in_rate(value: float) -> str:
    """A rate for people: 100 Mbit/s."""
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} bit/s"


def in_share(value: float) -> str:
    """A share for people: 2 %."""
    return f"{value * 100:g} %"


def _parse(value: object, units: dict[str, float], expected: str) -> float:
    match = _NUMBER.fullmatch(str(value)) if isinstance(value, int | float | str) else None
    if match is None or isinstance(value, bool):
        raise ValueError(expected)
    number, unit = float(match[1]), match[2].lower()
    if unit in units:
        # Rounded, so that 40ms is 0.04 and not 0.040000000000000001.
        return round(number * units[unit], 12)
    if number == 0 and not unit:
        return 0.0
    raise ValueError(expected)
