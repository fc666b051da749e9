"""A client of the public port that says what it likes."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protos import discovery_pb2 as pb
from protos import discovery_pb2_grpc as pb_grpc
from services.discovery import wire
from services.discovery.core.model import Record, Signed
from services.runtime import config as configuration
from services.runtime import dial
from services.runtime.identity import Identity

from .nodes import PATIENCE


class Caller:
    """A node that holds the PSK and says what it likes."""

    def __init__(self, config: Path, host: str, name: str = "r") -> None:
        loaded = configuration.load(config)
        self.identity = Identity.load(loaded)
        self.name = loaded.node_name
        options = [("grpc.ssl_target_name_override", self.identity.target_name(name))]
        credentials = self.identity.channel_credentials()
        self.channel = grpc.aio.secure_channel(f"{host}:20008", credentials, options=options)
        self.stub: Any = pb_grpc.PeerServiceStub(self.channel)

    def record(self, **changes: Any) -> Record:
        now = time.time()
        record = Record(self.name, "default", int(now * 1000), now, now + 600, f"instance of {self.name}")
        return replace(record, **changes)

    def seal(self, **changes: Any) -> Signed:
        return wire.seal(self.identity, self.record(**changes))

    async def put(self, signed: Signed) -> pb.PutRecordResponse:
        request = pb.PutRecordRequest(record=wire.signed_to_wire(signed))
        return await self.stub.PutRecord(request, timeout=PATIENCE)  # type: ignore[no-any-return]

    async def refused(self, signed: Signed) -> tuple[grpc.StatusCode, str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.put(signed)
        return caught.value.code(), dial.reason(caught.value), caught.value.details() or ""
