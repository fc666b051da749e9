"""The manifests that were read last without an error, as kept on disk: the same bytes, with when that was.

Not the services that came of them: the text is a form that every release reads, and that a person can copy back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from services.runtime.core.envelope import BadSnapshot, unwrap, wrap

FORMAT = "causeway-services"
VERSION = 1
# How old manifests may be and still stand in for a file that cannot be read, seconds. A week: somebody has had the
# time to see the warning and mend the file; what ran a week ago has most likely moved since.
MAX_AGE = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class LastGood:
    """`data`: content of the file; `at`: when the file was last seen to hold it, seconds since the Unix epoch."""

    data: bytes
    at: float

    def age(self, now: float) -> float:
        """In seconds; 0 where the clock was set back."""
        return max(0.0, now - self.at)


def encode(kept: LastGood) -> bytes:
    """The inverse of `decode`."""
    return wrap(FORMAT, VERSION, json.dumps({"savedAt": kept.at}).encode() + b"\n" + kept.data)


def decode(data: bytes) -> LastGood:
    """Raises BadSnapshot with what is wrong."""
    head, _, manifests = unwrap(FORMAT, VERSION, data).partition(b"\n")
    try:
        return LastGood(manifests, float(json.loads(head)["savedAt"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadSnapshot(f"it cannot be read ({type(error).__name__}: {error})") from error
