"""The matrix as a heat map, for the README: PNG or SVG, as the file is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.matrix.flow import IDLE, UDP
from lab.matrix.results import COLUMNS, Cell, Matrix

FASTEST, SLOWEST = 0.010, 10.0  # seconds at the ends of the scale
DARK = 0.62  # place on the scale from which on text is white
INK, GREY, ALARM = "#1f2933", "#5b6772", "#b00020"
LABELS = {"idle": "idle", "request/response": "request", "bulk": "bulk"}


def draw(matrix: Matrix, path: Path) -> None:
    """Writes the picture. Raises ImportError without matplotlib, ValueError for an unknown kind of file."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"font.family": "DejaVu Sans", "svg.fonttype": "none"}
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    cells, missed = matrix.cells(), matrix.missed()
    nets = [net for net in matrix.nets if any(it.net == net for it in cells.values())] or list(matrix.nets)
    rows = [(event, title) for event, title in matrix.titles.items() if any(it.event == event for it in cells.values())]
    norm, colours = LogNorm(FASTEST, SLOWEST, clip=True), pyplot.get_cmap("YlOrRd")
    figure, axes = pyplot.subplots(
        1,
        len(nets),
        squeeze=False,
        sharey=True,
        figsize=(2.6 + 5.4 * len(nets), 1.9 + 0.46 * len(rows)),
        layout="constrained",
    )
    for axis, net in zip(axes[0], nets, strict=True):
        for row, (event, _) in enumerate(rows):
            for column, of in enumerate(COLUMNS):
                cell = cells.get((event, net, *of))
                _cell(axis, column, row, cell, norm, colours, beyond=cell in missed)
        axis.set(xlim=(0, len(COLUMNS)), ylim=(len(rows), 0))
        axis.set_title(matrix.nets[net], fontsize=11, loc="left", color=INK, pad=10)
        axis.set_xticks(
            [it + 0.5 for it in range(len(COLUMNS))], [f"{LABELS[load]}\n{protocol}" for protocol, load in COLUMNS]
        )
        axis.set_yticks([it + 0.5 for it in range(len(rows))], [_label(event, title, matrix) for event, title in rows])
        axis.tick_params(length=0, labelsize=9, labelcolor=INK, top=False)
        axis.axvline(len(COLUMNS) / 2, color="white", linewidth=5)
        axis.spines[:].set_visible(False)
    figure.suptitle(
        "What a client notices: stall in ms, median (large) and longest (small); colour: 99th percentile; framed: beyond its limit",
        fontsize=12,
        color=INK,
        x=0.01,
        ha="left",
    )
    bar = figure.colorbar(pyplot.cm.ScalarMappable(norm, colours), ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_ticks([0.01, 0.1, 1, 10], labels=["10 ms", "100 ms", "1 s", "10 s"])
    bar.ax.tick_params(labelsize=9, labelcolor=INK)
    bar.outline.set_visible(False)
    most = max((it.runs for it in cells.values()), default=0)
    busy = f"   machine busy: {matrix.host['busy']}" if matrix.host.get("busy") else ""
    figure.supxlabel(
        f"{matrix.verdict()}   (up to {most} runs a cell){busy}", fontsize=9, color=GREY, x=0.01, ha="left"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _label(event: str, title: str, matrix: Matrix) -> str:
    limit = matrix.limits.get(event)
    return title if limit is None else f"{title}  ≤ {_ms(limit)}"


def _cell(axis: Any, column: int, row: int, cell: Cell | None, norm: Any, colours: Any, *, beyond: bool) -> None:
    from matplotlib.patches import Rectangle

    p99 = None if cell is None else cell.p99 if not cell.never else SLOWEST
    shade = 0.0 if p99 is None else float(norm(max(p99, FASTEST)))
    fill = "#eef1f4" if p99 is None else colours(shade)
    harmed = cell is not None and not _intact(cell)
    axis.add_patch(
        Rectangle(
            (column + 0.02, row + 0.03),
            0.96,
            0.94,
            facecolor=fill,
            edgecolor=ALARM if harmed else INK if beyond else "none",
            linewidth=2.5 if harmed else 1.2,
        )
    )
    if cell is None:
        return
    ink = "white" if shade > DARK else INK
    median = "never" if cell.median is None else _ms(cell.median)
    axis.text(column + 0.5, row + 0.40, median, ha="center", va="center", fontsize=10, color=ink)
    small = [] if cell.longest is None else [_ms(cell.longest)]
    if cell.protocol == UDP and cell.load != IDLE and cell.lost_share >= 0.0005:
        small.append(f"−{cell.lost_share:.1%}")
    if harmed:
        small = ["LOST" if cell.lost else "BROKE" if cell.resets else "HARM"]
    elif cell.never:
        small = [f"{cell.never} stuck"]
    axis.text(column + 0.5, row + 0.76, "  ".join(small), ha="center", va="center", fontsize=6.5, color=ink)


def _intact(cell: Cell) -> bool:
    if cell.protocol == UDP:
        return not cell.foreign
    return not (cell.lost or cell.repeated or cell.swapped or cell.foreign or cell.resets)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f}"
