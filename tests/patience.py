"""Waiting for what must come."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

PATIENCE = 60.0
"""Seconds until it counts as missing. All of it takes about one when all is well; machines are busy."""


async def until(condition: Callable[[], Any], what: str = "", timeout: float = PATIENCE) -> Any:
    """What a condition (perhaps a coroutine function) gives once that is true; one that raises does not hold yet."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    value = condition()
                    if inspect.isawaitable(value):
                        value = await value
                    if value:
                        return value
                    last = None
                except Exception as error:
                    last = error
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what or condition}") from last
