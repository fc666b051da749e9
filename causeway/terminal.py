"""What commands print on."""

from __future__ import annotations

from rich.console import Console

_PIPE_WIDTH = 400  # columns when nobody looks: grep wants whole lines, and only tables with long reasons come near


def console() -> Console:
    """Standard output: as wide as the terminal, or as lines need where it is none."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = _PIPE_WIDTH
    return found
