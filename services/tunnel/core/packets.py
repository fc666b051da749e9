"""What travels on a link: packets of a 16-byte header and a body.

```
 0      1      2        4         8                16
 | kind | epoch| zero   | length  | number         | body (length bytes)
```

`number` is the session's record sequence for RECORD, the link's own packet counter for the other
sealed kinds, and 0 for the unsealed kinds. It is the AEAD nonce, and the header is the associated
data: nothing in it can be changed unnoticed.
"""

from struct import Struct

HEADER = Struct("!BBHIQ")
HEADER_SIZE = HEADER.size
TAG_SIZE = 16
"""Bytes that AES-GCM adds."""

MAX_PLAIN = 256 * 1024
"""Largest plaintext of a record, bytes. Larger records gain nothing: measured 1.00 GB/s at 256 KiB
and no more at 1 MiB, while a switch of links then has to repeat more."""
FULL_RECORD = 240 * 1024
"""A record is sealed once it holds this much, bytes; what remains is room for control frames."""
MAX_BODY = MAX_PLAIN + TAG_SIZE
MAX_HANDSHAKE = 32 * 1024
"""Largest body of an unsealed packet, bytes: certificate chains are about 1 KiB."""

# Unsealed: before a link belongs to a session.
HANDSHAKE = 1
"""TLS bytes of a new session."""
JOIN = 2
"""The dialler asks to add this link to a session (keyed)."""
JOINED = 3
"""The answer: it belongs to it now (keyed)."""
UNKNOWN = 4
"""The answer: no such session. Not authenticated, so it only makes the dialler run a full handshake."""
# Sealed by the session's key: may be sent on any link, and sent again.
RECORD = 5
# Sealed by the link's key: belongs to this link, is never sent again.
CONTROL = 6
DATAGRAM = 7


class CorruptLink(Exception):
    """The bytes on a link are not ours: the link is dropped, the session goes on without it."""


class ProtocolError(Exception):
    """The authenticated peer broke the protocol: the session cannot go on."""
