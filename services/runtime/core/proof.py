"""What proves that a dial from outside arrived: the magic in front of a token, which nobody can invent.

See DialBack in protos/relay.proto and in protos/discovery.proto.
"""

MAGIC = b"CWP1"
TOKEN_LENGTH = 16
"""Random bytes."""
