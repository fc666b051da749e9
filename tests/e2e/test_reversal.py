"""Connection reversal: who cannot be dialled dials back."""

from pathlib import Path

import pytest

from lab.mesh import Mesh
from protos import tunnel_pb2 as pb
from tests.e2e.conftest import print_logs, require_simulation
from tests.e2e.traffic import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]


async def test_a_node_behind_a_router_dials_the_public_one_that_calls_it(short_path: Path) -> None:
    """b has a public address and calls a over a relay, since a's router lets nobody in. Without the reversal the path
    would stay relayed, or be punched."""
    require_simulation()
    mesh = Mesh.simulated(short_path, b_public=True)
    async with mesh.running(lean=True):
        try:

            async def reserved() -> bool:
                return [it.state for it in (await mesh.a.tunnel()).relays] == ["reserved"] * 2

            async def known() -> bool:
                return any(it.where == address for it in (await mesh.a.explain("b")).candidates)

            address = f"{mesh.b.place.address}:20006"
            await eventually(reserved, "a can be called over both relays")
            await eventually(known, "a has heard of b's address")
            assert not (await mesh.a.tunnel()).sessions, "a has called nobody"
            await mesh.b.ping("a", timeout=60)

            async def dialled() -> bool:
                there, here = await mesh.a.active("b"), await mesh.b.active("a")
                return there is not None and here is not None and there.kind == here.kind == pb.PATH_KIND_DIRECT

            await eventually(dialled, "both ends have a direct path")
            there, here = await mesh.a.active("b"), await mesh.b.active("a")
            assert there is not None and here is not None
            assert there.remote == address, "to the port on which b listens"
            assert here.remote.startswith(f"{mesh.homes['a'].wan_address}:"), "from the outside of a's router"
            assert await mesh.b.ping("a") > 0
        except BaseException:
            print_logs(mesh)
            raise
