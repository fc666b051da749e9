"""Ending the current task by a signal."""

from __future__ import annotations

import asyncio
import signal


def cancelled_by_signals() -> list[int]:
    """From now on the first SIGINT or SIGTERM cancels the current task, and its number is in the returned list.

    Only the first: a second one must not interrupt the cleaning up.
    """
    ended_by: list[int] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def end(number: int) -> None:
        if not ended_by:
            ended_by.append(number)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    return ended_by
