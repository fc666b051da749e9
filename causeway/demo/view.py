"""What the person sees meanwhile."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL = 2.0  # seconds between progress lines where the terminal cannot redraw


class View:
    """Lines for what happened, and one part that keeps changing below them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=10, transient=True)
        self._moves = console.is_terminal
        self._last_line = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> View:
        if self._moves:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moves:
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Something happened."""
        self.console.print(
            f"[dim]{time.monotonic() - self._started:6.1f} s[/dim]  {text}",
            style=style,
            highlight=False,
            soft_wrap=True,
        )

    def wait(self, text: str) -> None:
        """Something is being waited for."""
        if self._moves:
            self._live.update(Spinner("dots", text=f" {text}"))
        else:
            self.say(text)

    def progress(self, *, done: int, size: int, rate: float, path: str, rtt: float) -> None:
        """Bytes done of size, bits a second, path and its round trip in seconds."""
        delay = f"RTT {rtt * 1000:.1f} ms" if rtt else ""
        facts = f"{done >> 20:>4} of {size >> 20} MiB   {rate / 1e6:6.1f} Mbit/s   {path}   {delay}".rstrip()
        if self._moves:
            self._live.update(self._panel(done, size, facts))
        elif time.monotonic() - self._last_line > PLAIN_INTERVAL:
            self._last_line = time.monotonic()
            self.say(facts)

    def _panel(self, done: int, size: int, facts: str) -> RenderableType:
        grid = Table.grid()
        grid.add_row(ProgressBar(total=size, completed=done, width=min(72, self.console.width - 2)))
        return Group(grid, Text(facts))
