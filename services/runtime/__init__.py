"""How any service runs: configuration, identity, TLS, serving, dialling, telemetry, process."""

import os

# gRPC's core writes a line of its own to standard error for every failed handshake; `diagnosis` says it better.
# It reads this when it is first used.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
