"""Regular expressions that no input can make slow: the syntax that RE2 and Python share, matched in linear time.

Who writes a VirtualService writes its patterns, and anybody may send the paths they are tried on. Python's `re`
backtracks: `(a+)+` takes 2^30 steps over thirty letters and one more, in the one thread that serves everybody. So the
pattern becomes a nondeterministic automaton of at most MAX_NODES nodes (Thompson's construction), of which all states are
followed at once and the sets met are remembered as states of a deterministic one. A text of n characters costs at most
n × MAX_NODES steps, and n dictionary look-ups once its sets are known. What needs backtracking (back-references,
look-around, \\b) is refused when the pattern is read, as RE2 refuses it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_PATTERN = 1024  # characters
MAX_NODES = 1000  # as RE2 bounds its counted repetitions
MAX_DEPTH = 50  # groups in groups; each takes three frames of Python's stack
MAX_STATES = 256  # sets remembered; then the memory starts over
MAX_TEXT = 4096  # characters; longer ones do not match

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included
Piece = Callable[[int], int]  # given the node that follows, adds its own nodes and returns the first

_CLASSES: dict[str, Ranges] = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 10), (12, 13), (32, 32)),
}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_LAST = 0x10FFFF
_COUNT = re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}")
_GROUP = re.compile(r"\?(:|P?<[A-Za-z_]\w{0,31}>)")


class RegexError(ValueError):
    """The pattern is wrong, too large, or needs what is not to be had in linear time."""


class _Node(NamedTuple):
    kind: str  # "char", "split", "begin", "end" or "match"
    ranges: Ranges
    next: int
    other: int = -1  # of a split


class _State:
    """A set of nodes to be in, with the states that follow as far as they were asked for."""

    __slots__ = ("accepts", "after", "nodes")

    def __init__(self, nodes: frozenset[int], accepts: bool) -> None:
        self.nodes = nodes
        self.accepts = accepts
        self.after: dict[str, _State] = {}


class Regex:
    """One pattern. `fold`: letters match in either case."""

    def __init__(self, pattern: str, *, fold: bool = False) -> None:
        """Raises RegexError."""
        self.pattern = pattern
        self._nodes, start, folds = _Parser(pattern).parse()
        self._fold = fold or folds
        self._states: dict[frozenset[int], _State] = {}
        self._first = self._reach((start,), begin=True)
        self._start = self._state(self._first)

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text matches."""
        if len(text) > MAX_TEXT:
            return False
        state = self._start
        for char in text:
            state = state.after.get(char) or self._step(state, char)
            if not state.nodes:
                return False
        return state.accepts

    def _step(self, state: _State, char: str) -> _State:
        if len(self._states) > MAX_STATES:
            self._states.clear()
            self._start = self._state(self._first)
        codes = {ord(c) for c in (char, char.lower(), char.upper()) if len(c) == 1} if self._fold else {ord(char)}
        nodes = self._nodes
        hit = [
            nodes[i].next
            for i in state.nodes
            if nodes[i].kind == "char" and any(low <= code <= high for low, high in nodes[i].ranges for code in codes)
        ]
        following = state.after[char] = self._state(self._reach(hit))
        return following

    def _state(self, nodes: frozenset[int]) -> _State:
        state = self._states.get(nodes)
        if state is None:
            at_end = self._reach(nodes, end=True)
            accepts = any(self._nodes[i].kind == "match" for i in at_end)
            state = self._states[nodes] = _State(nodes, accepts)
        return state

    def _reach(
        self, start: frozenset[int] | tuple[int, ...] | list[int], *, begin: bool = False, end: bool = False
    ) -> frozenset[int]:
        """All nodes to be had without a character. `begin`, `end`: this is where the text begins, ends."""
        seen: set[int] = set()
        stack = list(start)
        while stack:
            index = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            node = self._nodes[index]
            if node.kind == "split":
                stack += (node.next, node.other)
            elif (node.kind == "begin" and begin) or (node.kind == "end" and end):
                stack.append(node.next)
        return frozenset(i for i in seen if self._nodes[i].kind not in ("split", "begin"))


