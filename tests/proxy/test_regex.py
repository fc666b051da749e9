"""Patterns of VirtualServices: the same answers as Python's `re`, and no pattern that takes for ever."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core.regex import MAX_TEXT, Regex, RegexError

ATOMS = st.sampled_from(
    ["a", "b", "/", ".", "[ab]", "[^a]", "[a-c/]", r"\d", r"\w", r"\.", "[^/]", "(?:a|)", r"\W", "$", "^"]
)


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda both: f"({both[0]}|{both[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}?", "{2,}"])).map(
            lambda both: f"(?:{both[0]}){both[1]}"
        ),
    )


@given(st.recursive(ATOMS, _more, max_leaves=8), st.text("ab/.1c", max_size=8))
def test_the_same_as_python(pattern: str, text: str) -> None:
    assert Regex(pattern).fullmatch(text) == (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/api/v[0-9]+/.*", ("/api/v1/", "/api/v22/x/y"), ("/api/v/", "/apx/v1/", "/api/v1")),
        ("^/items/(?P<id>\\d+)$", ("/items/1",), ("/items/", "/items/1/")),
        ("(?i)/Path", ("/PATH", "/path"), ("/paths",)),
        (r"/a\.b|/c\x2Fd", ("/a.b", "/c/d"), ("/axb", "/c.d")),
        ("[]a-]+", ("]", "a-a"), ("b", "")),
        ("a{2,}?b", ("aab", "aaaab"), ("ab",)),
        ("", ("",), ("a",)),
        ("a{,3}", ("a{,3}",), ("aaa",)),
        ("(?:)*", ("",), ("a",)),
    ],
)
def test_what_matches(pattern: str, yes: tuple[str, ...], no: tuple[str, ...]) -> None:
    made = Regex(pattern)
    assert all(made.fullmatch(text) for text in yes)
    assert not any(made.fullmatch(text) for text in no)


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "(a", "a)", "[", "[a", "*", "a**", "a+*", "\\", r"\b", r"(a)\1", "(?=a)", "(?!a)", "(?<=a)", "(?#c)", "[b-a]",
        "a{3,2}", "a{1001}", "(a{40}){40}", "x" * 1025, "(" * 51 + ")" * 51, "((((){999}){999}){999}){999}", r"\x1", "[[:alpha:]]",
    ],
)  # fmt: skip
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(RegexError):
        Regex(pattern)


@given(st.text("()[]{}|*+?.^$\\ab1,-<P:i", max_size=30))
def test_any_text_is_a_pattern_or_refused(pattern: str) -> None:
    try:
        made = Regex(pattern)
    except RegexError:
        return
    assert made.fullmatch("ab1") in (True, False)


@pytest.mark.parametrize(
    "pattern", ["(a+)+", "(a|a)*", "(a|aa)+", "a*a*a*a*a*a*", "(a?){50}a{50}", "(a|b)*a(a|b){300}"]
)
def test_no_pattern_is_catastrophic(pattern: str) -> None:
    made = Regex(pattern)
    begin = time.perf_counter()
    assert not made.fullmatch("ab" * (MAX_TEXT // 2 - 1) + "!")
    assert not made.fullmatch("a" * (MAX_TEXT - 1) + "!")
    # Backtracking would take longer than the universe has existed.
    assert time.perf_counter() - begin < 60
    assert not made.fullmatch("a" * (MAX_TEXT + 1))
