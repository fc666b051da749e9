"""How a client program of our own tells what it saw: a JSON row on a line for each thing that it tried."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable

from lab.clients.case import Row


async def attempt(check: str, work: Callable[[], Awaitable[str]]) -> None:
    """Does one thing and prints the row; whatever goes wrong is in it."""
    try:
        row = Row(check, await work())
    except Exception as error:
        row = Row(check, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:600])
    print(json.dumps(dataclasses.asdict(row)), flush=True)