class _Parser:
    """Reads a pattern from left to right; the nodes are made afterwards, from its end."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise RegexError(f"the pattern has {len(pattern)} characters, expected at most {MAX_PATTERN}")
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._steps = 0
        self._nodes: list[_Node] = []

    def parse(self) -> tuple[list[_Node], int, bool]:
        """The nodes, the first one, and whether the pattern itself asks to ignore case."""
        folds = self._text.startswith("(?i)")
        self._at = 4 if folds else 0
        whole = self._alternatives()
        if self._at < len(self._text):
            raise self._error("a ')' too many")
        return self._nodes, whole(self._add(_Node("match", (), -1))), folds

    def _error(self, what: str) -> RegexError:
        return RegexError(f"{what} at character {self._at + 1} of {self._text!r}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise self._error("the pattern ends too soon")
        self._at += 1
        return char

    # ── making nodes ──

    def _count(self) -> None:
        """Nothing may be repeated without end, even what makes no node, such as `(){1000}` in itself."""
        self._steps += 1
        if self._steps > 10 * MAX_NODES:
            raise RegexError(f"{self._text!r} repeats too much; expected at most {MAX_NODES} characters when unfolded")

    def _add(self, node: _Node) -> int:
        self._nodes.append(node)
        if len(self._nodes) > MAX_NODES:
            raise RegexError(f"{self._text!r} is too large; expected at most {MAX_NODES} characters when unfolded")
        return len(self._nodes) - 1

    def _single(self, ranges: Ranges, kind: str = "char") -> Piece:
        return lambda following: self._add(_Node(kind, ranges, following))

    def _sequence(self, pieces: list[Piece]) -> Piece:
        def make(following: int) -> int:
            self._count()
            for piece in reversed(pieces):
                following = piece(following)
            return following

        return make

    def _choice(self, options: list[Piece]) -> Piece:
        def make(following: int) -> int:
            self._count()
            first = options[-1](following)
            for option in reversed(options[:-1]):
                first = self._add(_Node("split", (), option(following), first))
            return first

        return make

    def _repeat(self, piece: Piece, least: int, most: int | None) -> Piece:
        def make(following: int) -> int:
            first = following
            if most is None:
                first = self._add(_Node("split", (), -1, following))
                self._nodes[first] = _Node("split", (), piece(first), following)
            else:
                for _ in range(most - least):
                    self._count()
                    first = self._add(_Node("split", (), piece(first), following))
            for _ in range(least):
                self._count()
                first = piece(first)
            return first

        return make

    # ── reading ──

    def _alternatives(self) -> Piece:
        options = [self._concatenation()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._concatenation())
        return self._choice(options)

    def _concatenation(self) -> Piece:
        pieces: list[Piece] = []
        while self._peek() not in ("", "|", ")"):
            pieces.append(self._quantified(self._atom()))
        return self._sequence(pieces)

    def _quantified(self, piece: Piece) -> Piece:
        char = self._peek()
        count = _COUNT.match(self._text, self._at) if char == "{" else None
        if char in ("*", "+", "?") and char:
            self._at += 1
            piece = self._repeat(piece, int(char == "+"), 1 if char == "?" else None)
        elif count is not None:
            self._at = count.end()
            least = int(count[1])
            most = least if count[2] is None else int(count[3]) if count[3] else None
            if least > MAX_NODES or (most is not None and not least <= most <= MAX_NODES):
                raise self._error(f"a repetition {count[0]}")
            piece = self._repeat(piece, least, most)
        else:
            return piece
        if self._peek() == "?":
            self._at += 1  # as few as possible: the same texts match
        if self._peek() in ("*", "+") and self._peek():
            raise self._error("a repetition of a repetition")
        return piece

    def _atom(self) -> Piece:
        char = self._take()
        match char:
            case "(":
                return self._group()
            case "[":
                return self._single(self._class())
            case ".":
                return self._single(_but(((10, 10),)))
            case "^":
                return self._single((), "begin")
            case "$":
                return self._single((), "end")
            case "\\":
                return self._single(self._escape())
            case "*" | "+" | "?":
                raise self._error("nothing to repeat")
            case _:
                return self._single(((ord(char), ord(char)),))

    def _group(self) -> Piece:
        head = _GROUP.match(self._text, self._at)
        if head is not None:
            self._at = head.end()
        elif self._peek() == "?":
            raise self._error("a group that is not to be had in linear time")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} groups in groups")
        inner = self._alternatives()
        self._depth -= 1
        if self._take() != ")":
            raise self._error("a group without its ')'")
        return inner

    def _escape(self) -> Ranges:
        char = self._take()
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return ranges if char.islower() else _but(ranges)
        if char in _CONTROLS:
            return ((_CONTROLS[char], _CONTROLS[char]),)
        if char == "x":
            digits = self._text[self._at : self._at + 2]
            if not re.fullmatch(r"[0-9a-fA-F]{2}", digits):
                raise self._error("\\x without two digits")
            self._at += 2
            return ((int(digits, 16), int(digits, 16)),)
        if char.isalnum():
            raise self._error(f"\\{char}, which is not supported,")
        return ((ord(char), ord(char)),)

    def _class(self) -> Ranges:
        negated = self._peek() == "^"
        self._at += negated
        found: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            if self._text.startswith("[:", self._at):
                raise self._error("a named class, which is not supported,")
            char = self._take()
            low = self._escape() if char == "\\" else ((ord(char), ord(char)),)
            dash = self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", "")
            if not dash or len(low) != 1 or low[0][0] != low[0][1]:
                found += low
                continue
            self._at += 1
            char = self._take()
            high = self._escape() if char == "\\" else ((ord(char), ord(char)),)
            if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                raise self._error("a range that is none")
            found.append((low[0][0], high[0][0]))
        self._at += 1
        return _but(tuple(found)) if negated else tuple(found)


def _but(ranges: Ranges) -> Ranges:
    """All the other code points."""
    others: list[tuple[int, int]] = []
    at = 0
    for low, high in sorted(ranges):
        if low > at:
            others.append((at, low - 1))
        at = max(at, high + 1)
    if at <= _LAST:
        others.append((at, _LAST))
    return tuple(others)
