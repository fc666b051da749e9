"""Each numbered failure that the design names has a test that would fail without its remedy."""

import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
NUMBERED = range(1, 35)
"""Items of the list "What breaks newcomers": relay and path, sleep and addresses, dialling and punching, discovery,
streams and proxy."""
NAMED = re.compile(r"FAILURES (\d+(?:, \d+)*)")
"""As in a test's docstring: FAILURES, the number or numbers, a colon, what happens."""


def named() -> Iterator[int]:
    """Items that some test names."""
    for path in TESTS.rglob("test_*.py"):
        if path != Path(__file__):
            for numbers in NAMED.findall(path.read_text()):
                yield from map(int, numbers.split(", "))


def test_every_failure_has_a_test_that_names_it() -> None:
    missing = set(NUMBERED) - set(named())
    assert not missing, f"no test names FAILURES {', '.join(map(str, sorted(missing)))}"
