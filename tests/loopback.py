"""Loopback addresses that no test beside this one uses: one for each node, so that all keep the default ports."""

import random

from lab import place

# Of our own, for Hypothesis seeds the one of `random`, alike in every process of pytest-xdist.
_dice = random.Random()


def block() -> str:
    """The first three numbers."""
    return place.block(_dice)


def address() -> str:
    """One of 12 million."""
    return f"{block()}.{_dice.randint(2, 254)}"
