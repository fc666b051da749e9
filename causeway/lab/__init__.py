"""`causeway lab`: a described network on this machine, to look at and to break."""

from causeway.lab.command import lab

__all__ = ["lab"]
