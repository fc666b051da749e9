"""Loopback addresses that no test beside this one uses: one for each node, so that all keep the default ports."""

import random

# The system's, for Hypothesis seeds the one of `random`, alike in every process of pytest-xdist.
_dice = random.SystemRandom()


def block() -> str:
    """The first three numbers, of 48,000 possible ones: a clash with a test beside is unlikely."""
    return f"127.{_dice.randint(64, 250)}.{_dice.randint(0, 255)}"


def address() -> str:
    """One of 12 million."""
    return f"{block()}.{_dice.randint(2, 254)}"
