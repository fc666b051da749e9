"""What is kept on disk, as bytes: one line of JSON with format, version and the checksum of the body, then the body.

Version and checksum make a file of another release, or one that was cut off or flipped a bit, a clear refusal
instead of strange state.
"""

from __future__ import annotations

import hashlib
import json


class BadSnapshot(ValueError):
    """The bytes are not a whole file of this format and version."""


def wrap(form: str, version: int, body: bytes) -> bytes:
    """The inverse of `unwrap`."""
    header = {"format": form, "version": version, "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(header).encode() + b"\n" + body + b"\n"


def unwrap(form: str, version: int, data: bytes) -> bytes:
    """The body, as it was written; raises BadSnapshot with what is wrong."""
    head, _, rest = data.partition(b"\n")
    body = rest.removesuffix(b"\n")
    try:
        header = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise BadSnapshot(f"it cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(header, dict) or header.get("format") != form:
        raise BadSnapshot(f"it is not a file of the form {form}")
    if header.get("version") != version:
        raise BadSnapshot(f"it has version {header.get('version')!r}, expected {version}")
    if header.get("sha256") != hashlib.sha256(body).hexdigest():
        raise BadSnapshot("its checksum is wrong: it was cut off or damaged")
    return body
