"""What can go wrong in the relay."""

from __future__ import annotations


class ProtocolError(Exception):
    """The other side broke the control protocol: what was got and what was expected."""
