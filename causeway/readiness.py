"""When a service serves: asked over grpc.health.v1 on its Unix socket."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

POLL = 0.02, 1.0  # seconds between looks: at first, and at last, where a service does not come up


def wait(run_dir: Path, names: Iterable[str]) -> None:
    """Blocks until every service answers SERVING. Runs in a process of its own: it opens gRPC channels."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    pause = POLL[0]
    for name in names:
        path = run_dir / f"{name}.sock"
        while True:
            # A new channel each time: a channel that failed once waits a second before it dials again.
            if path.is_socket():
                with grpc.insecure_channel("unix:" + urllib.parse.quote(str(path))) as channel:
                    try:
                        answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[no-untyped-call]
                            health_pb2.HealthCheckRequest(), timeout=1
                        )
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            break
                    except grpc.RpcError:
                        pass  # a left-over socket of an earlier run, or not up yet
            time.sleep(pause)
            pause = min(1.1 * pause, POLL[1])
