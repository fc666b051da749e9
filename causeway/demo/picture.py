"""Rate over time with the events marked, as an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from xml.sax.saxutils import escape

from causeway.demo.outcome import Outcome

WIDTH, HEIGHT = 1000, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 64, 330  # the plot's edges
INK, PALE, RATE = "#1f2933", "#d9dee4", "#2f6fde"
BANDS = ("#7a5cc4", "#1a9c86", "#c98a1b", "#8794a1")  # one for each path
_Scale = Callable[[float], float]  # a value to its place in the plot
FONT = "font-family='system-ui, sans-serif'"


def draw(outcome: Outcome) -> str:
    """The whole picture."""
    length = max(len(outcome.rates) * outcome.bin_seconds, 1.0)
    top = _round_up(max((it / 1e6 for it in outcome.rates), default=1.0))

    def x(seconds: float) -> float:
        return round(LEFT + seconds / length * (WIDTH - LEFT - RIGHT), 2)

    def y(megabits: float) -> float:
        return round(BOTTOM - megabits / top * (BOTTOM - TOP), 2)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' role='img'>",
        f"<title>{escape(outcome.verdict())}</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>",
        _text(
            LEFT,
            24,
            f"{outcome.size >> 20} MiB from b to a through relays that die: {outcome.lost} bytes lost",
            size=17,
        ),
        _text(LEFT, 44, f"Mbit/s arriving at the client, every {outcome.bin_seconds * 1000:.0f} ms", fill="#5b6772"),
    ]
    for step in range(5):
        value = top * step / 4
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(value)}' y2='{y(value)}' stroke='{PALE}'/>")
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:g}", anchor="end"))
    every = max(1, round(length / 12))
    parts += [
        _text(x(second), BOTTOM + 18, f"{second} s", anchor="middle") for second in range(0, int(length) + 1, every)
    ]
    parts.append(_rates(outcome, x, y))
    parts += _paths(outcome, length, x)
    parts += _events(outcome, x)
    parts.append(_text(LEFT, HEIGHT - 14, outcome.verdict(), size=11, fill="#5b6772"))
    return "\n".join([*parts, "</svg>", ""])


def _rates(outcome: Outcome, x: _Scale, y: _Scale) -> str:
    points = []
    for index, rate in enumerate(outcome.rates):
        at = index * outcome.bin_seconds
        points += [f"{x(at)},{y(rate / 1e6)}", f"{x(at + outcome.bin_seconds)},{y(rate / 1e6)}"]
    end = x(len(outcome.rates) * outcome.bin_seconds)
    shape = f"{LEFT},{BOTTOM} {' '.join(points)} {end},{BOTTOM}"
    return f"<polygon points='{shape}' fill='{RATE}' fill-opacity='0.18' stroke='{RATE}' stroke-width='1.2'/>"


def _paths(outcome: Outcome, length: float, x: _Scale) -> Iterator[str]:
    """A band below the time axis that says which path carried the bytes."""
    names = list(dict.fromkeys(path for _, path in outcome.paths))
    for (start, path), (end, _) in pairwise([*outcome.paths, (length, "")]):
        left, right = x(max(0.0, start)), x(max(0.0, min(end, length)))
        colour = BANDS[names.index(path) % len(BANDS)]
        yield f"<rect x='{left}' y='{BOTTOM + 30}' width='{max(0.0, right - left):.2f}' height='20' fill='{colour}'/>"
        if right - left > 9 * len(path):
            yield _text((left + right) / 2, BOTTOM + 44, path, anchor="middle", fill="white")


def _events(outcome: Outcome, x: _Scale) -> Iterator[str]:
    for index, it in enumerate(outcome.events):
        at, low = x(it.at), BOTTOM + 66 + 16 * (index % 3)
        yield f"<line x1='{at}' x2='{at}' y1='{TOP}' y2='{low - 10}' stroke='#c8372d' stroke-dasharray='4 3'/>"
        label = f"{it.title}: stall {it.stall * 1000:.0f} ms"
        anchor = "end" if at > WIDTH * 0.7 else "start"
        yield _text(at + (-5 if anchor == "end" else 5), low, label, anchor=anchor, fill="#c8372d")


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", fill: str = INK) -> str:
    return f"<text x='{x}' y='{y}' {FONT} font-size='{size}' text-anchor='{anchor}' fill='{fill}'>{escape(text)}</text>"


def _round_up(value: float) -> float:
    """The next number that four grid lines divide into round ones."""
    if value <= 0:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(value))
    return next(step * magnitude for step in (1, 2, 4, 6, 8, 10) if step * magnitude >= value)
