"""Ages, for a person."""

from __future__ import annotations

# Seconds, in the units in which people say them; each is used from twice its size on.
_UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))


def spell(seconds: float) -> str:
    """ "90 s", "5 min", "3 h", "2 days"."""
    for size, name in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
