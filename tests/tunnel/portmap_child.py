"""A mapper by itself, quick: `python -m tests.tunnel.portmap_child STATE_DIR ONLY LIFETIME`.

ONLY: "PCP", "NAT-PMP", "UPnP" or "all". LIFETIME: seconds to ask for. Prints a JSON line for each change, and gives the
mapping back on SIGTERM.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from services.tunnel.portmap import pmp, upnp
from services.tunnel.portmap.gateway import Gateway
from services.tunnel.portmap.lease import Client
from services.tunnel.portmap.mapper import Mapper, PortMapping

PORT = 20006


class Quick(Mapper):
    only = "all"

    def _clients(self, gateway: Gateway) -> Iterator[Client]:
        for client in super()._clients(gateway):
            if self.only in ("all", client.name):
                yield client

    def _say(self, mapping: PortMapping) -> None:
        before = self.mapping
        super()._say(mapping)
        if mapping != before:
            line = {"protocol": mapping.protocol, "external": mapping.external, "why": mapping.why}
            print(json.dumps(line), flush=True)


async def main(state_dir: str, only: str, lifetime: str) -> None:
    pmp.LIFETIME = upnp.LIFETIME = int(lifetime)
    mapper = Quick(Path(state_dir), "", PORT, lambda: None, look_every=0.5)
    mapper.only = only
    task = asyncio.create_task(mapper.run())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
