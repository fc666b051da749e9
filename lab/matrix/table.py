"""The matrix for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.matrix.flow import IDLE, UDP
from lab.matrix.results import COLUMNS, Cell, Matrix


def show(matrix: Matrix, console: Console) -> None:
    """One table a network, what failed, and the verdict."""
    cells, allowed, missed = matrix.cells(), matrix.allowed(), matrix.missed()
    for net, description in matrix.nets.items():
        table = Table(
            title=f"{description}\nStall in ms: median / p99 / max; lost: bytes of TCP, share of UDP. The limit is for p99; what "
            "the connection shows when nothing happens is added to it",
            title_justify="left",
        )
        table.add_column("event", no_wrap=True)
        table.add_column("limit", justify="right")
        for protocol, load in COLUMNS:
            table.add_column(f"{protocol}\n{load}", justify="right")
        for event, title in matrix.titles.items():
            keys = [(event, net, *column) for column in COLUMNS]
            if any(key in cells for key in keys):
                limit = matrix.limits.get(event)
                texts = [_text(cells.get(key), allowed.get(key) if cells.get(key) in missed else None) for key in keys]
                table.add_row(title, "[dim]–[/]" if limit is None else f"{limit * 1000:.0f}", *texts)
        if table.row_count:
            console.print(table)
    if busy := matrix.host.get("busy"):
        console.print(f"[bold yellow]This machine was busy: {busy}; do not trust these numbers.[/]")
    for failure in matrix.failures:
        console.print(Text.assemble(("failed: ", "red"), failure))
    console.print(matrix.verdict(), style="bold green" if matrix.ok else "bold red", highlight=False)


def _text(cell: Cell | None, missed: float | None) -> str:
    """missed: seconds within which it should have been, when it was not."""
    if cell is None:
        return "[dim]–[/]"
    lines = []
    if cell.stalls:
        lines.append(" / ".join(f"{1000 * (it or 0):.0f}" for it in (cell.median, cell.p99, cell.longest)))
    if missed is not None:
        lines.append(f"[bold red]beyond {missed * 1000:.0f}[/]")
    if cell.never:
        lines.append(f"[bold red]{cell.never} of {cell.runs} never went on[/]")
    if cell.protocol == UDP:
        if cell.lost and cell.load != IDLE:  # who is idle asks until it is answered
            lines.append(f"[dim]lost {cell.lost_share:.1%}[/]")
    elif cell.lost or cell.repeated or cell.swapped or cell.foreign:
        lines.append(f"[bold red]lost {cell.lost:,} doubled {cell.repeated:,} swapped {cell.swapped:,}[/]")
    if cell.resets:
        lines.append(f"[bold red]{cell.resets} of {cell.runs} broke[/]")
    return "\n".join(lines)
