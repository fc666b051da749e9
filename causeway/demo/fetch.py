"""Where there is no curl: `python -m causeway.demo.fetch URL` writes what it downloads to standard output."""

from __future__ import annotations

import sys
import urllib.request

PIECE = 256 << 10  # bytes


def main(url: str) -> None:
    """Entry point of the process. A body that is too short is an error, as it is for curl."""
    expected = received = 0
    with urllib.request.urlopen(url) as response:
        expected = int(response.headers["Content-Length"])
        while piece := response.read1(PIECE):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            received += len(piece)
    if received != expected:
        sys.exit(f"{url} ended after {received} of {expected} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
