"""The ingress gateway: a mode of the proxy in which it talks HTTP and TLS to clients, on addresses of this host."""
