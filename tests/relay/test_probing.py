"""The rounds of a relay's prober: how often those who come regularly are asked to come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import pytest

from services.relay import probing
from services.relay.memory import Memory
from services.relay.peers import Addresses, Dialled, Discovery, Outcome
from services.relay.probing import USUAL, Prober
from tests.patience import until

IP = "203.0.113.1"


class Vantages:
    """In place of discovery: each of them dials once in a round, in vain."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.paces: list[float] = []

    async def probe(self, port: int, tokens: list[bytes], pace: float) -> AsyncGenerator[Addresses | Dialled, None]:
        self.paces.append(pace)
        for name, token in zip(self.names, tokens, strict=False):
            yield Dialled(name, IP, token, Outcome.SILENCE)
        await asyncio.Event().wait()


async def test_once_it_is_decided_they_come_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they came every few seconds for an hour: until the round that decided it was over."""
    monkeypatch.setattr(probing, "SLOW", 0.02)
    monkeypatch.setattr("services.relay.core.pace.FIRST", 0.02)
    vantages, log = Vantages("a"), logging.getLogger("test")
    prober = Prober(
        cast(Discovery, vantages),
        Memory(tmp_path / "proven", log),
        20007,
        3600.0,
        changed=lambda: None,
        faithful=lambda: True,
        log=log,
    )
    prober.want(True)
    running = asyncio.create_task(prober.run())
    try:
        await until(lambda: len(vantages.paces) == 3, "a round after the two that decided")
        assert prober.found.down().keys() == {IP}
        assert vantages.paces[0] < vantages.paces[1] < USUAL == vantages.paces[2]
        await asyncio.sleep(0.2)
        assert len(vantages.paces) == 3, "this one lasts"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
