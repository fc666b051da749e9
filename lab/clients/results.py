"""What came of all clients, as a table and as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that one client tried over one path."""

    client: str
    check: str
    path: str
    result: str
    """ok, failed, skipped."""
    figure: str
    """Of a success; of anything else the reason."""


def absent(client: str, path: str, missing: list[str]) -> Result:
    """A client whose programs are not all installed is skipped; with NATLAB_REQUIRED=1, where nothing may be, it failed."""
    result = "failed" if os.environ.get("NATLAB_REQUIRED") == "1" else "skipped"
    return Result(client, "all", path, result, f"not installed: {', '.join(missing)}")


@dataclass(slots=True)
class Results:
    """In order."""

    host: dict[str, str]
    """The machine, as lab/host.py describes it."""
    rows: list[Result] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether something was tried and nothing failed."""
        return any(it.result == "ok" for it in self.rows) and not any(it.result == "failed" for it in self.rows)

    def as_json(self) -> str:
        return json.dumps({"host": self.host, "results": [asdict(it) for it in self.rows]}, indent=1)

    def show(self, console: Console) -> None:
        """One line for each check, one column for each path."""
        paths = list(dict.fromkeys(it.path for it in self.rows))
        table = Table("client", "what was tried", *paths)
        cells = {(it.client, it.check, it.path): it for it in self.rows}
        before = ""
        for client, check in dict.fromkeys((it.client, it.check) for it in self.rows):
            if before and client != before:
                table.add_section()
            table.add_row(
                client if client != before else "", check, *(_text(cells.get((client, check, path))) for path in paths)
            )
            before = client
        console.print(table)
        for row in self.rows:
            if row.result != "ok":
                console.print(f"{row.result}: {row.client}, {row.check}, {row.path}: {row.figure}", markup=False)
        counts = [f"{sum(it.result == kind for it in self.rows)} {kind}" for kind in ("ok", "failed", "skipped")]
        console.print(", ".join(counts), style="bold green" if self.ok else "bold red", highlight=False)


def _text(row: Result | None) -> str:
    if row is None:
        return "–"
    return escape(row.figure) if row.result == "ok" else f"[bold red]{row.result}[/]"
