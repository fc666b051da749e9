"""Each numbered failure that the design names has a test that would fail without its remedy."""

import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
NUMBERED = range(1, 25)
"""Items of the list "What breaks newcomers"; relay and path, sleep and addresses, dialling and punching."""
NAMED = re.compile(r"FAILURES (\d+(?:, \d+)*)")
"""As in a test's docstring: FAILURES, the number or numbers, a colon, what happens."""
NOT_YET = {
    15: "sleep and clock jumps: comes with the watch on addresses and routes",
    16: "interface up, packets vanish: likewise",
    17: "address changes: likewise",
    18: "a NAT that ends each mapping after a fixed time: likewise",
}
"""Items without a test, and why. To be emptied; an item that has one must not be in here."""


def named() -> Iterator[tuple[int, str]]:
    """Items and the files that name them."""
    for path in TESTS.rglob("test_*.py"):
        if path != Path(__file__):
            for numbers in NAMED.findall(path.read_text()):
                for number in numbers.split(", "):
                    yield int(number), path.name


def test_every_failure_has_a_test_that_names_it() -> None:
    found = {number for number, _ in named()}
    missing = set(NUMBERED) - found - NOT_YET.keys()
    assert not missing, f"no test names FAILURES {', '.join(map(str, sorted(missing)))}"


def test_what_has_a_test_is_not_excused() -> None:
    excused = {number: path for number, path in named() if number in NOT_YET}
    assert not excused, f"remove from NOT_YET: {excused}"
