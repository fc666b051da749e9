"""The matrix as a small table in Markdown, for the README."""

from __future__ import annotations

from lab.matrix.results import COLUMNS, Cell, Matrix


def markdown(matrix: Matrix) -> str:
    """A table for each network: of each cell median and 99th percentile in ms, in bold when that is beyond its limit."""
    cells, missed = matrix.cells(), matrix.missed()
    blocks = []
    for net, description in matrix.nets.items():
        lines = [
            f"{description}: stall in ms, median / 99th percentile",
            "",
            _row("event", "limit", *(f"{protocol} {load}" for protocol, load in COLUMNS)),
            _row("---", *["--:"] * (1 + len(COLUMNS))),
        ]
        for event, title in matrix.titles.items():
            row = [cells.get((event, net, *column)) for column in COLUMNS]
            if any(row):
                limit = f"{1000 * matrix.limits[event]:.0f}" if event in matrix.limits else ""
                lines.append(_row(title, limit, *(_text(cell, beyond=cell in missed) for cell in row)))
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, matrix.verdict()]) + "\n"


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def _text(cell: Cell | None, *, beyond: bool) -> str:
    if cell is None:
        return ""
    if cell.median is None or cell.p99 is None:
        return "**never**"
    text = f"{1000 * cell.median:.0f} / {1000 * cell.p99:.0f}"
    return f"**{text}**" if beyond or cell.never else text
