"""`causeway forward`: a local port that leads to a service, or to a target at a node, for as long as the command runs."""

from causeway.forward.command import forward

__all__ = ["forward"]
