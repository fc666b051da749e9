"""The web server at b: `python -m causeway.demo.origin ADDRESS PORT SEED SIZE RATE`.

Serves one file of SIZE bytes at every path, at no more than RATE bits a second (0: as fast as it goes).
Prints one line when it listens.
"""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from causeway.demo.content import blocks

PIECE = 32 << 10  # bytes between two looks at the clock, when there is a rate


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with the file."""

    protocol_version = "HTTP/1.1"
    seed = ""
    size = 0
    rate = 0.0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(self.size))
        self.end_headers()
        start, sent = time.monotonic(), 0
        for block in blocks(self.seed, self.size):
            if not self.rate:
                self.wfile.write(block)
                continue
            for offset in range(0, len(block), PIECE):
                piece = memoryview(block)[offset : offset + PIECE]
                # An average, not a limit for each moment: what a stall held back is sent as fast as it goes.
                time.sleep(max(0.0, start + sent * 8 / self.rate - time.monotonic()))
                self.wfile.write(piece)
                sent += len(piece)

    def log_message(self, *_: object) -> None:
        """Requests are no news here."""


class Server(ThreadingTCPServer):
    """Not http.server's own, which asks DNS for its name first: that takes 10 s where there is no DNS."""

    allow_reuse_address = True
    daemon_threads = True


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    address, port, Handler.seed, size, rate = arguments
    Handler.size, Handler.rate = int(size), float(rate)
    with Server((address, int(port)), Handler) as server:
        print("listening", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
