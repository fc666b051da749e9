"""How any service runs: configuration, identity, TLS, serving, dialling, telemetry, process."""
