"""How many descriptors a service may spend on connections, so that it refuses the next one instead of failing at something else."""

import resource

RESERVE_SHARE = 8  # one in so many descriptors is kept for what is not a connection of a client: links, gRPC, files
MAX_RESERVE = 4096


def room() -> int:
    """Descriptors for clients' connections. Asked again and again (1 µs), since `prlimit` may change it while we run."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - min(limit // RESERVE_SHARE, MAX_RESERVE)
