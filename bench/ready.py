"""Says when the four services of a node are ready: `python -m bench.ready RUN_DIR`.

A process of its own, so that gRPC's threads stay out of the bench, which forks. Prints one line when it
watches, and one, with the time of the monotonic clock, when all four report SERVING.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

NAMES = ("discovery", "tunnel", "relay", "proxy")
POLL = 0.01  # seconds; the error of the result


def main() -> None:
    run_dir = Path(sys.argv[1])
    print(json.dumps({"watching": str(run_dir)}), flush=True)
    for name in NAMES:
        path = run_dir / f"{name}.sock"
        while not path.is_socket() or not serving(path):
            time.sleep(POLL)
    print(json.dumps({"at": time.monotonic()}), flush=True)


def serving(path: Path) -> bool:
    # A new channel each time: one that failed waits before it dials again.
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    main()
