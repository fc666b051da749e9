"""`causeway demo`: two nodes that cannot reach each other, two relays, and relays that die under a download."""

from causeway.demo.command import demo

__all__ = ["demo"]
